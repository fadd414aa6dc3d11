"""``preheat bake quantize``: the verb on weights that vLLM computes with as they are."""

import argparse
import json
from pathlib import Path
from typing import get_args

from bake.progress import bar
from bake.quantize.recipe import Recipe, Targets, Weights
from blob.files import printable
from serve.cli import Add, positive
from serve.settings import REPOSITORY
from serve.variant import GROUP_SIZES

CORPUS = REPOSITORY / "experiments" / "calibration" / "corpus.jsonl"
BY = ("preheat", "llm-compressor")
EXAMPLES = """examples:
  preheat bake quantize weights/tiny /tmp/tiny-w4
  preheat bake quantize weights/tiny /tmp/tiny-w4 --targets linear --group-size 64 --lm-head
  preheat bake quantize weights/smollm2-135m /tmp/small-w4 --scheme rtn-w4a16 --json
"""


def add(verb: Add) -> None:
    """Add the verb to a command line."""
    options(verb("quantize", run, "make a folder of four-bit weights that stock vLLM serves"))


def options(verb: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    default = Recipe()
    verb.epilog, verb.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    verb.add_argument("src", type=Path, metavar="SRC", help="a folder of plain safetensors")
    verb.add_argument("dst", type=Path, metavar="DST", help="the folder to make")
    schemes = get_args(Weights)
    verb.add_argument("--scheme", choices=schemes, default=default.weights, help="of the layers")
    meant = get_args(Targets)
    verb.add_argument("--targets", choices=meant, default=default.targets, help="which layers")
    verb.add_argument(
        "--group-size", type=int, choices=GROUP_SIZES, default=default.group_size, help="to a scale"
    )
    verb.add_argument("--lm-head", action="store_true", help="the head too, untied where it is")
    verb.add_argument("--corpus", type=Path, default=CORPUS, help="JSON lines that AWQ looks at")
    verb.add_argument("--samples", type=positive, default=default.samples, help="texts of it")
    verb.add_argument("--sequence", type=positive, default=default.sequence, help="tokens of each")
    verb.add_argument("--seed", type=int, default=default.seed, help="which texts")
    verb.add_argument("--threads", type=positive, help="they change no byte (all cores)")
    verb.add_argument(
        "--by", choices=BY, default=BY[0], help="llm-compressor: of PREHEAT_LLMCOMPRESSOR's python"
    )


def run(parsed: argparse.Namespace) -> int:
    """Exit status 0 when the folder was made."""
    recipe = Recipe(
        parsed.scheme,
        parsed.targets,
        parsed.group_size,
        parsed.lm_head,
        parsed.seed,
        parsed.samples,
        parsed.sequence,
    )
    dst = parsed.dst.absolute()
    if parsed.by != BY[0]:
        from bake.quantize.peer import quantize as by_peer

        return by_peer(parsed.src, dst, recipe, parsed.corpus)
    from bake.quantize.make import quantize

    with bar("quantizing", quiet=parsed.json) as shown:
        made = quantize(parsed.src, dst, recipe, parsed.corpus, shown, threads=parsed.threads)
    if parsed.json:
        print(json.dumps(made.as_json(), indent=2))
        return 0
    saved = 1 - made.bytes_after / made.bytes_before
    print(
        f"wrote {printable(dst)}: {made.bytes_after} bytes of {made.bytes_before} ({-saved:+.0%})"
    )
    print(f"{len(made.errors)} matrices of four bits, {made.seconds['all']:.1f} s")
    if made.head_bytes_after:
        print(f"head: {made.head_bytes_after} bytes of {made.head_bytes_before}")
    for name, why in made.left.items():
        print(f"left as it is: {name}: {why}")
    print(f"what was found is in {printable(dst / 'quantization.json')}")
    return 0
