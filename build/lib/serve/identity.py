"""What a baked cache was made with, and whether this machine may use it. Pure, less its edge.

vLLM's own key answers a miss with a recompile and says nothing of why; some things are not in
that key at all (the CPU's instruction sets, the number of drafted tokens). So a baked root carries
its identity, and one that differs is refused before vLLM starts, naming what differs.

Knows nothing of files in a root (``serve.manifest``) nor of what vLLM hashes (``bake.explain``).
"""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.command import Place, build
from serve.errors import ServeError
from serve.plan import Plan, versions
from serve.siblings import PRESENT_AS, Refused, listed, may_present
from serve.siblings import Device as Gpu

FILE = "identity.json"
ROOT, SOCKET = "{root}", "{socket}"
# In the engine's environment, and no part of what was compiled.
NOT_IDENTITY = ("VLLM_FORCE_AOT_LOAD", "PREHEAT_RECORD_FACTORS", PRESENT_AS)
# Flags by which Inductor, ATen, oneDNN and vLLM choose code; all others leave it as it is.
ISA = ("avx", "amx", "fma", "f16c", "sse4", "ssse3", "bmi", "vnni", "asimd", "sve", "bf16", "i8mm")
CPUINFO = Path("/proc/cpuinfo")
CAPABILITY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")


class Part(BaseModel):
    """Base of what an identity is made of: frozen, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VariantId(Part):
    """Which levers. Two variants never share a root: vLLM's key knows nothing of K."""

    name: str
    digest: str


class ModelId(Part):
    """Which checkpoint. vLLM hashes the path as it is spelled."""

    name: str
    path: str
    config_sha256: str
    weight_bytes: int


class Device(Part):
    """What was compiled for. ``presented`` is the name that torch was told, ``name`` the true one.

    ``isa`` holds the CPU's flags that decide which code is generated; a GPU has none. Where a GPU
    is asked for and none is there, name and facts are empty: nothing is assumed of it.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    presented: str
    capability: str | None = None
    multiprocessors: int | None = None
    isa: tuple[str, ...] = ()


class Graph(Part):
    """One compiled graph: vLLM's name of it (backbone, eagle_head) and its AOT hash."""

    name: str
    hash: str


class Identity(Part):
    """Everything that a bake depends on. ``graphs`` is empty where nothing was baked."""

    version: Literal[1] = Field(1, alias="schema")
    variant: VariantId
    model: ModelId
    target: str
    versions: dict[str, str]
    argv: tuple[str, ...]
    env: dict[str, str]
    device: Device
    graphs: tuple[Graph, ...] = ()


@dataclass(frozen=True)
class Accepted:
    """May be used; ``present_as`` is the name that torch must be told, if not the true one."""

    present_as: str | None = None


@dataclass(frozen=True)
class Reason:
    """One factor that differs: what was baked, what is here, and why that matters."""

    factor: str
    baked: str
    here: str
    why: str = ""

    def __str__(self) -> str:
        tail = f": {self.why}" if self.why else ""
        return f"{self.factor}: baked {self.baked}, here {self.here}{tail}"


@dataclass(frozen=True)
class Rejected:
    """May not be used."""

    reasons: tuple[Reason, ...]


def as_json(identity: Identity) -> dict[str, Any]:
    """As it stands in the file, for programs."""
    return identity.model_dump(mode="json", by_alias=True)


def dump(identity: Identity) -> bytes:
    """Canonical JSON: equal identities, equal bytes."""
    tree = as_json(identity)
    return (json.dumps(tree, sort_keys=True, separators=(",", ":")) + "\n").encode()


def parse(raw: bytes) -> Identity:
    """The identity in ``raw``.

    :raises ServeError: it is none, or one of another schema.
    """
    try:
        return Identity.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ServeError(f"{FILE}: {where}: {first['msg']}") from error


def match(baked: Identity, here: Identity) -> Accepted | Rejected:
    """Whether what was ``baked`` may serve ``here``, and if not, every reason."""
    device = _device(baked.device, here.device)
    reasons = (*_reasons(baked, here), *(device if isinstance(device, tuple) else ()))
    return Rejected(reasons) if reasons else Accepted(None if isinstance(device, tuple) else device)


def _reasons(baked: Identity, here: Identity) -> Iterator[Reason]:
    yield from _fields("variant", baked.variant, here.variant)
    yield from _fields("model", baked.model, here.model)
    if baked.target != here.target:
        yield Reason("target", baked.target, here.target)
    yield from _mappings("version of ", baked.versions, here.versions)
    yield from _mappings("argument ", arguments(baked.argv), arguments(here.argv))
    yield from _mappings("variable ", baked.env, here.env)


def _fields(group: str, baked: Part, here: Part) -> Iterator[Reason]:
    for name in type(baked).model_fields:
        was, now = getattr(baked, name), getattr(here, name)
        if was != now:
            yield Reason(f"{group} {name}", str(was), str(now), WHY.get(f"{group} {name}", ""))


def _mappings(group: str, baked: Mapping[str, str], here: Mapping[str, str]) -> Iterator[Reason]:
    for name in sorted(baked.keys() | here.keys()):
        was, now = baked.get(name), here.get(name)
        if was != now:
            yield Reason(group + name, _shown(was), _shown(now), WHY.get(group + name, ""))


def _device(baked: Device, here: Device) -> str | None | tuple[Reason, ...]:
    """The name to present, None for the true one, or why this device cannot take the cache."""
    if baked.kind != here.kind:
        return (Reason("device", baked.kind, here.kind),)
    if baked.kind == "cpu":
        return _instructions(baked, here) or None
    if not here.name:
        return (Reason("device name", baked.presented, "no GPU"),)
    if not baked.name == baked.presented == here.name:
        return _sibling(baked, here)
    return (
        tuple(
            Reason(f"device {name}", _shown(was), _shown(now))
            for name in ("capability", "multiprocessors")
            if (was := getattr(baked, name)) != (now := getattr(here, name))
        )
        or None
    )


def _instructions(baked: Device, here: Device) -> tuple[Reason, ...]:
    more = sorted(set(here.isa) - set(baked.isa))
    less = sorted(set(baked.isa) - set(here.isa))
    reasons = []
    if less:
        why = "the baked kernels would die of an illegal instruction"
        reasons.append(Reason("CPU instructions", " ".join(less), "none of them", why))
    if more:
        why = "kernels would be chosen, and compiled, for them at start"
        reasons.append(Reason("CPU instructions", "none of them", " ".join(more), why))
    return tuple(reasons)


def _sibling(baked: Device, here: Device) -> str | tuple[Reason, ...]:
    def gpu(device: Device, name: str) -> Gpu:
        return Gpu(name, device.capability or "", device.multiprocessors or 0)

    # What was compiled depends on the GPU that was really there, whatever it was called.
    answer = may_present(gpu(here, here.name), gpu(baked, baked.name))
    if isinstance(answer, Refused):
        return (Reason("device name", baked.presented, here.name, answer.reason),)
    return baked.presented


WHY = {
    "variant digest": "two variants never share a root: vLLM's key does not hold every lever",
    "model path": "vLLM hashes the path as it is spelled",
    "argument program": "Inductor hashes the include paths of the interpreter's environment",
}


def arguments(argv: Sequence[str]) -> dict[str, str]:
    """A command line by flag: ``--a 1 2`` → ``{"--a": "1 2"}``; the interpreter is ``program``."""
    flags: dict[str, str] = {"program": argv[0] if argv else ""}
    name = "entry"
    for word in argv[1:]:
        if word.startswith("--"):
            name = word
            flags.setdefault(name, "")
        else:
            flags[name] = f"{flags.get(name, '')} {word}".strip()
    return flags


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value) if value == "" else str(value)


def here(plan: Plan) -> Identity:
    """The identity that a bake of ``plan`` on this machine would have, its graphs left out.

    :raises ServeError: the checkpoint, or what tells of the CPU, cannot be read.
    """
    try:
        return _here(plan, (plan.model.path / "config.json").read_bytes())
    except OSError as error:
        raise ServeError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _here(plan: Plan, config: bytes) -> Identity:
    command = build(plan.variant, plan.model, plan.target, _anywhere(plan))
    return Identity(
        schema=1,
        variant=VariantId(name=plan.variant.name, digest=plan.variant.digest),
        model=ModelId(
            name=plan.model.name,
            path=str(plan.model.path),
            config_sha256=hashlib.sha256(config).hexdigest(),
            weight_bytes=plan.model.weight_bytes,
        ),
        target=plan.target.name,
        versions=versions(),
        argv=command.argv,
        env={name: value for name, value in command.env.items() if name not in NOT_IDENTITY},
        device=device_here(plan),
    )


def _anywhere(plan: Plan) -> Place:
    """The plan's place with root and socket by name: neither is compiled into anything."""
    return Place(Path(plan.command.argv[0]), Path(ROOT), Path(SOCKET))


def device_here(plan: Plan) -> Device:
    """The device of this machine that ``plan`` serves on."""
    if plan.target.device == "cpu":
        name, flags = _cpu()
        return Device(kind="cpu", name=name, presented=name, isa=flags)
    if plan.gpu is None:
        return Device(kind="cuda", name="", presented="")
    name = plan.gpu.name
    known = listed(name)
    return Device(
        kind="cuda",
        name=name,
        presented=name,
        capability=_capability() or plan.target.compute_capability,
        multiprocessors=known.multiprocessors if known else plan.target.multiprocessors,
    )


def instructions() -> frozenset[str]:
    """Those of an x86-64 CPU that matter to generated code; none of another's."""
    return frozenset(_cpu()[1] if platform.machine() == "x86_64" else ())


def _cpu() -> tuple[str, tuple[str, ...]]:
    return parse_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace"))


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The first processor's name, and its flags that matter to generated code, sorted."""
    facts: dict[str, Any] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    chosen = sorted({flag for flag in flags if any(part in flag for part in ISA)})
    return facts.get("model name", "unknown"), tuple(chosen)


def _capability() -> str | None:
    try:
        done = subprocess.run(
            CAPABILITY, capture_output=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split() if done.returncode == 0 else []
    return lines[0] if lines else None
