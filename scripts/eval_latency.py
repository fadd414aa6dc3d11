"""Measures a variant's latency beside a reference's, in one run, on mixed prompts.

Time to first token, time a token, gaps between chunks, end-to-end latency, tokens and requests a
second; closed loops (so many clients) and open ones (Poisson arrivals). Both gateways are alive at
once and are loaded in turn, in an order drawn for each two rounds and backwards in the second of
them (--quick has one round); ratios have 95 % bootstrap intervals. Texts of all requests are
compared. Samples taken while other processes worked are rejected.

Of tiny on two quiet cores it takes about three minutes; each of --rates four and a half more,
half a minute of arrivals in each of four rounds for both variants.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from bake.progress import shown
from experiments.record import typed
from scripts.latency.commanded import (
    STOPPED,
    add_options,
    candidates,
    check_card,
    check_folders,
    check_weights,
    common_model,
    keep,
    run_group,
    wanted,
)
from scripts.latency.prompts import BadPrompts, read_prompts
from scripts.latency.show import notes, table
from serve.errors import ConfigError

EXAMPLES = """examples:
  python -m scripts.eval_latency seq8-best
  python -m scripts.eval_latency seq8-best --model tiny --concurrency 1,8 --rates 2 --rounds 6
  python -m scripts.eval_latency awq --reference seq8 --json --no-record
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when it could not be measured, 2 usage."""
    parsed = parser().parse_args(arguments)
    parsed.command = typed("scripts.eval_latency", arguments)
    names = list(dict.fromkeys((parsed.reference, parsed.variant)))
    try:
        wanted(parsed)
        read_prompts(parsed.prompts)
        parsed.model = common_model(names, parsed.model, parsed.target)
        check_weights(names, parsed.model)
        check_card(len(names), parsed.model, parsed.target)
        if parsed.record:
            check_folders(candidates(names))
    except (BadPrompts, ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        with shown() as progress:
            (record,) = run_group(names, parsed, progress.say)
    except STOPPED as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    show(record.summary, as_json=parsed.json)
    try:
        for path in keep([record]) if parsed.record else ():
            print(f"wrote {path}", file=sys.stderr)
    except OSError as error:
        print(f"no record was added: {error}", file=sys.stderr)
        return 1
    return 0


def show(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """The table of figures and what is to be said of them, or all of it as JSON."""
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    console = Console()
    console.print(table(summary))
    for line in notes(summary):
        console.print(line, markup=False, highlight=False)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.eval_latency",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="the candidate")
    add_options(top)
    return top


if __name__ == "__main__":
    sys.exit(main())
