"""Draws the waterfall of a start from a `coldstart` record: where the seconds go, phase by phase.

The picture lies beside the record's experiment and is made from the record alone: the same record
gives the same bytes.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError

from experiments.record import Record
from scripts.measure_coldstart import MODES, RESTART
from scripts.picture import keep
from serve.startlog import PHASES

EXAMPLES = """examples:
  python -m scripts.plot_coldstart experiments/seq8-best/measurements/coldstart_*.json
"""
LAST = "first token"
# Too narrow for its name below this share of the axis.
LABELLED = 0.035
# Two panels: everything on one scale, then what is too short to see there.
SHORT = 12.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the picture was written, 1 when it or the record cannot be."""
    parsed = parser().parse_args(arguments)
    try:
        record = Record.model_validate_json(parsed.record.read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{parsed.record}: {error}", file=sys.stderr)
        return 1
    out = parsed.out or parsed.record.parent.parent / "coldstart.svg"
    try:
        keep(out, lambda: draw(record))
    except OSError as error:
        print(f"{error.filename or out}: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"wrote {out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.plot_coldstart",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("record", type=Path, help="a record of measure_coldstart")
    top.add_argument("--out", type=Path, help="the picture (coldstart.svg of the experiment)")
    return top


def phases(samples: Sequence[dict[str, Any]], mode: str) -> dict[str, float]:
    """Median seconds of each phase of ``mode``; what no phase claims went into the first token."""
    own = [sample for sample in samples if sample["mode"] == mode]
    found = {
        name: statistics.median(sample["phases"].get(name, 0.0) for sample in own)
        for name in PHASES
        if name != LAST
    }
    rest = statistics.median(s["seconds"] - sum(s["phases"].values()) for s in own)
    return {name: seconds for name, seconds in found.items() if seconds} | {LAST: max(rest, 0.0)}


def draw(record: Record) -> Figure:
    """One bar for each kind of start, cut into phases; short ones again on a scale of their own."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    whole, zoomed = figure.subplots(2, 1, height_ratios=(4, 2.4))
    bars = {mode: phases(record.samples, mode) for mode in MODES}
    short = {mode: parts for mode, parts in bars.items() if sum(parts.values()) < SHORT}
    panel(whole, bars)
    panel(zoomed, short)
    processor = record.machine.processor
    whole.set_title(
        f"{record.variant['variant']} of {record.variant['model']['name']}: exec to first token, "
        f"median of {record.parameters['rounds']} ({record.machine.cores} cores, {processor})",
        loc="left",
    )
    zoomed.set_xlabel(f"seconds ({RESTART}: from SIGKILL; begins with notice, end and back-off)")
    handles, labels = whole.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    ordered = [name for name in PHASES if name in found]
    figure.legend([found[n] for n in ordered], ordered, loc="outside lower center", ncols=6)
    return figure


def panel(axes: Axes, bars: dict[str, dict[str, float]]) -> None:
    """Bars on one scale, the first on top."""
    colors = dict(zip(PHASES, mpl.color_sequences["tab20"], strict=False))
    end = max(sum(parts.values()) for parts in bars.values())
    for row, parts in enumerate(bars.values()):
        begin = 0.0
        for name, seconds in parts.items():
            bar = axes.barh(row, seconds, left=begin, color=colors[name], label=name)
            if seconds > LABELLED * end:
                axes.bar_label(bar, [f"{seconds:.1f}"], label_type="center")
            begin += seconds
        axes.text(begin, row, f"  {begin:.1f} s", va="center", weight="bold")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_xlim(0, end * 1.1)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
