"""``preheat serve run`` whose plan starts the fake engine: served.py SWITCHES_OF_THE_ENGINE…"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve import __main__ as command_line
from serve.model import Model
from serve.plan import Cache, Plan
from serve.settings import Settings
from serve.target import Target
from serve.variant import Variant
from tests.serve.live import MODEL, fake_command


def fake_plan(_: Settings, folder: Path) -> Plan:
    variant = Variant.model_validate({"NAME": "fake", "SUMMARY": "a fake engine"})
    model = Model(MODEL, folder, "Fake", 0, has_mtp=False)
    target = Target.model_validate({"NAME": "here", "DEVICE": "cpu", "DEFAULT_MODEL": MODEL})
    cache = Cache("prefer", folder / "baked", reasons=("no baked root",), absent=True)
    return Plan(variant, model, target, None, fake_command(folder, *sys.argv[1:]), cache)


if __name__ == "__main__":
    command_line._plan = fake_plan
    sys.exit(command_line.main(["run"]))
