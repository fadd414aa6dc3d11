"""Measures the image: start to first token beside the same start without a container, and rebuilds.

    native           `preheat serve run` of this checkout, from its baked cache
    image            `docker run` as `make serve` does it, from that command to the first token
    … from disk      each again with the machine's page cache emptied before, as on a new node
    rebuild          `preheat image build` after one line of the gateway has changed

All of a round one after the other, on an idle machine. The image must be there: make build.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from docker.errors import DockerException

from bake.image import daemon, report
from bake.image.make import tag
from bake.image.run import Asked, Image, argv
from experiments.record import Record, check_writable, folder_of, now, this_machine, typed
from scripts.options import add_axes
from scripts.served import free_port
from scripts.starts import (
    DEADLINE_SECONDS,
    IDLE,
    PROMPT,
    Client,
    NotMeasured,
    Run,
    recorded,
    running,
    started,
    tcp,
    wait_until_idle,
)
from serve.cli import positive
from serve.command import served_names
from serve.plan import Plan, make_plan
from serve.settings import REPOSITORY, read_settings

NATIVE, IMAGE = "native", "image"
FROM_DISK = " from disk"
REBUILD = "rebuild"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# Phases of a build that are not building: what is baked or proven takes what it takes.
NOT_BUILDING = ("verify", "bake ")
CHANGED = Path("serve/app.py")
EXAMPLES = """examples:
  python -m scripts.measure_image seq8-best
  python -m scripts.measure_image seq8-best --rounds 5 --rebuilds 0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when it could not be measured, 2 usage."""
    parsed = parser().parse_args(arguments)
    command = typed("scripts.measure_image", arguments)
    return recorded(parsed.variant, lambda: measured(parsed, command))


def measured(parsed: argparse.Namespace, command: Sequence[str]) -> Record:
    """All rounds, and the record of them.

    :raises Stop: what was asked for is not there.
    :raises NotMeasured, OSError: it cannot be measured, or not be kept.
    """
    axes = {"VARIANT": parsed.variant, "MODEL": parsed.model, "TARGET": parsed.target}
    made, machine = now(), this_machine()
    plan = make_plan(read_settings(axes), Path(sys.executable), Path("engine.sock"))
    check_writable(folder_of(parsed.variant))
    image = tag(parsed.image, plan.target.device, plan.model.name)
    try:
        with daemon.engine() as client:
            known = daemon.facts(client)
            layers = [asdict(layer) for layer in report.layers(client, image)]
            labels = client.images.get(image).labels
    except DockerException as error:
        raise NotMeasured(str(error)) from error
    rig = Rig(plan, Image(image, plan.target.device), known.bridged)
    samples = [one for number in range(1, parsed.rounds + 1) for one in rig.round(number)]
    samples += [rebuilt(number, parsed) for number in range(1, parsed.rebuilds + 1)]
    return Record(
        kind="image",
        made=made,
        command=list(command),
        machine=machine,
        variant=plan.describe(),
        parameters={
            "rounds": parsed.rounds,
            "rebuilds": parsed.rebuilds,
            "prompt": PROMPT,
            "idle_below": IDLE,
            "engine": known.name,
            "image": {"name": image, "labels": labels, "layers": layers},
        },
        summary=summary(samples, layers),
        samples=samples,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_image",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="a variant that is baked, here and in the image")
    add_axes(top)
    top.add_argument("--image", default="preheat", help="name of the image, less its tag (preheat)")
    top.add_argument("--rounds", type=positive, default=3, help="samples of each kind of start (3)")
    top.add_argument("--rebuilds", type=int, default=3, help="samples of the rebuild (3)")
    return top


@dataclass
class Rig:
    """What is started."""

    plan: Plan
    image: Image
    bridged: bool

    def round(self, number: int) -> Iterator[dict[str, Any]]:
        """One sample of each kind; from disk only where we may empty the page cache."""
        for state in ("", FROM_DISK) if os.access(DROP_CACHES, os.W_OK) else ("",):
            for mode, start in ((NATIVE, self._native), (IMAGE, self._image)):
                if state:
                    os.sync()
                    DROP_CACHES.write_text("3")
                busy = wait_until_idle()
                sample = {"round": number, "mode": mode + state, "busy_before": busy, **start()}
                print(
                    f"round {number}, {sample['mode']}: {sample['seconds']:.2f} s", file=sys.stderr
                )
                yield sample

    def _native(self) -> dict[str, Any]:
        env = {n: v for n, v in os.environ.items() if n in ("PATH", "HOME", "LANG", "TMPDIR")}
        env |= {"VARIANT": self.plan.variant.name, "MODEL": self.plan.model.name}
        env |= {"TARGET": self.plan.target.name, "PORT": "0", "PREHEAT_CACHE_POLICY": "require"}
        with running([sys.executable, "-m", "serve", "run"], env) as run:
            return self._first_token(run, Client(lambda: tcp(run), self._model, run))

    def _image(self) -> dict[str, Any]:
        port = free_port()
        asked = Asked(self.plan.variant.name, "", "", "127.0.0.1", port)
        words = argv(self.image, asked, bridged=self.bridged, passed=[])
        with running(words, os.environ) as run:
            return self._first_token(run, Client(lambda: at(port), self._model, run))

    def _first_token(self, run: Run, client: Client) -> dict[str, Any]:
        return {**client.first_token(run.began), **started(run)}

    @property
    def _model(self) -> str:
        return served_names(self.plan.model, self.plan.variant)[0]


def rebuilt(number: int, parsed: argparse.Namespace) -> dict[str, Any]:
    """Build a copy of this checkout in which a line of the gateway has changed."""
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        copy = Path(folder) / "copy"
        _copied(copy)
        with (copy / CHANGED).open("a", encoding="utf-8") as file:
            file.write(f"# measured {time.time_ns()}\n")
        words = [sys.executable, "-m", "bake.image", "build", parsed.variant, "--json"]
        words += ["--image", f"{parsed.image}-measured"]
        words += ["--model", parsed.model] if parsed.model else []
        words += ["--target", parsed.target] if parsed.target else []
        busy = wait_until_idle()
        env = {n: v for n, v in os.environ.items() if n not in ("VARIANT", "PYTHONPATH")}
        began = time.monotonic()
        done = subprocess.run(words, cwd=copy, env=env, capture_output=True, text=True, check=False)
        whole = time.monotonic() - began
        if done.returncode:
            raise NotMeasured(f"the rebuild failed:\n{done.stderr}")
        made = json.loads(done.stdout)
    with daemon.engine() as client:
        client.images.remove(made["tag"])
    phases = made["seconds"]
    building = sum(s for name, s in phases.items() if not name.startswith(NOT_BUILDING))
    print(f"rebuild {number}: {building:.2f} s", file=sys.stderr)
    return {
        "round": number,
        "mode": REBUILD,
        "busy_before": busy,
        "seconds": round(building, 3),
        "whole_seconds": round(whole, 3),
        "phases": phases,
        "baked": made["baked"],
    }


def _copied(copy: Path) -> None:
    """The files that git knows, as they are here, and what was baked for an image."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, copy / name)
    shutil.copytree(REPOSITORY / ".cache" / "image" / "baked", copy / ".cache" / "image" / "baked")


def at(port: int) -> http.client.HTTPConnection:
    """A connection to a port of this machine."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)


def summary(samples: Sequence[dict[str, Any]], layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and spread of each kind, what the container adds, and bytes."""
    found: dict[str, Any] = {}
    for mode in dict.fromkeys(sample["mode"] for sample in samples):
        own = [sample["seconds"] for sample in samples if sample["mode"] == mode]
        found[mode] = {"median": statistics.median(own), "min": min(own), "max": max(own)}
    for state in ("", FROM_DISK):
        if IMAGE + state in found:
            more = found[IMAGE + state]["median"] - found[NATIVE + state]["median"]
            found[f"the container adds{state}"] = round(more, 3)
    starts = [sample for sample in samples if sample["mode"] != REBUILD]
    found["compiled"] = sorted({sample["compiled"] for sample in starts})
    found["same_text"] = len({sample["text"] for sample in starts}) == 1
    found["bytes"] = sum(layer["size"] for layer in layers)
    return found


if __name__ == "__main__":
    sys.exit(main())
