"""``ask.py PATH [BODY] [--timeout SECONDS]``: one request to the gateway on this machine.

GET, or POST of the JSON in BODY; prints the answer's body. Exit status 0 for 2xx, 1 for any other
answer or none in time, 2 for wrong usage. It is the image's health check, every few seconds as
``python -I -S ask.py /ready``: so it imports nothing of ours, and little of Python.
"""

import http.client
import json
import os
import signal
import sys
from types import FrameType

USAGE = "usage: ask.py PATH [BODY] [--timeout SECONDS]: PATH begins with /, BODY is JSON"
TIMEOUT_SECONDS = 2.5
LONGEST_SECONDS = 3600
# Who listens on all addresses is reached by the machine's own.
REACHED_BY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def main(arguments: list[str]) -> int:
    """Ask once, and print what is answered."""
    try:
        path, body, seconds = _asked(arguments)
        host, port = _gateway(os.environ.get("PREHEAT_HOST", ""), os.environ.get("PORT", ""))
    except ValueError as error:
        print(f"ask: {error}\n{USAGE}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGALRM, _too_late)
    # For the whole answer: a socket's own timeout begins anew with every byte.
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        status, said = _ask(host, port, path, body)
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        why = f"none within {seconds:g} s" if isinstance(error, TimeoutError) else repr(error)
        print(f"ask: {path} at {host} port {port}: no answer: {why}", file=sys.stderr)
        return 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        sys.stdout.buffer.write(said)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if 200 <= status < 300:
        return 0
    print(f"ask: {path} at {host} port {port}: status {status}", file=sys.stderr)
    return 1


def _asked(arguments: list[str]) -> tuple[str, bytes | None, float]:
    """Path, body and seconds; ValueError says what is wrong with them."""
    words, seconds = [*arguments], TIMEOUT_SECONDS
    if "--timeout" in words:
        at = words.index("--timeout")
        given = "".join(words[at + 1 : at + 2])
        del words[at : at + 2]
        # No sign, no exponent, no nan: nothing that is not plainly a number of seconds.
        seconds = float(given) if given.replace(".", "", 1).isdecimal() else 0
        if not 0 < seconds <= LONGEST_SECONDS:
            raise ValueError(f"--timeout={given!r}: above 0 and at most {LONGEST_SECONDS} seconds")
    if len(words) not in (1, 2):
        raise ValueError(f"expected PATH and perhaps BODY, got {len(words)} words")
    path, *bodies = words
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError(f"{path!r} is not a path")
    for body in bodies:
        try:
            json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"BODY is not JSON: {error}") from error
    return path, bodies[0].encode() if bodies else None, seconds


def _gateway(host: str, port: str) -> tuple[str, int]:
    """Where the gateway of these settings is reached."""
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"PORT={port!r} is not a port that can be asked")
    return REACHED_BY.get(host, host), int(port or 8000)


def _ask(host: str, port: int, path: str, body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _too_late(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
