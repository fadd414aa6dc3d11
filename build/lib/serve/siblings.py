"""Which GPU may go by another's name, so that one baked cache serves both.

Owns the allow-list and the rule. Pure: what the machine has is passed in; ``serve.plugin.identity``
asks torch, ``serve.identity`` the baked record. Inductor puts nothing of a GPU into its keys but
the name, so a pair is listed only if all else that compiled code depends on is the same for both:
one compute capability, the same chip, registers and shared memory per multiprocessor.

Names are spelled as the driver reports them. Multiprocessors, as printed by ``torch.cuda``'s own
property objects or stated by owners of the part: A40 84, RTX A6000 84, A10G 80, A10 72; H200 and
H100 SXM 132. The first four are GA102, the last two GH100. Not listed, and why:

- L4 (58, sm_89) and anything else of another capability: its kernels are others.
- RTX 3060 (28, sm_86): a grid barrier made for 84 multiprocessors would wait forever.
- RTX 3090, A40-48Q and the like: nobody has looked. A part that is not listed is refused.
"""

from dataclasses import dataclass

# By which the plugin in vLLM's processes learns the name to present.
PRESENT_AS = "PREHEAT_PRESENT_AS"


@dataclass(frozen=True)
class Device:
    """A GPU as far as compiled code depends on it; ``capability`` as in ``8.6``."""

    name: str
    capability: str
    multiprocessors: int


@dataclass(frozen=True)
class Allowed:
    """The name may be presented."""


@dataclass(frozen=True)
class Refused:
    """The name may not be presented; ``reason`` names everything that speaks against it."""

    reason: str


FAMILIES: tuple[tuple[Device, ...], ...] = (
    (
        Device("NVIDIA A40", "8.6", 84),
        Device("NVIDIA RTX A6000", "8.6", 84),
        Device("NVIDIA A10G", "8.6", 80),
        Device("NVIDIA A10", "8.6", 72),
    ),
    (
        Device("NVIDIA H200", "9.0", 132),
        Device("NVIDIA H100 80GB HBM3", "9.0", 132),
    ),
)


def listed(name: str) -> Device | None:
    """The allow-list's facts about a GPU."""
    return next((gpu for family in FAMILIES for gpu in family if gpu.name == name), None)


def may_present(true: Device, presented: Device) -> Allowed | Refused:
    """Whether ``true`` may go by the name of ``presented``.

    Who compiles and who serves is not known here (a bake may present its target's name, a server
    its bake's), so the kernels of either must be safe on the other.
    """
    if true.name == presented.name:
        return Allowed()
    reasons = [
        *_capabilities(true, presented),
        *_multiprocessors(true, presented),
        *_pair(true, presented),
    ]
    return Refused("; ".join(reasons)) if reasons else Allowed()


def safe_on(baked: int, serving: int) -> bool:
    """Whether kernels compiled for ``baked`` multiprocessors end on ``serving`` of them.

    Inductor's cooperative reductions start as many blocks as the largest power of two that fits
    the multiprocessors it compiled for, and each block waits for all others: with fewer
    multiprocessors some never start, and the kernel never ends.
    """
    return 1 <= last_power_of_2(baked) <= serving


def last_power_of_2(count: int) -> int:
    """The largest power of two that is not above ``count``; 0 for none."""
    return 1 << count.bit_length() - 1 if count > 0 else 0


def _capabilities(true: Device, presented: Device) -> list[str]:
    if true.capability == presented.capability:
        return []
    return [
        f"{true.name} has compute capability {true.capability or 'unknown'}, "
        f"{presented.name} {presented.capability or 'unknown'}: their kernels differ"
    ]


def _multiprocessors(true: Device, presented: Device) -> list[str]:
    more, fewer = sorted((true, presented), key=lambda gpu: -gpu.multiprocessors)
    if safe_on(more.multiprocessors, fewer.multiprocessors):
        return []
    if fewer.multiprocessors < 1:
        return [f"how many multiprocessors {fewer.name} has is not known"]
    return [
        f"{fewer.name} has {fewer.multiprocessors} multiprocessors; a kernel made for the "
        f"{more.multiprocessors} of {more.name} can wait for "
        f"{last_power_of_2(more.multiprocessors)} blocks at once and would never end"
    ]


def _pair(true: Device, presented: Device) -> list[str]:
    names = {true.name, presented.name}
    if any(names <= {gpu.name for gpu in family} for family in FAMILIES):
        return []
    return [
        f"{true.name} and {presented.name} are not a pair of the allow-list in serve/siblings.py"
    ]
