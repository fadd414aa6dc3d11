"""The compatibility patches: which, why, and for which versions each was tried.

A patch is applied only where it is needed and only for the versions it was tried with; either
way it says so in one log line. One that an engine must not be without stops it instead.
``tests/serve/plugin`` fails when one is no longer needed, or no longer enough.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from serve.plugin import (
    aot_reload,
    compiler,
    conv_layout,
    conv_state,
    decode_kernel,
    draft_argmax,
    draft_logits,
    draft_vocabulary,
    expand_values,
    factors,
    frozen,
    identity,
    kernel_scan,
    seeded_chunks,
    shared_queue,
    thought_end,
    torchvision_ops,
    winners,
)
from serve.siblings import PRESENT_AS

# A child of vLLM's own logger, so that its handlers and process labels apply.
logger = logging.getLogger("vllm.preheat")


@dataclass(frozen=True)
class Patch:
    """One change to somebody else's code.

    ``tried`` maps a package to the release the patch was tried with, local part left out.
    ``required``: an engine without it is not what was asked for, so it must not start.
    """

    name: str
    why: str
    tried: Mapping[str, str]
    needed: Callable[[], bool]
    apply: Callable[[], None]
    required: bool = False


TORCHVISION_OPS = Patch(
    "torchvision_ops",
    "a CUDA torchvision beside CPU torch cannot be imported, and transformers imports it",
    {"vllm": "0.32.0", "torch": "2.13.0", "torchvision": "0.28.0"},
    torchvision_ops.needed,
    torchvision_ops.apply,
)
AOT_RELOAD = Patch(
    "aot_reload",
    "AOT artifacts of the CPU backend are saved but refused at reload",
    {"vllm": "0.32.0", "torch": "2.13.0"},
    aot_reload.needed,
    aot_reload.apply,
)
CONV_LAYOUT = Patch(
    "conv_layout",
    "the CPU's causal convolution refuses the strided rows that compiled graphs pass it",
    {"vllm": "0.32.0", "torch": "2.13.0"},
    conv_layout.needed,
    conv_layout.apply,
)
CONV_STATE = Patch(
    "conv_state",
    "with drafts, steps of fewer than K+1 tokens break the convolution, and only AMX gets a kernel",
    {"vllm": "0.32.0"},
    conv_state.needed,
    conv_state.apply,
)
DECODE_KERNEL = Patch(
    "decode_kernel",
    "without drafts, the CPU's recurrent step rounds otherwise than with them, and refuses views",
    {"vllm": "0.32.0"},
    decode_kernel.needed,
    decode_kernel.apply,
)
DRAFT_ARGMAX = Patch(
    "draft_argmax",
    "with drafts, the CPU backend looks for each token's id one vocabulary entry at a time",
    {"vllm": "0.32.0", "torch": "2.13.0"},
    draft_argmax.needed,
    draft_argmax.apply,
)
DRAFT_LOGITS = Patch(
    "draft_logits",
    "with drafts, all logits are copied for log-probabilities that nobody asked for",
    {"vllm": "0.32.0"},
    draft_logits.needed,
    draft_logits.apply,
)
DRAFT_VOCABULARY = Patch(
    "draft_vocabulary",
    "asked for: drafts are chosen from the tokens that are used most, and verified by all",
    {"vllm": "0.32.0", "torch": "2.13.0"},
    draft_vocabulary.needed,
    draft_vocabulary.apply,
    required=True,
)
EXPAND_VALUES = Patch(
    "expand_values",
    "with drafts, the CPU backend divides logits by uninitialised temperatures",
    {"vllm": "0.32.0"},
    expand_values.needed,
    expand_values.apply,
)
RECORD_FACTORS = Patch(
    "record_factors",
    "asked for: what each graph's cache key is made of is written down",
    {"vllm": "0.32.0", "torch": "2.13.0"},
    factors.needed,
    factors.apply,
)
KERNEL_SCAN = Patch(
    "kernel_scan",
    "vLLM looks for its own kernels in every module that is loaded, at every start",
    {"vllm": "0.32.0"},
    kernel_scan.needed,
    kernel_scan.apply,
)
SEEDED_CHUNKS = Patch(
    "seeded_chunks",
    "a seeded request whose prompt is read in two steps kills the engine of a CPU",
    {"vllm": "0.32.0", "torch": "2.13.0"},
    seeded_chunks.needed,
    seeded_chunks.apply,
)
SHARED_QUEUE = Patch(
    "shared_queue",
    "the worker's answers reserve 240 MiB of /dev/shm, and a container has 64",
    {"vllm": "0.32.0"},
    shared_queue.needed,
    shared_queue.apply,
)
THOUGHT_END = Patch(
    "thought_end",
    "with drafts, a capped thought that ends by itself at the cap is ended once more",
    {"vllm": "0.32.0"},
    thought_end.needed,
    thought_end.apply,
)
FROZEN = Patch(
    "frozen",
    "serving from a baked root: no lock is taken in it, and no header is compiled for nothing",
    {"torch": "2.13.0"},
    frozen.needed,
    frozen.apply,
)
RECORD_COMPILER = Patch(
    "record_compiler",
    "a root is baked: what the compiler says of itself is written down for who serves from it",
    {"torch": "2.13.0"},
    compiler.recording_needed,
    compiler.record,
)
REPLAY_COMPILER = Patch(
    "replay_compiler",
    "serving from a baked root: the compiler, which is in each key, says what it said at the bake",
    {"torch": "2.13.0"},
    compiler.replay_needed,
    compiler.replay,
)
WINNERS = Patch(
    "winners",
    "autotuned winners are looked for where they were baked, not where the cache is now",
    {"torch": "2.13.0"},
    winners.needed,
    winners.apply,
)
IDENTITY = Patch(
    "identity",
    f"{PRESENT_AS} is set: compile caches of a sibling GPU are to be used",
    {"vllm": "0.32.0", "torch": "2.13.0"},
    identity.needed,
    identity.apply,
    required=True,
)
PATCHES = (
    TORCHVISION_OPS,
    AOT_RELOAD,
    CONV_LAYOUT,
    CONV_STATE,
    DECODE_KERNEL,
    DRAFT_ARGMAX,
    DRAFT_LOGITS,
    DRAFT_VOCABULARY,
    EXPAND_VALUES,
    KERNEL_SCAN,
    SEEDED_CHUNKS,
    SHARED_QUEUE,
    THOUGHT_END,
    FROZEN,
    RECORD_COMPILER,
    REPLAY_COMPILER,
    WINNERS,
    IDENTITY,
    RECORD_FACTORS,
)


class NotTried(RuntimeError):
    """A required patch meets versions that it was not tried with."""


def apply_all(patches: Iterable[Patch] = PATCHES) -> None:
    """Apply each patch that is needed here and was tried with these versions.

    :raises NotTried: a required one was not.
    """
    for patch in patches:
        if not patch.needed():
            continue
        if other := mismatch(patch.tried, installed):
            if patch.required:
                raise NotTried(f"patch {patch.name}, {other}: {patch.why}")
            logger.warning("preheat: patch %s not applied, %s: %s", patch.name, other, patch.why)
            continue
        patch.apply()
        _tell(f"preheat: patch {patch.name} applied: {patch.why}")


def _tell(line: str) -> None:
    """Log ``line``. vLLM's front end loads plugins before it sets its logs up, and what it forks
    is patched by then: there, nobody else would say it.
    """
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", line)
    else:
        print(line, file=sys.stderr, flush=True)


def mismatch(tried: Mapping[str, str], version_of: Callable[[str], str | None]) -> str:
    """The first package whose release was not tried, in words; empty when all match."""
    for package, release in tried.items():
        here = version_of(package)
        if here != release:
            return f"tried with {package} {release}, here {here or 'none'}"
    return ""


def installed(package: str) -> str | None:
    """Release of an installed package without its local part (``2.13.0+cpu`` → ``2.13.0``)."""
    from importlib.metadata import PackageNotFoundError, version

    # The CPU build of vLLM has a distribution name of its own.
    for distribution in (package, f"{package}-cpu"):
        try:
            return version(distribution).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None
