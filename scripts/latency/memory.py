"""What an engine takes of this machine's memory or of its card's, and how many fit side by side."""

from pathlib import Path

from serve.errors import ConfigError
from serve.keeper import descendants
from serve.target import Target

KIB, MIB = 1024, 1024**2
# What vLLM 0.32 must find free of a card when an engine starts, whatever size its KV cache is given
# (gpu_memory_utilization where nobody names it).
FREE_AT_START = 0.92


def taken(root: int) -> int:
    """Bytes that a process and all below it take: proportional set sizes, a page that several share
    counted by parts (proc(5), /proc/pid/smaps_rollup).
    """
    return sum(
        _value(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in (root, *descendants(root))
    )


def available() -> int:
    """Bytes that can be had without swapping (proc(5), MemAvailable)."""
    return _value(Path("/proc/meminfo"), "MemAvailable")


def fitting(free: int, one: int, needed: int) -> int:
    """How many more engines fit into ``free`` bytes when each takes ``one`` and the last to start
    must still find ``needed``.
    """
    return max(0, (free - needed) // max(one, 1))


def check_card(target: Target, each: int, engines: int) -> None:
    """Whether so many engines of ``each`` bytes can be alive on the one card of ``target``; on a
    CPU that is the machine's to say, when the first one has started.

    :raises ConfigError: they cannot, which vLLM would say after minutes.
    """
    if target.device == "cpu" or engines <= on_card(target, each):
        return
    why = (
        f"a card of {target.memory_mib or 0} MiB takes {on_card(target, each)} of about "
        f"{each // MIB} MiB, as vLLM must find {FREE_AT_START:.0%} of it free at each start"
        if target.kv_cache_mib
        else "it sets no KV_CACHE_MIB, so the first would take what it finds"
    )
    raise ConfigError(
        f"target {target.name} does not bear {engines} engines side by side: {why}",
        'docs/latency.md says under "On a GPU" what can be measured there',
    )


def on_card(target: Target, each: int) -> int:
    """How many engines of ``each`` bytes can be alive on one card: the last to start must find its
    share free. One, where the first takes all.
    """
    if target.kv_cache_mib is None:
        return 1
    spare = int((1 - FREE_AT_START) * (target.memory_mib or 0) * MIB)
    return 1 + spare // max(each, 1)


def _value(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        # It ended meanwhile.
        return 0
    found = (line.split() for line in lines if line.startswith(f"{name}:"))
    return KIB * int(next(found, [name, "0"])[1])
