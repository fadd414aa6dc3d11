"""Runs a command and prints the most memory that it, or a child of it, had: bytes, as JSON.

A process of its own, since the peak of children is kept for all of them together. What the command
prints goes nowhere; its errors and its exit status are this process's own.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's exit status; 127 where it cannot be started."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        done = subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", file=sys.stderr)
        return 127
    # Linux counts in KiB.
    print(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
    # One that a signal ended has a negative status, which no process can give.
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


if __name__ == "__main__":
    sys.exit(main())
