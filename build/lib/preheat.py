"""The ``preheat`` command: hands over to the package that the first word names."""

import importlib
import sys

COMMANDS = {
    "bake": ("bake", "make, check and ship what a variant starts from"),
    "image": ("bake.image", "build, verify and run the container image"),
    "serve": ("serve", "run a variant: gateway and engine"),
}
USAGE = "usage: preheat COMMAND …\n\n" + "\n".join(
    f"  {name:8} {sentence}" for name, (_, sentence) in COMMANDS.items()
)


def main() -> int:
    """Exit status of the chosen package's command line; 2 when there is no such package, 130
    interrupted.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"preheat: no command {arguments[0]!r}\n{USAGE}", file=sys.stderr)
        return 2
    package, _ = COMMANDS[arguments[0]]
    try:
        # Imported late: the image ships only some of the packages.
        return int(importlib.import_module(f"{package}.__main__").main(arguments[1:]))
    except KeyboardInterrupt:
        # Before a verb runs, which takes it from there.
        return 130
