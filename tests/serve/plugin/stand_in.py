"""Real torch and vLLM on a GPU that is not there: ``python -m tests.serve.plugin.stand_in``.

Only what torch asks the driver is stood in for: properties, name, availability. Every key, check
and artifact is made by torch and vLLM themselves. One process imports them and forks once for each
question on stdin, a JSON list of ``{"ask", "gpu", "present_as", "shim", …}``; the answers are a
JSON list on stdout, ``{"refused": …}`` where an exception was the answer.
"""

import json
import logging
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

CUDA = "13.0"
# name: capability, multiprocessors, MiB
GPUS = {
    "NVIDIA A40": ((8, 6), 84, 45416),
    "NVIDIA A10G": ((8, 6), 80, 22587),
    "NVIDIA A10": ((8, 6), 72, 22723),
    "NVIDIA RTX A6000": ((8, 6), 84, 48676),
    "NVIDIA L4": ((8, 9), 58, 22563),
    "NVIDIA GeForce RTX 3060": ((8, 6), 28, 12044),
}


class Properties:
    """As ``_CudaDeviceProperties``: its fields can be read and not set."""

    def __init__(self, name: str) -> None:
        self._name = name

    name = property(lambda self: self._name)
    major = property(lambda self: GPUS[self._name][0][0])
    minor = property(lambda self: GPUS[self._name][0][1])
    multi_processor_count = property(lambda self: GPUS[self._name][1])
    total_memory = property(lambda self: GPUS[self._name][2] * 2**20)


ASKED: list[str] = []


def stand_in(name: str) -> None:
    """From here on torch finds one GPU of this name."""

    def properties(device: object = None) -> Properties:
        ASKED.append("properties")
        return Properties(name)

    from torch._inductor.codecache import CacheBase

    # What was compiled before the fork found no GPU, and torch remembers that.
    CacheBase.get_system.cache_clear()
    CacheBase.get_local_cache_path.cache_clear()
    torch.version.cuda = CUDA
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_name = lambda device=None: name
    torch.cuda.get_device_properties = properties


def seed_shim(presented: str) -> None:
    """What the seed's shim did, as our notes on it say; written anew, none of it is used.

    It sets a name that cannot be set and hides the error, takes the name out of Inductor's answer
    while leaving the hash made from it, and knows nothing of ``check_compatibility``.
    """
    from torch._inductor.codecache import CacheBase

    properties, system = torch.cuda.get_device_properties, CacheBase.get_system

    def get_device_properties(index: int) -> object:
        found = properties(index)
        with suppress(Exception):
            found.name = presented
        return found

    def get_system() -> dict[str, object]:
        answer = dict(system())
        answer["device"] = {k: v for k, v in answer["device"].items() if k != "name"}
        return answer

    torch.cuda.get_device_properties = get_device_properties
    CacheBase.get_system = staticmethod(get_system)


def our_shim() -> None:
    from serve.plugin.patches import IDENTITY, apply_all

    apply_all([IDENTITY])


def keys(question: dict) -> dict:
    """Every key that a GPU's name could be in, by the function of torch or vLLM that makes it."""
    from torch._inductor.codecache import CacheBase, FxGraphHashDetails, LocalCache
    from torch._inductor.codecache import compiled_fx_graph_hash as fx_graph_hash
    from vllm.compilation.caching import aot_compile_hash_factors
    from vllm.compilation.compiler_interface import InductorStandaloneAdaptor, get_inductor_factors

    graph = torch.fx.symbolic_trace(lambda x: x + 1)
    details = FxGraphHashDetails(graph, [], {}, [])
    return {
        "system": CacheBase.get_system(),
        "local cache": str(LocalCache().get_local_cache_path()),
        "fx details": details.system_info,
        "fx graph": fx_graph_hash(graph, [], {}, [])[0],
        "vllm inductor factors": repr(get_inductor_factors()),
        "vllm compiler hash": InductorStandaloneAdaptor("binary").compute_hash(None),
        "vllm AOT factors": repr(aot_compile_hash_factors(CONFIG)),
    }


def early(question: dict) -> dict:
    """Inductor asked for the name, and memoised it, before the shim came."""
    from torch._inductor.codecache import CacheBase

    before = [CacheBase.get_system()["hash"], str(CacheBase.get_local_cache_path())]
    our_shim()
    return {"before": before, **keys(question)}


def blind(question: dict) -> str:
    """The same, but at that look there was no GPU yet."""
    from torch._inductor.codecache import CacheBase

    available = torch.cuda.get_device_properties

    def nothing(device: object = None) -> Properties:
        raise RuntimeError("no GPU yet")

    torch.cuda.get_device_properties = nothing
    CacheBase.get_system()
    torch.cuda.get_device_properties = available
    our_shim()
    return CacheBase.get_system()["device"]["name"]


def untouched(question: dict) -> dict:
    """What the shim has asked of the GPU once it is in place, and what it leaves true."""
    asked, initialised = list(ASKED), torch.cuda.is_initialized()
    gpu = torch.cuda.get_device_properties()
    return {
        "asked": asked,
        "initialised": initialised,
        "true": [gpu.name, gpu.major, gpu.minor, gpu.multi_processor_count, gpu.total_memory],
    }


def record(question: dict) -> dict | None:
    from serve.plugin import identity

    return identity.record()


def bare_call(question: dict) -> str:
    """Callers inside torch ask for the current device's properties without naming it."""
    return torch.cuda.get_device_properties().name


def increment(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) + 1


def save(question: dict) -> str:
    """An AOT artifact, compiled, and saved under the GPU's name; returns the name it records.

    Compiled for the CPU, there being no other device; then said to be of CUDA, which is what makes
    torch look at names.
    """
    from torch._dynamo.package import SystemInfo

    compiled = COMPILED
    compiled._artifacts.device_type = "cuda"
    # As the field's own default_factory does where the GPU is there while compiling.
    compiled._artifacts.system_info = SystemInfo.current()
    compiled.save_compiled_function(question["path"])
    return compiled._artifacts.system_info.gpu_name


def load(question: dict) -> list[float]:
    """What the artifact computes once torch has let it in."""
    with Path(question["path"]).open("rb") as file:
        loaded = torch.compiler.load_compiled_function(file)
    return loaded(torch.tensor([-1.0, 2.0, 3.0])).tolist()


def check(question: dict) -> None:
    """torch's own check of this system against one that differs in one field, each way round."""
    from dataclasses import replace

    from torch._dynamo.package import SystemInfo

    here = SystemInfo.current()
    there = replace(here, **question["there"])
    first, second = (there, here) if question.get("swapped") else (here, there)
    first.check_compatibility(second, "cuda")


def autotune(question: dict) -> bool:
    """Triton's own disk cache of timings: whether this kernel was found there and not timed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    major, minor = GPUS[question["gpu"]][0]

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", major * 10 + minor, 32)

    driver.set_active(Driver())
    configs = [triton.Config({"BLOCK": size}) for size in (64, 128)]
    kernel = triton.autotune(configs, key=["n"])(triton.jit(triton_kernel))

    def time_them() -> None:
        kernel.configs_timings = {config: [1.0, 1.0, 1.0] for config in configs}

    return kernel.check_disk_cache((1024, "torch.float32"), configs, time_them)


def triton_kernel(x, n, BLOCK):  # noqa: N803
    pass


def best_config(question: dict) -> dict | None:
    """Inductor's own cache of winners for one generated kernel: what was there, else one in it."""
    import triton
    from torch._inductor.runtime.autotune_cache import AutotuneCache

    source = Path(question["path"]) / "ab" / "cabc.py"
    source.parent.mkdir(parents=True, exist_ok=True)
    configs = [triton.Config({"XBLOCK": size}) for size in (64, 128)]
    cache = AutotuneCache.create({"autotune_local_cache": True}, str(source), "hash")
    found = cache.read_best({}, configs)
    if found is None:
        cache.save(configs[1], 1)
    return found and found.kwargs


def moved(question: dict) -> dict:
    """Where a kernel that was baked elsewhere looks for its winner, and would write a new one."""
    import pickle

    from torch._inductor.runtime.autotune_cache import AutotuneCache

    baked = Path(question["path"]) / "baked" / "ab" / "cabc.py"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(question["path"]) / "here")
    meta = {"autotune_local_cache": True}
    saved = pickle.dumps(AutotuneCache.create(meta, str(baked), "hash").save)
    if question["shim"] == "winners":
        from serve.plugin import winners

        winners.apply()
    looked_up = AutotuneCache.create(meta, str(baked), "hash")
    # As a statically launched kernel comes out of an AOT artifact, with its hook.
    written = pickle.loads(saved).__self__
    return {"looked up": looked_up.local_cache[1], "written": written.local_cache[1]}


ASK = {
    ask.__name__: ask
    for ask in (
        autotune,
        bare_call,
        best_config,
        blind,
        check,
        early,
        keys,
        load,
        moved,
        record,
        save,
        untouched,
    )
}
SHIMS = {"ours": lambda presented: our_shim(), "seed": seed_shim}


def answer(question: dict) -> object:
    stand_in(question["gpu"])
    if presented := question.get("present_as"):
        os.environ["PREHEAT_PRESENT_AS"] = presented
    if question.get("shim") in SHIMS:
        SHIMS[question["shim"]](presented)
    return ASK[question["ask"]](question)


def forked(question: dict) -> object:
    """The answer of a child, so that no question sees what another changed."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            said = answer(question)
        except BaseException as error:
            said = {"refused": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(said, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = json.load(pipe)
    os.waitpid(child, 0)
    return said


if __name__ == "__main__":
    questions = json.load(sys.stdin)
    logging.getLogger("vllm.preheat").addHandler(logging.StreamHandler())
    logging.getLogger("vllm.preheat").setLevel(logging.INFO)
    # What is dear and the same for all is done before the first fork.
    from torch._inductor.codecache import torch_key, triton_key

    torch_key(), triton_key()
    asked = {question["ask"] for question in questions}
    if asked & {"keys", "early"}:
        from vllm.config import VllmConfig

        CONFIG = VllmConfig()
    if "save" in asked:
        with torch._dynamo.config.patch(enable_aot_compile=True):
            function = torch.compile(increment, fullgraph=True)
            COMPILED = function.aot_compile(((torch.ones(3),), {}))
    with tempfile.TemporaryDirectory() as caches:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{caches}/inductor"
        os.environ["TRITON_CACHE_DIR"] = f"{caches}/triton"
        answers = [forked(question) for question in questions]
    json.dump(answers, sys.stdout)
