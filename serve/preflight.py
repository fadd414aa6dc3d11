"""What can be known before half a minute of imports: is there memory, can the port be bound.

Each check is a pure judgement over facts that thin probes read from this machine.
"""

import errno
import socket
from pathlib import Path

from serve.errors import PreflightError
from serve.model import Model
from serve.target import Gpu, Target

GIB = 1024**3
MIB = 1024**2
# cgroup v2, then v1; "max" and absurdly large numbers mean no limit.
CGROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def needed_bytes(model: Model, target: Target) -> int:
    """Least memory to start: weights, KV cache, and what the target says its processes take."""
    fixed = (target.kv_cache_space_gib or 0) + target.reserve_gib
    return model.weight_bytes + int(fixed * GIB)


def check_memory(needed: int, free: int, what: str) -> None:
    """Refuse to start into certain failure.

    :raises PreflightError: saying needed and free.
    """
    if needed > free:
        raise PreflightError(
            f"too little {what}: needed {needed / GIB:.1f} GiB, free {free / GIB:.1f} GiB",
            "stop what holds it, take a smaller MODEL, or set PREHEAT_CHECK_MEMORY=false",
        )


def free_memory(target: Target, gpu: Gpu | None) -> tuple[int, str]:
    """Free bytes of the memory that ``target`` serves from, and its name."""
    if target.device == "cuda":
        return (gpu.free_mib * MIB if gpu else 0), "GPU memory"
    return min(_available(Path("/proc/meminfo")), *_cgroup_rooms()), "memory"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before the engine is started.

    :raises PreflightError: the address is in use or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        hint = "take another: PORT=8001" if in_use else "PREHEAT_HOST is an address of this machine"
        raise PreflightError(f"cannot listen on {host}:{port}: {error.strerror}", hint) from error
    return listener


def _available(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise PreflightError(f"{meminfo}: no MemAvailable", "set PREHEAT_CHECK_MEMORY=false")


def _cgroup_rooms() -> list[int]:
    rooms = []
    for limit, used in CGROUP_LIMITS:
        if limit.is_file() and used.is_file():
            most = limit.read_text().strip()
            if most != "max":
                rooms.append(int(most) - int(used.read_text()))
    return rooms or [1 << 62]
