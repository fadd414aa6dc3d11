"""What verbs of the command line share: exit statuses, errors in words, pipes."""

import argparse
import os
import signal
import sys
from collections.abc import Callable

from blob.errors import Stop

# Letters of an error: no message of ours comes near, and what a file put into one may.
MOST = 20_000
Run = Callable[[argparse.Namespace], int]
# Makes the parser of a verb: its name, what runs it, and a sentence.
Add = Callable[[str, Run, str], argparse.ArgumentParser]


def positive(text: str) -> int:
    """A whole number above 0.

    :raises argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def spoken(text: str) -> str:
    """``text`` for a terminal. Names in it are anybody's: what would command a terminal stands as
    an escape, and only ends of lines are left, which hints are told by.
    """
    told = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text[:MOST])
    return "".join(told) + ("…" if len(text) > MOST else "")


def run_verb(parsed: argparse.Namespace) -> int:
    """Call ``parsed.verb``. Exit status 0 done, 1 failed, 2 usage, 130 interrupted."""
    try:
        status = int(parsed.verb(parsed))
        # Here and not at exit, where nobody could catch it any more.
        sys.stdout.flush()
    except Stop as error:
        print(f"preheat: {spoken(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `preheat serve env | head`: the reader has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
