"""``preheat serve run`` over an engine with faults: the gateway as it ships.

python -m scripts.gateway.faulted [ARGUMENTS OF scripts.gateway.faulty] …
"""

import sys
from dataclasses import replace
from pathlib import Path

from scripts.gateway import served
from serve import __main__ as command_line
from serve.errors import ConfigError
from serve.plan import Plan
from serve.settings import Settings

# The one that is served when none is named.
ONLY = Settings.model_fields["variant"].default
FAULTY = "scripts.gateway.faulty"


def plan(settings: Settings, folder: Path) -> Plan:
    """That of ``scripts.gateway.served`` but for its engine.

    :raises ConfigError: another variant is asked for; there is but one.
    """
    if settings.variant != ONLY:
        raise ConfigError(f"no variant {settings.variant!r}", f"there is {ONLY}")
    made = served.plan(settings, folder)
    argv = (sys.executable, "-m", FAULTY, *sys.argv[1:], "--uds", str(folder / "engine.sock"))
    return replace(made, command=replace(made.command, argv=argv))


def main() -> int:
    """The command's own exit status."""
    command_line._plan = plan
    return command_line.main(["run"])


if __name__ == "__main__":
    sys.exit(main())
