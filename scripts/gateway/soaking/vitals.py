"""What a gateway holds at a moment, as the kernel tells it, and what it counts itself.

Looked at from outside: nothing is asked of the gateway but its ``/metrics``.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.metrics import read, summed
from serve.keeper import descendants

KIB, MIB = 1024, 2**20
LOOK_SECONDS = 0.5
# Of /proc/net/tcp, in hex; a listening socket of /proc/net/unix has this flag.
TCP_LISTEN = "0A"
UNIX_LISTENS = 0x10000
# Gauges that are 0 when nobody is served, by the name that a sample has them under.
GAUGES = {
    "in_flight": "preheat_requests_in_flight",
    "waiting": "preheat_requests_waiting",
    "engine_running": "vllm:num_requests_running",
    "engine_waiting": "vllm:num_requests_waiting",
}
COUNTED = "preheat_requests_total"
RESTARTS = "preheat_engine_restarts"


@dataclass(frozen=True)
class Place:
    """A gateway: its process, the port that it listens on, the socket of its engine."""

    pid: int
    port: int
    socket: Path


@dataclass(frozen=True)
class Vitals:
    """What a process holds; ``clients`` and ``upstream`` are connections, to it and by it."""

    rss_mib: float
    fds: int
    threads: int
    clients: int
    upstream: int
    engine_rss_mib: float

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)


def look(place: Place) -> Vitals:
    """Now.

    :raises OSError: the gateway is gone.
    """
    held = descriptors(place.pid)
    front = front_end(place)
    return Vitals(
        rss_mib=resident(place.pid),
        fds=len(held),
        threads=len(list(Path(f"/proc/{place.pid}/task").iterdir())),
        clients=_accepted(place.port, sockets(held)),
        upstream=_connected(place.socket),
        engine_rss_mib=resident(front) if front else 0.0,
    )


def fewest(place: Place, seconds: float) -> Vitals:
    """The least of each within so many seconds: what is never given back."""
    until = time.monotonic() + seconds
    looks = [look(place)]
    while time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        looks.append(look(place))
    each = {name: min(getattr(one, name) for one in looks) for name in asdict(looks[0])}
    return Vitals(**each)


def resident(pid: int) -> float:
    """Memory of one process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return round(int(found[1]) * KIB / MIB, 3) if found else 0.0


def descriptors(pid: int) -> list[str]:
    """What each open file of a process leads to."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            # Closed since it was listed.
            continue
    return found


def sockets(held: list[str]) -> set[str]:
    """Inodes of the sockets among them."""
    return {one[len("socket:[") : -1] for one in held if one.startswith("socket:[")}


def _accepted(port: int, inodes: set[str]) -> int:
    """Connections on a port that are one of these sockets, in whatever state."""
    found = 0
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = words = line.split()
            ours = int(local.rpartition(":")[2], 16) == port and words[9] in inodes
            found += ours and state != TCP_LISTEN
    return found


def _unix(path: Path) -> list[tuple[bool, str]]:
    """Whether it listens, and the inode, of each socket of this path, as the kernel has them."""
    table = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
    rows = [line.split(maxsplit=7) for line in table.splitlines()[1:]]
    return [
        (bool(int(row[3], 16) & UNIX_LISTENS), row[6])
        for row in rows
        if len(row) > 7 and row[7] == str(path)
    ]


def _connected(path: Path) -> int:
    return sum(not listens for listens, _ in _unix(path))


def front_end(place: Place) -> int | None:
    """The process below the gateway that listens on the engine's socket; the first, if its
    children have it, too.
    """
    inodes = {inode for listens, inode in _unix(place.socket) if listens}
    for pid in sorted(descendants(place.pid)):
        try:
            if inodes & sockets(descriptors(pid)):
                return pid
        except OSError:
            continue
    return None


def counters(exposition: str) -> dict[str, float]:
    """Each name's value in Prometheus' text, summed over labels; of requests also by route and
    status, under names with a blank.
    """
    points = read(exposition)
    found = summed(points)
    for point in points:
        if point.name == COUNTED:
            name = f"{point.labels['route']} {point.labels['status']}"
            found[name] = found.get(name, 0.0) + point.value
    return found


def by_route(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int]:
    """Requests that were counted from one reading to the next, by route and status."""
    names = (name for name in after if " " in name)
    risen = {name: round(after[name] - before.get(name, 0.0)) for name in names}
    return {name: count for name, count in sorted(risen.items()) if count}


def gauges(values: dict[str, float]) -> dict[str, float | None]:
    """Those that a sample has; None where the engine did not tell in time."""
    return {name: values.get(metric) for name, metric in GAUGES.items()}
