"""What every verb of the command line does at its end: exit statuses, errors in words, pipes."""

import argparse
import os
import signal
import sys

from blob.errors import Stop


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
