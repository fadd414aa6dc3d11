"""Writes down what each compiled graph's cache key was made of, as vLLM itself computes it.

vLLM keeps only the hash: when a cache misses, nobody can tell which of 250 variables, ten
configurations or two hundred source files differed. With ``PREHEAT_RECORD_FACTORS=<folder>`` every
graph that is looked up leaves one JSON record there: factors, hash, and whether it was loaded,
compiled or refused. The variable is not vLLM's, so it is not hashed. Nothing is computed here
that vLLM does not compute: its own functions are called once more and listened to.

Knows nothing of what a record is compared with (``bake.explain``).
"""

import ast
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "PREHEAT_RECORD_FACTORS"
SCHEMA = 1
# vLLM hashes these two as bare lists; the names are those of the fields they hold, in order.
LISTED = {
    "scheduler_config": ("max_num_batched_tokens", "max_num_seqs"),
    "speculative_config": (
        "uses_aux_hidden_states",
        "draft_model_config",
        "index_share_for_mtp_iteration",
    ),
}
# Modules of vLLM that hold or take the two functions that are listened to.
LISTENED = ("vllm.config", "vllm.compilation.caching", "vllm.utils.hashing")
# Told beside the key, because people expect them in it.
PLACES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "VLLM_CACHE_ROOT", "TMPDIR")
DISTRIBUTIONS = ("vllm", "torch", "triton", "transformers")


def needed() -> bool:
    """Whether records are asked for, and vLLM's functions are not wrapped yet."""
    if not os.environ.get(VARIABLE):
        return False
    from vllm.compilation import decorators

    return not hasattr(decorators._try_load_aot_compiled_fn, "preheat_wraps")


def apply() -> None:
    """Wrap the look-up of a graph, and the run that follows once the graph is there."""
    from vllm.compilation import decorators

    recorder = Recorder(Path(os.environ[VARIABLE]))
    look_up = recorder.around(decorators._try_load_aot_compiled_fn)
    look_up.preheat_wraps = True  # type: ignore[attr-defined]
    decorators._try_load_aot_compiled_fn = look_up
    decorators.monitor_profiling_run = recorder.before(decorators.monitor_profiling_run)


class Recorder:
    """Writes one record a graph into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._compiling: Any = None

    def around(self, look_up: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        """``look_up`` of a graph, with a record of how it went."""

        def try_load(model: Any, path: str) -> Any:
            self._compiling = None
            try:
                loaded = look_up(model, path)
            except Exception as error:
                # Only with VLLM_FORCE_AOT_LOAD, or vLLM would compile again.
                outcome = "refused" if Path(path).exists() else "missing"
                self._write(model, path, outcome, f"{type(error).__name__}: {error}")
                raise
            if loaded is None:
                self._compiling = (model, path)
            else:
                self._write(model, path, "loaded", compiled=loaded)
            return loaded

        return try_load

    def before(self, profiling_run: Callable[..., Any]) -> Callable[..., Any]:
        """``profiling_run``, the first use of a graph: a graph not loaded is compiled by then."""

        def monitor_profiling_run(*args: Any, **kwargs: Any) -> Any:
            if self._compiling:
                model, path = self._compiling
                self._compiling = None
                self._write(model, path, "compiled", compiled=model.aot_compiled_fn)
            return profiling_run(*args, **kwargs)

        return monitor_profiling_run

    def _write(
        self, model: Any, path: str, outcome: str, reason: str = "", compiled: Any = None
    ) -> None:
        from vllm.logger import init_logger

        logger = init_logger("vllm.preheat")
        try:
            record = {
                **record_of(model.vllm_config, model.forward),
                "graph": getattr(model, "_compile_tag", "") or type(model).__name__,
                "outcome": outcome,
                "reason": reason,
                "sources": sources(compiled) if compiled else traced(model.vllm_config),
            }
            # What the path says is the truth; a record that does not lead there is worth nothing.
            record["reproduced"] = record["hash"] in Path(path).parts
            rank = Path(path).parent.name
            self._save(f"{record['graph']}-{record['hash'][:12]}-{rank}.json", record)
        except Exception as error:  # a record must not cost an engine
            logger.warning("preheat: no record of %s: %r", path, error)

    def _save(self, name: str, record: Mapping[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{os.getpid()}.tmp"
        temporary.write_text(json.dumps(plain(record), indent=1, sort_keys=True) + "\n")
        temporary.replace(self._folder / name)


def record_of(vllm_config: Any, forward: Any) -> dict[str, Any]:
    """Factors and hash of the graph that ``forward`` compiles to under ``vllm_config``."""
    from vllm.compilation import caching, decorators

    with listening() as heard:
        factors = caching.aot_compile_hash_factors(vllm_config)
    code = decorators._model_hash_key(forward)
    factors.append(code)
    return {
        "schema": SCHEMA,
        "hash": hashlib.sha256(str(factors).encode()).hexdigest(),
        "env": {"hash": factors[0], "factors": heard[factors[0]]},
        "config": {"hash": factors[1], "parts": config_parts(vllm_config, factors[1], heard)},
        "inductor": inductor(factors[2:-1]),
        "code": {
            "hash": code,
            "qualname": forward.__qualname__,
            "line": forward.__code__.co_firstlineno,
        },
        "beside": beside(vllm_config),
    }


@contextmanager
def listening() -> Iterator[dict[str, Any]]:
    """While open: every digest that vLLM makes of configurations and environment → of what."""
    from vllm.config import utils
    from vllm.utils import hashing

    heard: dict[str, Any] = {}
    hash_factors, safe_hash = utils.hash_factors, hashing.safe_hash

    def heard_factors(items: dict[str, object]) -> str:
        digest: str = hash_factors(items)
        heard[digest] = items
        return digest

    def heard_text(data: bytes, *args: Any, **kwargs: Any) -> Any:
        digest = safe_hash(data, *args, **kwargs)
        heard[digest.hexdigest()] = data.decode()
        return digest

    ours = {"hash_factors": heard_factors, "safe_hash": heard_text}
    theirs = {"hash_factors": hash_factors, "safe_hash": safe_hash}
    changed = [
        (module, name)
        for label, module in list(sys.modules.items())
        if label.startswith(LISTENED)
        for name in ours
        if getattr(module, name, None) is theirs[name]
    ]
    for module, name in changed:
        setattr(module, name, ours[name])
    try:
        yield heard
    finally:
        for module, name in changed:
            setattr(module, name, theirs[name])


def config_parts(vllm_config: Any, digest: str, heard: Mapping[str, Any]) -> dict[str, Any]:
    """Each configuration that went into ``digest`` (which vLLM cuts short), with its factors."""
    text = next(said for whole, said in heard.items() if whole.startswith(digest))
    hashed = ast.literal_eval(text)[0]
    parts: dict[str, Any] = {"vllm": {"hash": "", "factors": {"version": hashed[0]}}}
    for name in sorted(vars(vllm_config)):
        part = getattr(vllm_config, name)
        if not hasattr(part, "compute_hash"):
            continue
        own = part.compute_hash()
        if own in hashed:
            parts[name] = {"hash": own, "factors": unfolded(heard.get(own), heard, name)}
    return parts


def unfolded(said: Any, heard: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """What was hashed, by name; digests of digests replaced by what they are of."""
    if isinstance(said, str):
        values = ast.literal_eval(said)
        names = LISTED.get(name, ())
        said = {
            names[index] if index < len(names) else str(index): value
            for index, value in enumerate(values)
        }
    return {
        key: unfolded(heard[value], heard)
        if isinstance(value, str) and value in heard
        else plain(value)
        for key, value in (said or {}).items()
    }


def inductor(factors: list[Any]) -> dict[str, Any]:
    """The four factors of ``get_inductor_factors`` by name; none without the mega artifact."""
    names = ("system", "torch_key", "inductor_config", "functorch_config")
    return {name: plain(value) for name, value in zip(names, factors, strict=False)}


def beside(vllm_config: Any) -> dict[str, Any]:
    """What is *not* in the key and still matters, or is believed to be in it."""
    import platform

    from serve.plugin.patches import installed

    drafting = vllm_config.speculative_config
    return {
        "num_speculative_tokens": drafting.num_speculative_tokens if drafting else None,
        "versions": {
            "python": platform.python_version(),
            **{name: installed(name) for name in DISTRIBUTIONS},
        },
        "places": {name: os.environ.get(name) for name in PLACES},
    }


def sources(compiled: Any) -> dict[str, dict[str, str]]:
    """Every module that Dynamo traced through, with the digest of the text that was traced.

    By module and not by path: vLLM compares their text with the file that the module has here.
    """
    return {
        source.module: {
            "file": _file(sys.modules.get(source.module)),
            "sha256": hashlib.sha256(source.content.encode()).hexdigest(),
        }
        for source in compiled.source_info().inlined_sources
    }


def traced(vllm_config: Any) -> dict[str, dict[str, str]]:
    """The same of the files as they are here, when loading got far enough to name them."""
    files = set(vllm_config.compilation_config.traced_files)
    modules = {_file(module): name for name, module in list(sys.modules.items())}
    return {
        modules.get(file, file): {"file": file, "sha256": _digest(Path(file))}
        for file in sorted(files)
        if Path(file).is_file()
    }


def plain(value: Any) -> Any:
    """``value`` in what JSON can hold; what it cannot is written as Python would show it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(item) for item in value)
    return repr(value)


def _file(module: Any) -> str:
    try:
        return inspect.getfile(module)
    except (TypeError, OSError):
        return ""


def _digest(path: Path) -> str:
    # As inspect and vLLM read it: text, with newlines made \n.
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()
