"""CPU seconds of an engine's processes, read from ``/proc``: who works, and who waits busily."""

from pathlib import Path

from scripts.quiet import TICKS
from serve.keeper import descendants


def seconds(pid: int) -> dict[str, float]:
    """CPU seconds of each process of the family so far, by what it calls itself."""
    found: dict[str, float] = {}
    for one in (pid, *descendants(pid)):
        try:
            stat = Path(f"/proc/{one}/stat").read_text()
            line = Path(f"/proc/{one}/cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        fields = stat[stat.rindex(")") + 2 :].split()
        name = line if line.startswith("VLLM::") else "front end" if one == pid else "helper"
        found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS
    return found


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What each took between two readings."""
    return {name: round(value - before.get(name, 0.0), 3) for name, value in after.items()}
