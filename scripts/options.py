"""What every command line says that measures in rounds: how often, beside whom, what is kept."""

import argparse


def add_sampling(top: argparse.ArgumentParser, rounds: int, quick: str, *, seconds: float) -> None:
    """Options of sampling; ``quick`` tells what is smaller with it, ``seconds`` is a sample's least
    time without.
    """
    top.add_argument("--rounds", type=int, default=rounds, help=f"samples of each kind ({rounds})")
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
