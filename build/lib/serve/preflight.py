"""What can be known before half a minute of imports: is there memory, can the port be bound.

Each check is a pure judgement over facts that thin probes read from this machine.
"""

import contextlib
import errno
import ipaddress
import resource
import socket
from pathlib import Path

from serve.errors import ConfigError, PreflightError
from serve.model import Model
from serve.target import Gpu, Target
from serve.variant import Variant

GIB = 1024**3
MIB = 1024**2
# sun_path of unix(7) less its terminating zero.
SOCKET_PATH_BYTES = 107
# cgroup v2, then v1; "max" and absurdly large numbers mean no limit.
CGROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)

BIND_HINTS: dict[int | None, str] = {
    errno.EADDRINUSE: "take another: PORT=8001",
    errno.EACCES: "ports below 1024 need a privilege, take another: PORT=8000",
}


def needed_bytes(model: Model, target: Target) -> int:
    """Least memory to start: weights, KV cache, and what the target says its processes take."""
    # Ranks share a machine's memory; each has a GPU of its own.
    ranks = model.blob.world if model.blob and target.device == "cuda" else 1
    return (
        model.weight_bytes // ranks
        + (target.kv_cache_mib or 0) * MIB
        + int(target.reserve_gib * GIB)
    )


def check_memory(needed: int, free: int, what: str) -> None:
    """Refuse to start into certain failure.

    :raises PreflightError: saying needed and free.
    """
    if needed > free:
        raise PreflightError(
            f"too little {what}: needed {needed / GIB:.1f} GiB, free {free / GIB:.1f} GiB",
            "stop what holds it, take a smaller MODEL, or set PREHEAT_CHECK_MEMORY=false",
        )


def check_compiler(found: str | None) -> None:
    """Refuse a start that will compile where nothing can; torch says so after ten seconds.

    :raises PreflightError: there is no ``found``.
    """
    if found is None:
        raise PreflightError(
            "a start without a baked cache compiles, and there is no g++ on PATH",
            "serve a variant that is baked (PREHEAT_CACHE_POLICY=require says why one is not "
            "used), or install g++",
        )


def check_kernels(model: Model, variant: Variant, instructions: frozenset[str]) -> None:
    """Refuse what vLLM 0.32 has kernels for on no x86-64 CPU without AVX-512.

    ``instructions`` are those of the CPU, and none where it is another's.

    :raises PreflightError: saying what; an engine would, once its model is loaded.
    """
    asked = ["INT4 weights"] if model.int4 else []
    if variant.kv_cache_dtype == "fp8":
        asked.append("an FP8 KV cache")
    if asked and instructions and "avx512f" not in instructions:
        raise PreflightError(
            f"{variant.name} of {model.name} has {' and '.join(asked)}, for which vLLM asks a CPU "
            "for AVX-512, and this one has none",
            "take another variant: the README lists them",
        )


def check_keys(host: str, *, asked: bool, waived: bool) -> None:
    """Refuse to let everybody in who can reach ``host``, unless that is wanted.

    :raises ConfigError: no key is asked for, and others can reach it.
    """
    if not (asked or waived or is_loopback(host)):
        raise ConfigError(
            f"PREHEAT_HOST={host}: others can reach it, and no key is asked for",
            "preheat serve keys add --file keys.json, and PREHEAT_KEYS_FILE=keys.json; or "
            "PREHEAT_NO_KEYS=true where something else lets nobody in",
        )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own alone; a name other than localhost may be any."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def raise_open_files() -> None:
    """As many open files as we may have: a stream takes two, and the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))


def check_socket(path: Path) -> None:
    """Refuse a socket that the kernel could not name: vLLM would only find out after its imports.

    :raises PreflightError: saying how long it is and may be.
    """
    if (length := len(bytes(path))) > SOCKET_PATH_BYTES:
        raise PreflightError(
            f"the engine's socket {path} has {length} bytes, at most {SOCKET_PATH_BYTES} are "
            "possible",
            "set TMPDIR to a shorter folder",
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
    except (OSError, UnicodeError, TypeError) as error:
        # The latter two are what Python makes of a name that cannot be encoded.
        listener.close()
        number = (error.errno or 0) if isinstance(error, OSError) else 0
        hint = BIND_HINTS.get(number, "PREHEAT_HOST is an address of this machine")
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise PreflightError(f"cannot listen on {host}:{port}: {why}", hint) from error
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
                room = int(most) - int(used.read_text())
                rooms.append(room + _file_cache(used.with_name("memory.stat")))
    return rooms or [1 << 62]


def _file_cache(stat: Path) -> int:
    """Bytes of files that the kernel keeps until someone needs the room: weights, after a start."""
    if not stat.is_file():
        return 0
    pairs = (line.split() for line in stat.read_text().splitlines())
    counts = {name: int(count) for name, count in pairs}
    return counts.get("inactive_file", 0) + counts.get("active_file", 0)
