"""``preheat bake prune-vocab``: the verb on vocabularies."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from bake.progress import bar
from blob.files import printable
from serve.cli import Add, positive

EXAMPLES = """examples:
  preheat bake prune-vocab weights/tiny weights/tiny-8k \\
      --size 8192 --counts experiments/vocabularies/tiny.json
  preheat bake prune-vocab weights/smollm2-135m weights/smollm2-24k \\
      --size 24576 --counts experiments/vocabularies/smollm2-135m.json --json

Counts of another corpus: python -m scripts.analyze_vocab --help
"""


def add(verb: Add) -> None:
    """Add the verb to a command line."""
    _options(verb("prune-vocab", _prune, "make a model of its most frequent tokens"))


def _options(verb: argparse.ArgumentParser) -> None:
    verb.epilog = EXAMPLES
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.add_argument("src", type=Path, metavar="SRC", help="a folder of plain safetensors")
    verb.add_argument("dst", type=Path, metavar="DST", help="the folder to make")
    verb.add_argument(
        "--size", type=positive, required=True, metavar="N", help="tokens that stay (64, 128, …)"
    )
    verb.add_argument(
        "--counts",
        type=Path,
        required=True,
        metavar="FILE",
        help="how often each token is used: experiments/vocabularies/<model>.json",
    )


def _prune(parsed: argparse.Namespace) -> int:
    from bake.vocabulary.pruning import prune

    with bar("pruning", quiet=parsed.json) as shown:
        made = prune(parsed.src, parsed.dst, parsed.counts, parsed.size, shown)
    if parsed.json:
        print(json.dumps({**asdict(made), "folder": str(made.folder)}, indent=2))
        return 0
    saved = made.bytes_before - made.bytes_after
    print(
        f"wrote {printable(made.folder)}: {made.size} of {made.original_size} tokens, "
        f"{made.covered:.2%} of what was counted, {saved} bytes less, {made.seconds:.1f} s"
    )
    print(
        f"{made.least} had to stay; {made.ancestors_only} more are there for what is made of "
        f"them; {made.unreachable} cannot be reached"
    )
    print(f"serve it: make serve MODEL={printable(parsed.dst)}")
    return 0
