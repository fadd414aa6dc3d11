"""What a gateway holds, by the kernel's account: connections and file descriptors."""

import os
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED, LISTENS = "03", "0A"


@dataclass(frozen=True)
class Stand:
    """What a gateway holds: clients' connections, and file descriptors but for connections."""

    connections: int
    descriptors: int


NOTHING = Stand(0, 0)


def stand_of(pid: int, port: int, engine: str) -> Stand:
    """What process ``pid`` holds, which listens on ``port`` and asks at the socket ``engine``; its
    connections to that may stay open.
    """
    clients = _connections_of(port)
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - no more than their number
    return Stand(clients, descriptors - clients - _connections_to(engine))


def _connections_of(port: int) -> int:
    """TCP connections that whoever listens on ``port`` holds; without one the kernel only waits."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = (row for row in rows if row[1].endswith(f":{port:04X}") and row[3] != LISTENS)
    return sum(row[9] != "0" for row in ours)


def _connections_to(path: str) -> int:
    """Connections that whoever listens on a Unix socket holds."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return sum(row[-1] == path and row[5] == ESTABLISHED for row in rows)
