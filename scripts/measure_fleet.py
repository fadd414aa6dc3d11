"""How much of a second variant is fetched, once a node has the first: through a real OCI layout.

    python -m scripts.measure_fleet

Packs one model into a blob by each codec, pushes all of them into a layout, and pulls them one
after the other onto a node that has none.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bake.errors import BakeError
from bake.oci.carry import Place, pull, push
from bake.oci.layout import Layout
from bake.progress import silent
from bake.shipping import Terms
from bake.weights.pack import pack
from blob.errors import BlobError
from blob.names import Targets
from blob.recipe import Recipe
from blob.store import Store
from experiments.record import MEASUREMENTS, Record, add, check_writable, now, this_machine, typed
from serve.errors import ConfigError
from serve.model import find_model
from serve.settings import REPOSITORY

KIND = "fleet"
EXPERIMENTS = REPOSITORY / "experiments"
# Of the model, in the order in which a node asks for them.
CODECS = ("int5", "int4", "q8_0", "q6_k", "q4_k", "raw")
EXAMPLES = """examples:
  python -m scripts.measure_fleet
  python -m scripts.measure_fleet --model smollm2-135m --codecs int5,q8_0
  python -m scripts.measure_fleet --no-record
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when it was measured, 1 when it could not be."""
    asked = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    try:
        check_writable(MEASUREMENTS)
        samples = carried(find_model(asked.model, EXPERIMENTS).path, asked.codecs.split(","))
    except (ConfigError, BakeError, BlobError, OSError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    summary = summed_up(samples)
    show(samples, summary)
    if asked.record:
        record = Record(
            kind=KIND,
            made=made,
            command=typed("scripts.measure_fleet", arguments),
            machine=machine,
            variant={},
            parameters={"model": asked.model, "codecs": asked.codecs},
            summary=summary,
            samples=samples,
        )
        print(f"wrote {add(record, MEASUREMENTS)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_fleet",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--model", default="tiny", help="name in experiments/models (tiny)")
    top.add_argument("--codecs", default=",".join(CODECS), help="of the blobs, in order")
    top.add_argument("--no-record", dest="record", action="store_false", help="keep nothing")
    return top


def carried(checkpoint: Path, codecs: Sequence[str]) -> list[dict[str, Any]]:
    """What each push added and each pull fetched, in order."""
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="preheat-fleet-") as folder:
        here, node = Path(folder) / "here", Path(folder) / "node"
        layout = Layout(Path(folder) / "layout")
        where = Place(node, Store(node / "store"), node / "baked", Terms())
        for codec in codecs:
            targets: Targets = "mlp" if codec == "int4" else "linears"
            store = Store(here / "store")
            pack(checkpoint, Recipe(codec, None, targets), here / codec, store, silent)
            put = push(here / codec, layout, codec)
            began = time.perf_counter()
            pulled = pull(layout, codec, where)
            seconds = time.perf_counter() - began
            told = {**asdict(pulled), "pushed_bytes": put.new_bytes, "seconds": round(seconds, 4)}
            del told["folder"]
            samples.append({"blob": codec, **told})
    return samples


def summed_up(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bytes of all that a node has, and of what it fetched for them."""
    apart, fetched = (sum(one[name] for one in samples) for name in ("size", "fetched_bytes"))
    later = samples[1:]
    more = sum(one["size"] for one in later)
    saved = 1 - sum(one["fetched_bytes"] for one in later) / more if more else 0.0
    return {
        "bytes_apart": apart,
        "bytes_fetched": fetched,
        "saved": round(1 - fetched / apart, 4),
        "saved_of_later_ones": round(saved, 4),
        "blobs": {
            one["blob"]: {
                "bytes": one["size"],
                "fetched": one["fetched_bytes"],
                "saved": round(1 - one["fetched_bytes"] / one["size"], 4),
            }
            for one in samples
        },
    }


def show(samples: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """The table, for a person."""
    table = Table(box=None, pad_edge=False)
    table.add_column("blob")
    for head in ("bytes", "fetched", "saved", "files", "fetched", "seconds"):
        table.add_column(head, justify="right")
    for one in samples:
        saved = summary["blobs"][one["blob"]]["saved"]
        numbers = (one["size"], one["fetched_bytes"], f"{saved:.1%}", one["files"])
        rest = (one["fetched_files"], f"{one['seconds']:.3f}")
        table.add_row(one["blob"], *map(str, (*numbers, *rest)))
    whole = (summary["bytes_apart"], summary["bytes_fetched"], f"{summary['saved']:.1%}")
    table.add_row("together", *map(str, whole))
    Console(width=100).print(table)


if __name__ == "__main__":
    sys.exit(main())
