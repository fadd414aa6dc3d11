"""``preheat serve run`` whose plan starts the fake engine of this package: the gateway as it ships.

    python -m scripts.gateway.served [ARGUMENTS OF THE FAKE ENGINE] …

Variant, model and target are named here and nothing of the checkout's experiments is read; all
else, from settings to signals, is the command's own.
"""

import os
import sys
from pathlib import Path

from scripts.gateway.upstream import MODEL
from serve import __main__ as command_line
from serve.command import Command
from serve.model import Model
from serve.plan import Cache, Plan
from serve.settings import REPOSITORY, Settings
from serve.target import Target
from serve.variant import Variant


def plan(settings: Settings, folder: Path) -> Plan:
    """What the gateway would make of its settings, were there such a variant."""
    argv = (sys.executable, "-m", "scripts.gateway.upstream", *sys.argv[1:])
    # The keeper gives the engine this environment and no other.
    env = {"PATH": os.defpath, "PYTHONPATH": str(REPOSITORY)}
    return Plan(
        variant=Variant.model_validate({"NAME": MODEL, "SUMMARY": "a fake engine"}),
        model=Model(MODEL, folder, "Fake", 0, has_mtp=False),
        target=Target.model_validate({"NAME": "here", "DEVICE": "cpu", "DEFAULT_MODEL": MODEL}),
        gpu=None,
        command=Command((*argv, "--uds", str(folder / "engine.sock")), env, ()),
        cache=Cache("prefer", folder / "baked", reasons=("no baked root",), absent=True),
    )


def main() -> int:
    """The command's own exit status."""
    command_line._plan = plan
    return command_line.main(["run"])


if __name__ == "__main__":
    sys.exit(main())
