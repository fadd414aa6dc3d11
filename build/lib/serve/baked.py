"""The policy: does this start use the baked compile cache, and if not, why?

    absent | unfit (reasons) | sound ──► identity matches? ──► Baked | Cold (reasons)
      inspect: reads the root            serve.identity         choose: pure

A root is used only when nobody else could have written it, a trusted key vouches for it (if any
is configured), every file is what the manifest says, and it was baked for what is served here.
Everything is checked before vLLM starts, because reading such a file is running it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from serve import identity, manifest, signature, writers
from serve.command import Command, Place, build
from serve.errors import ConfigError, ServeError
from serve.identity import Accepted, Identity, Rejected
from serve.manifest import Kind, Violation
from serve.plan import Cache, Plan
from serve.retune import copy_without_winners
from serve.settings import Settings
from serve.siblings import PRESENT_AS
from serve.signature import Keys, NotSigned

logger = logging.getLogger(__name__)

# A miss is a hard error then, never a silent recompile. vLLM does not hash it.
FORCED = {"VLLM_FORCE_AOT_LOAD": "1"}
# Of many files that differ, a person needs the first few.
TOLD = 3
NO_GPU = "nvidia-smi lists no GPU here; a container is given one by: docker run --gpus all"
# Beside a root while it is made (``bake.tree``).
UNFINISHED = (".part", ".old")


class CacheRefused(ServeError):
    """PREHEAT_CACHE_POLICY=require, and there is no baked cache that can be used."""


@dataclass(frozen=True)
class Absent:
    """There is no such root."""

    root: Path


@dataclass(frozen=True)
class Unfit:
    """There is one that must not be used by anybody."""

    root: Path
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Sound:
    """Every file is what was baked; ``key`` vouches for it, if one was asked for."""

    root: Path
    identity: Identity
    key: str | None
    files: int
    total_bytes: int
    seconds: float


Found = Absent | Unfit | Sound


@dataclass(frozen=True)
class Baked:
    """Start from ``root``, telling torch the name ``present_as`` if there is one."""

    root: Path
    present_as: str | None = None


@dataclass(frozen=True)
class Cold:
    """Start without."""

    reasons: tuple[str, ...]


def root_of(baked: Path, target: str, model: str, variant: str) -> Path:
    """Where the root of these three lies below ``baked``."""
    return baked / target / model / variant


def inspect(root: Path, keys: Keys, threads: int | None = None) -> Found:
    """What ``root`` is, less whether it fits this machine. Takes most of a second per GB.

    :raises ConfigError: there are ``keys``, and ``cryptography`` is not installed.
    """
    started = time.monotonic()
    try:
        if not root.is_dir():
            return Absent(root)
        real = root.resolve()
        if reasons := writers.above(real):
            return Unfit(root, tuple(reasons))
        raw = manifest.read(real)
        stood = manifest.parse(raw)
        key, reasons = _trust(raw, real, keys)
        if reasons or (reasons := _harm(manifest.compare(real, stood, threads))):
            return Unfit(root, tuple(reasons))
        baked = identity.parse(manifest.read_small(real / identity.FILE, manifest.MAX_BYTES))
    except ConfigError:
        raise
    except ServeError as error:
        return Unfit(root, (error.what,))
    except OSError as error:
        return Unfit(root, (f"{error.filename or root}: {error.strerror}",))
    return Sound(root, baked, key, len(stood.files), stood.total_bytes, time.monotonic() - started)


def _harm(violations: list[Violation]) -> list[str]:
    """Less empty folders: a start that missed leaves one where modes do not bind (we are root)."""
    return [str(violation) for violation in violations if violation.kind is not Kind.EMPTY]


def _trust(raw: bytes, root: Path, keys: Keys) -> tuple[str | None, list[str]]:
    """The key that vouches for a manifest, or why none does; neither where none is asked for."""
    if not keys:
        return None, []
    signed = signature.check(raw, root, keys)
    return (None, [signed.reason]) if isinstance(signed, NotSigned) else (signed.key, [])


def choose(found: Found, verdict: Accepted | Rejected | None) -> Baked | Cold:
    """Whether to use what was found; ``verdict`` is that on a sound root's identity."""
    if isinstance(found, Absent):
        return Cold((f"no baked root {found.root}",))
    if isinstance(found, Unfit):
        return Cold(found.reasons)
    if isinstance(verdict, Accepted):
        return Baked(found.root.resolve(), verdict.present_as)
    return Cold(tuple(map(str, verdict.reasons)) if verdict else ("nobody compared its identity",))


def settle(plan: Plan, settings: Settings, *, can_bake: bool = True) -> Plan:
    """``plan`` by the policy: with the baked cache, or as it is with the reasons why not.

    Reads and hashes the root, changes nothing: it may run beside anything else. ``can_bake``:
    whether what a person is told to do next may be ``preheat bake``, which the image lacks.

    :raises CacheRefused: the policy is ``require``, and there is none to use.
    :raises ConfigError: PREHEAT_TRUSTED_KEYS holds no keys, or they cannot be used.
    """
    policy = settings.cache_policy
    try:
        baked = settings.baked_root.absolute()
    except OSError as error:
        raise ConfigError(
            f"PREHEAT_BAKED_ROOT={settings.baked_root}: no working directory"
        ) from error
    root = root_of(baked, plan.target.name, plan.model.name, plan.variant.name)
    if policy == "off":
        return replace(plan, cache=Cache(policy, root))
    found = inspect(root, signature.trusted_keys(settings.trusted_keys))
    verdict = (
        identity.match(found.identity, identity.here(plan)) if isinstance(found, Sound) else None
    )
    choice = choose(found, verdict)
    if isinstance(choice, Cold):
        if policy == "require":
            hint = next_step(found, root.name, baked_beside(root), can_bake=can_bake)
            if plan.target.device == "cuda" and plan.gpu is None:
                hint = NO_GPU
            raise CacheRefused(_refusal(root, choice.reasons), hint)
        absent = isinstance(found, Absent)
        return replace(plan, cache=Cache(policy, root, reasons=choice.reasons, absent=absent))
    return replace(
        plan,
        command=_from_root(plan, choice),
        cache=Cache(policy, root, used=True),
        fallback=plan.command if policy == "prefer" else None,
    )


def _from_root(plan: Plan, choice: Baked) -> Command:
    """The plan's command on the baked root."""
    place = Place(Path(plan.command.argv[0]), choice.root, plan.command.socket)
    command = build(plan.variant, plan.model, plan.target, place)
    presented = {PRESENT_AS: choice.present_as} if choice.present_as else {}
    return replace(command, env={**command.env, **FORCED, **presented})


def retuned(plan: Plan, folder: Path) -> Plan:
    """``plan`` on a copy of its baked root in ``folder``, less the autotuned winners.

    Made anew for every run: what was copied is what was verified, and nobody else has written
    to it. ``plan`` itself where no baked root is used.

    :raises ServeError: the copy cannot be made.
    """
    if not plan.cache.used:
        return plan
    baked = Path(plan.command.env["VLLM_CACHE_ROOT"]).parent
    copy = folder / "retuned"
    try:
        left_out = copy_without_winners(baked, copy)
    except OSError as error:
        raise ServeError(
            f"PREHEAT_RETUNE: no copy of {baked} in {copy}: {error.strerror}",
            "TMPDIR names a folder with room for it",
        ) from error
    logger.info("%d autotuned winners left out; this GPU times its own", len(left_out))
    env = {n: v.replace(str(baked), str(copy), 1) for n, v in plan.command.env.items()}
    return replace(plan, command=replace(plan.command, env=env))


def _refusal(root: Path, reasons: tuple[str, ...]) -> str:
    lines = "".join(f"\n  {reason}" for reason in reasons)
    return f"PREHEAT_CACHE_POLICY=require, and {root} cannot be used:{lines}"


def baked_beside(root: Path) -> tuple[str, ...]:
    """Variants that are baked where ``root`` would be; not those being made or replaced."""
    try:
        names = [path.parent.name for path in root.parent.glob(f"*/{manifest.NAME}")]
    except OSError:
        return ()
    return tuple(sorted(name for name in names if not name.endswith(UNFINISHED)))


def next_step(found: Found, variant: str, others: Sequence[str], *, can_bake: bool) -> str:
    """What a person can do about a root that cannot be used, where they are."""
    bake, build = f"preheat bake cache {variant}", f"make build VARIANTS={variant}"
    if isinstance(found, Absent):
        there = [f"VARIANT={name}" for name in others if name != variant]
        instead = f"; baked are: {', '.join(there)}" if there else ""
        if can_bake:
            return f"{bake}; or import one: preheat bake cache-import FILE{instead}"
        return f"bake it into the image: {build}{instead or '; no variant is baked in'}"
    if can_bake:
        return f"bake it here: {bake}; or start cold: PREHEAT_CACHE_POLICY=prefer"
    if isinstance(found, Unfit):
        return f"this image was changed or damaged: load it again, or build it: {build}"
    return f"bake it into an image on a machine like this one: {build}"


def tell(cache: Cache) -> list[tuple[int, str]]:
    """The log's lines for what was decided, each with its level; none when nobody looked."""
    if cache.policy == "off":
        return []
    if cache.used:
        return [(logging.INFO, f"compile cache: {cache.root}, verified")]
    first, *others = cache.reasons
    more = [f"and {len(others) - TOLD} more"] if len(others) > TOLD else []
    said = [f"compile cache: none used, starting cold: {first}", *others[:TOLD], *more]
    return [(logging.INFO if cache.absent else logging.WARNING, line) for line in said]
