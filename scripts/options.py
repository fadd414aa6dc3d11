"""What command lines that measure have in common: what is served, how often, beside whom, what is
kept.
"""

import argparse
import math
from collections.abc import Callable

from serve.cli import positive


def add_axes(top: argparse.ArgumentParser) -> None:
    """Which model and target; the variant is each command's own."""
    top.add_argument("--model", default="", help="name or checkpoint folder (the target's own)")
    top.add_argument("--target", default="", help="cpu, a10g, … (detected)")


def amount(text: str) -> float:
    """A number above 0 that has an end: of seconds, minutes, a share.

    :raises argparse.ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def even(text: str) -> int:
    """An even number above 0: of rounds, of which every second goes the first one's way backwards.

    :raises argparse.ArgumentTypeError: it is none.
    """
    number = positive(text)
    if number % 2:
        raise argparse.ArgumentTypeError(f"expected an even number, got {number}")
    return number


def numbers(least: int, most: int | None = None) -> Callable[[str], list[int]]:
    """A parser of lists like 1,2,8: whole numbers from ``least`` to ``most``, rising, each once.

    :raises argparse.ArgumentTypeError: (the parser) one is none, or there are none.
    """
    end = math.inf if most is None else most
    bounds = f"from {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> list[int]:
        words = [word.strip() for word in text.split(",")]
        found = {int(word) for word in words if word.isdecimal()}
        if not all(map(str.isdecimal, words)) or not least <= min(found) <= max(found) <= end:
            raise argparse.ArgumentTypeError(f"expected numbers {bounds}, like 1,8, got {text!r}")
        return sorted(found)

    return parse


def add_sampling(top: argparse.ArgumentParser, rounds: int, quick: str, *, seconds: float) -> None:
    """Options of sampling; ``quick`` tells what is smaller with it, ``seconds`` is a sample's least
    time without.
    """
    top.add_argument(
        "--rounds", type=positive, default=rounds, help=f"samples of each kind ({rounds})"
    )
    top.add_argument("--busy", action="store_true", help="keep samples taken beside others' work")
    top.add_argument("--quick", action="store_true", help=f"{quick}, short samples; implies --busy")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    top.set_defaults(seconds=seconds)


def sample_seconds(parsed: argparse.Namespace) -> float:
    """How long a sample lasts at least."""
    return 0.001 if parsed.quick else float(parsed.seconds)
