"""Narrows a scan over every loaded module to vLLM's own.

vLLM 0.32 points references to its Triton kernels at CPU implementations by walking the
namespaces of all of ``sys.modules`` (``triton_utils/dispatcher.py``, ``_rebind_kernels``), 6,000 of
them. Only vLLM's modules refer to vLLM's kernels.
"""

from types import SimpleNamespace
from typing import Any


def needed() -> bool:
    """Whether this is the CPU build, as no other rebinds kernels, and the scan is not narrowed."""
    import torch

    if torch.version.cuda is not None:
        return False
    from vllm.triton_utils import dispatcher

    return not hasattr(dispatcher._rebind_kernels, "preheat_wraps")


def apply() -> None:
    """Show the scan a ``sys`` that holds vLLM's modules only."""
    import sys

    from vllm.triton_utils import dispatcher

    rebind = dispatcher._rebind_kernels

    def _rebind_kernels(overrides: Any) -> None:
        dispatcher.sys = SimpleNamespace(modules=own_modules(sys.modules))
        try:
            rebind(overrides)
        finally:
            dispatcher.sys = sys

    _rebind_kernels.preheat_wraps = rebind  # type: ignore[attr-defined]
    dispatcher._rebind_kernels = _rebind_kernels


def own_modules(modules: dict[str, Any]) -> dict[str, Any]:
    """Those of ``modules`` that are vLLM's."""
    return {name: module for name, module in modules.items() if name.split(".")[0] == "vllm"}
