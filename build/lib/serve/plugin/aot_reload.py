"""Lets vLLM reload the AOT artifacts that its CPU backend saved.

The CPU backend compiles with ``DYNAMO_TRACE_ONCE``, whose reloaded function is a plain
function. vLLM 0.32 calls ``finalize_loading`` on it (``compilation/decorators.py``), a method
that only its own compiled wrapper has, fails, and compiles again at every start. There is
nothing to finalise in this mode, so the function is given a method that does nothing.
"""

from typing import Any


def needed() -> bool:
    """Whether this is the CPU build and the loader is not wrapped yet."""
    import torch

    loader = torch.compiler.load_compiled_function
    return torch.version.cuda is None and not hasattr(loader, "preheat_wraps")


def apply() -> None:
    """Wrap the loader: what it returns always answers ``finalize_loading``."""
    import torch

    load = torch.compiler.load_compiled_function

    def load_compiled_function(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        # Private, and the very attribute that vLLM reads; the version guard covers it.
        compiled = loaded._artifacts.compiled_fn
        if not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = _nothing_to_finalise
        return loaded

    load_compiled_function.preheat_wraps = load  # type: ignore[attr-defined]
    torch.compiler.load_compiled_function = load_compiled_function


def _nothing_to_finalise(vllm_config: object) -> None:
    """Stands in for the method of vLLM's compiled wrapper."""
