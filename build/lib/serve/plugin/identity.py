"""Lets this GPU use the compile cache of a sibling: torch is told the sibling's name, no more.

On when ``PREHEAT_PRESENT_AS`` is set. Two places of torch 2.13 hold a GPU's name:

- ``CacheBase.get_system``, whose answer goes into every Inductor key and vLLM's AOT hash. It
  carries the name *and* a hash made from it; both are made anew, as torch makes them.
- ``SystemInfo.check_compatibility``, which refuses an AOT artifact of a GPU with another name.
  Artifacts go on recording the true name, so a bake that presented its target's name needs this
  on the target too: there ``PREHEAT_PRESENT_AS`` is the true name, which changes no key.

Capability, multiprocessors, memory and UUID stay true: generated kernels depend on them. What a
name is allowed is ``serve.siblings``' matter; anything else stops the engine.

Nothing here asks for the GPU before torch itself would: front ends fork, and CUDA must not have
been initialised by then. What is not unified: Triton's and Inductor's autotuned winners carry no
name at all, so a sibling takes them over silently (``serve.retune``).
"""

import logging
import os
from dataclasses import replace
from functools import cache
from typing import Any

from serve.siblings import PRESENT_AS, Allowed, Device, Refused, listed, may_present

MARK = "preheat_wraps"

logger = logging.getLogger("vllm.preheat")


class PresentRefused(RuntimeError):
    """The GPU may not go by that name. Ends the engine: without it every graph would miss."""


def needed() -> bool:
    """Whether a name is to be presented and torch is not told yet. Imports nothing if not."""
    if not os.environ.get(PRESENT_AS):
        return False
    from torch._inductor.codecache import CacheBase

    return not hasattr(CacheBase.get_system, MARK)


def apply() -> None:
    """Put both wrappers in place.

    :raises PresentRefused: this build of torch has no CUDA, so no GPU to present.
    """
    import torch

    presented = os.environ[PRESENT_AS]
    if torch.version.cuda is None:
        raise PresentRefused(f"{PRESENT_AS}={presented}: this torch is built without CUDA")
    _wrap_key(presented)
    _wrap_check()


def record() -> dict[str, str | int] | None:
    """What a bake writes down about the GPU and the name in its keys; None without CUDA.

    Asks the GPU, so only for a process that has initialised CUDA: a worker.
    """
    import torch

    if torch.version.cuda is None:
        return None
    gpu = here()
    return {
        "name": gpu.name,
        "presented": os.environ.get(PRESENT_AS) or gpu.name,
        "capability": gpu.capability,
        "multiprocessors": gpu.multiprocessors,
    }


def here() -> Device:
    """The GPU that Inductor compiles for."""
    import torch

    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(gpu.name, f"{gpu.major}.{gpu.minor}", gpu.multi_processor_count)


def presented_system(true: dict[str, Any], presented: str) -> dict[str, Any]:
    """torch's answer about this system under another name, hash included.

    :raises PresentRefused: there is no GPU, or it may not go by that name.
    """
    from torch._inductor.cache_key import SYSTEM_CACHE_KEY_STRATEGY

    if "device" not in true:
        raise PresentRefused(f"{PRESENT_AS}={presented}: torch finds no GPU here")
    gpu = here()
    if isinstance(verdict := judge(gpu, presented), Refused):
        raise PresentRefused(f"{PRESENT_AS}={presented}: {verdict.reason}")
    logger.info("preheat: GPU %s is presented to Inductor as %s", gpu.name, presented)
    named = {"device": {**true["device"], "name": presented}, "version": true["version"]}
    return {**named, "hash": SYSTEM_CACHE_KEY_STRATEGY.key_from_json(named)}


def judge(true: Device, name: str) -> Allowed | Refused:
    """``may_present`` of a name alone: the allow-list has the facts that go with it."""
    if name == true.name:
        return Allowed()
    if (other := listed(name)) is None:
        return Refused(f"{name} is not on the allow-list in serve/siblings.py")
    return may_present(true, other)


def _wrap_key(presented: str) -> None:
    from torch._inductor.codecache import CacheBase

    stock = CacheBase.get_system

    @cache
    def get_system() -> dict[str, Any]:
        # Past torch's memo: an early look, before there was a GPU, must not decide.
        return presented_system(stock.__wrapped__(), presented)

    setattr(get_system, MARK, stock)
    if stock.cache_info().currsize:
        logger.warning("preheat: Inductor had asked for this GPU's name before it was presented")
    CacheBase.get_system = staticmethod(get_system)
    # Memoised from the old hash, if anybody looked; all other keys are made when needed.
    CacheBase.get_local_cache_path.cache_clear()


def _wrap_check() -> None:
    from torch._dynamo.package import SystemInfo

    stock = SystemInfo.check_compatibility

    def check_compatibility(self: Any, other: Any, device_type: str = "cpu") -> None:
        if device_type == "cuda" and self.gpu_name and other.gpu_name:
            other = replace(other, gpu_name=_forgiven(self.gpu_name, other.gpu_name))
        stock(self, other, device_type)

    setattr(check_compatibility, MARK, stock)
    SystemInfo.check_compatibility = check_compatibility


def _forgiven(one: str, another: str) -> str:
    """``another`` as ``one`` if an artifact of either may run here; torch's callers swap the two.

    :raises PresentRefused: this GPU may not take the other's artifacts.
    """
    if one == another:
        return another
    gpu = here()
    baked = another if one == gpu.name else one
    if gpu.name not in (one, another):
        return another
    if isinstance(verdict := judge(gpu, baked), Refused):
        raise PresentRefused(f"artifact of {baked}, GPU {gpu.name}: {verdict.reason}")
    return one
