"""What verbs of the command line share: exit statuses, errors in words, pipes."""

import argparse
import os
import signal
import sys

from blob.errors import Stop


def positive(text: str) -> int:
    """A number of bytes of a command line, above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes above 0")
    return int(text)


def run_verb(parsed: argparse.Namespace) -> int:
    """Call ``parsed.verb``. Exit status 0 done, 1 failed, 2 usage, 130 interrupted."""
    try:
        status = int(parsed.verb(parsed))
        # Here and not at exit, where nobody could catch it any more.
        sys.stdout.flush()
    except Stop as error:
        print(f"preheat: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `preheat serve env | head`: the reader has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
