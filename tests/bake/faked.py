"""``preheat bake cache fake`` over the caching engine: faked.py SWITCHES_OF_THE_ENGINE…

``fakes`` is the same for tests in this process: it puts the engine in the place of vLLM.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import pytest

from bake import __main__ as command_line
from bake import baking, trial
from serve.command import Command, Place, build
from serve.model import Model
from serve.plan import Plan
from serve.target import Target
from serve.variant import Variant

ENGINE = Path(__file__).with_name("caching_engine.py")
MODEL = "tiny"
NAME = f"here/{MODEL}/fake"


def plan_in(folder: Path) -> Plan:
    """A plan of two sequences for a checkpoint without weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    variant = Variant.model_validate(
        {"NAME": "fake", "SUMMARY": "a fake engine", "MAX_NUM_SEQS": "2"}
    )
    model = Model(MODEL, folder, "Fake", 0, has_mtp=False)
    target = Target.model_validate({"NAME": "here", "DEVICE": "cpu", "DEFAULT_MODEL": MODEL})
    place = Place(Path(sys.executable), folder / "cache", folder / "engine.sock")
    return Plan(variant, model, target, None, build(variant, model, target, place))


def fakes(patch: pytest.MonkeyPatch, folder: Path, switches: Sequence[str]) -> None:
    """From now on the engine that is started is the fake one."""

    def started(variant: Any, model: Any, target: Any, place: Place) -> Command:
        real = build(variant, model, target, place)
        argv = (sys.executable, str(ENGINE), *switches, "--uds", str(place.socket))
        return Command(argv, {**real.env, "PATH": "/usr/bin:/bin"}, ())

    patch.setattr(baking, "plan_of", lambda _settings, _name: plan_in(folder / "model"))
    patch.setattr(trial, "build", started)


if __name__ == "__main__":
    import os

    with pytest.MonkeyPatch.context() as monkeypatch:
        fakes(monkeypatch, Path(os.environ["PREHEAT_BAKED_ROOT"]).parent, sys.argv[1:])
        sys.exit(command_line.main(["cache", "fake"]))
