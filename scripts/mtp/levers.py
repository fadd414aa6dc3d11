"""A variant with other levers, for one measurement: a temporary `experiments/` that names it so.

The name stays the variant's, so all of them share one root of compile caches, and a graph that two
numbers of drafts have in common is compiled once. Nothing of the real folder is written to.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.choice import choose_model
from serve.config import read_pairs
from serve.derivation import derived
from serve.model import Model, ModelSource, find_model, load_model
from serve.settings import REPOSITORY, Settings
from serve.target import Target, choose_target, probe_gpu
from serve.variant import Variant, load_variant

EXPERIMENTS = REPOSITORY / "experiments"
# Levers that only say which folder of weights is served: it is named instead.
WEIGHTS = (
    "WEIGHTS",
    "WEIGHTS_TARGETS",
    "WEIGHTS_GROUP_SIZE",
    "LM_HEAD",
    "VOCAB_SIZE",
    "MTP_HEAD",
)
DRAFTS = ("SPECULATIVE_METHOD", "NUM_SPECULATIVE_TOKENS")
Levers = Mapping[str, str | None]


@dataclass(frozen=True)
class Chosen:
    """What a command line named, looked up: the weights are there."""

    variant: Variant
    model: Model
    source: ModelSource
    target: Target


def choose(variant: str, model: str, target: str) -> Chosen:
    """Look the three axes up, as a start does.

    :raises serve.errors.ConfigError: one does not exist, or its weights are not there.
    """
    found = load_variant(variant, EXPERIMENTS)
    machine = choose_target(target or None, probe_gpu(), EXPERIMENTS)
    named = choose_model(model or None, machine, [found]).model
    source = find_model(named, EXPERIMENTS)
    folder = derived(found, source, Settings.model_validate({}).derived_root)
    return Chosen(found, load_model(folder), source, machine)


def with_drafts(chosen: Chosen, k: int) -> dict[str, str | None]:
    """Levers of the variant with `k` drafts a step, 0 for none."""
    levers: dict[str, str | None] = {
        "SPECULATIVE_METHOD": "mtp" if k else None,
        "NUM_SPECULATIVE_TOKENS": str(k) if k else None,
    }
    if sizes := chosen.variant.cudagraph_capture_sizes:
        # The same numbers of sequences, each with k + 1 tokens.
        step = (chosen.variant.num_speculative_tokens or 0) + 1
        fitting = (str(size // step * (k + 1)) for size in sizes)
        levers["CUDAGRAPH_CAPTURE_SIZES"] = ",".join(fitting)
    if not k:
        levers["DRAFT_VOCAB_SIZE"] = None
    return levers


def place(root: Path, chosen: Chosen, levers: Levers) -> dict[str, str]:
    """Write `root/experiments` with the variant so changed; the settings of a gateway for it.

    A lever that is None is left out.
    """
    experiments = root / "experiments"
    (experiments / "models").mkdir(parents=True)
    for shared in ("targets", "vocabularies"):
        shutil.copytree(EXPERIMENTS / shared, experiments / shared)
    name = chosen.variant.name
    pairs = read_pairs(EXPERIMENTS / name / "config.env")
    pairs = {k: v for k, v in pairs.items() if k not in WEIGHTS}
    changed = {k: v for k, v in {**pairs, **levers}.items() if v is not None}
    _write(experiments / name / "config.env", changed)
    _write(experiments / "models" / f"{chosen.model.name}.env", _model(chosen))
    return {
        "VARIANT": name,
        "MODEL": chosen.model.name,
        "TARGET": chosen.target.name,
        "PREHEAT_EXPERIMENTS": str(experiments),
        # What is baked was baked for the variant as it stands.
        "PREHEAT_CACHE_POLICY": "off",
    }


def _model(chosen: Chosen) -> dict[str, str]:
    """What the model's own file says, less where it lies: its weights may be derived."""
    said = chosen.source.model_dump(mode="json", exclude_unset=True, exclude={"name", "path"})
    return {key.upper(): str(value) for key, value in said.items()} | {
        "PATH": str(chosen.model.path)
    }


def _write(path: Path, pairs: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{k}={v}\n" for k, v in pairs.items()), encoding="utf-8")
