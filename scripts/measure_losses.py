"""What becomes of requests while replicas come and go: the tests of deploy/, run and kept.

    python -m scripts.measure_losses kubernetes      (KUBECONFIG and TEST_IMAGE set)
    python -m scripts.measure_losses ray             (after make ray)

Runs the tests on a real cluster, or on a real Ray, in which clients ask all the while, and keeps
of each how many answers were whole and which were not, whether the test passed or failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from experiments.record import MEASUREMENTS, Record, add, check_writable, now, this_machine, typed
from scripts.served import stoppable
from serve.settings import REPOSITORY

TESTS = REPOSITORY / "tests" / "deploy"
CLEARING_SECONDS = 300
RAY = REPOSITORY / ".cache" / "ray" / "bin" / "python"
EXAMPLES = """examples:
  python -m scripts.measure_losses kubernetes
  python -m scripts.measure_losses ray --no-record
  python -m scripts.measure_losses kubernetes --only "rolling or deleted" --no-record
"""


class NotMeasured(RuntimeError):
    """No scenario was played; the text is the end of what the tests said."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every promise was kept, 1 when one was not or none was tried, 2 usage."""
    asked = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    try:
        if asked.record:
            check_writable(MEASUREMENTS)
        engines = ENGINES[asked.where]()
        samples = played(asked.where, asked.only)
    except (NotMeasured, OSError, subprocess.SubprocessError, ElementTree.ParseError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    summary = summed_up(samples)
    if asked.json:
        print(json.dumps({"summary": summary, "scenarios": samples}, indent=1))
    else:
        show(samples)
    if asked.record:
        record = Record(
            kind=f"losses-{asked.where}",
            made=made,
            command=typed("scripts.measure_losses", arguments),
            machine=machine,
            variant={"versions": engines},
            parameters={"only": asked.only, **image()},
            summary=summary,
            samples=samples,
        )
        print(f"wrote {add(record, MEASUREMENTS).relative_to(REPOSITORY)}", file=sys.stderr)
    return 0 if summary["kept"] == summary["scenarios"] else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_losses",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("where", choices=sorted(ENGINES), help="on what the replicas run")
    top.add_argument("--only", default="", help="scenarios, as pytest's -k has them (all)")
    top.add_argument("--json", action="store_true", help="for programs")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


def played(where: str, only: str) -> list[dict[str, Any]]:
    """Every scenario that visitors came to, in order.

    :raises NotMeasured: none.
    """
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        report = Path(folder) / "report.xml"
        said = tested(
            *("-m", "k8s or ray", "-k", only, f"--junitxml={report}", "-o", "junit_family=xunit1"),
            str(TESTS / where),
        )
        samples = scenarios(report.read_text(encoding="utf-8")) if report.is_file() else []
    if not samples:
        raise NotMeasured(f"no scenario was played:\n{said[-3000:]}")
    return samples


def tested(*words: str) -> str:
    """What pytest says; when we are stopped, it is as by a person, so that it clears away."""
    with (
        stoppable(),
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", *words],
            cwd=REPOSITORY,
            # What is not there is told, not passed over.
            env={**os.environ, "REQUIRE_K8S": "1", "REQUIRE_RAY": "1", "REQUIRE_DOCKER": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            return process.communicate()[0]
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait(CLEARING_SECONDS)
            raise


def scenarios(report: str) -> list[dict[str, Any]]:
    """Of a JUnit report, the tests that visitors came to: who came, and what became of them; and
    those that failed before anybody could come.
    """
    found: list[dict[str, Any]] = []
    for case in ElementTree.fromstring(report).iter("testcase"):  # noqa: S314 - pytest's own
        told = {one.get("name", ""): one.get("value", "") for one in case.iter("property")}
        wrong = next((one for one in case if one.tag in ("failure", "error")), None)
        if wrong is None and "whole" not in told:
            continue
        # Of a real engine: graphs that it compiled, and took from its baked cache.
        graphs: dict[str, Any] = {
            name: int(told[name]) for name in ("compiled", "loaded") if name in told
        }
        found.append(
            {
                "scenario": case.get("name", "").removeprefix("test_").replace("_", " "),
                "kept": wrong is None,
                "seconds": round(float(case.get("time", 0)), 1),
                "clients": int(told.get("clients", 0)),
                "whole": int(told.get("whole", 0)),
                "lost": json.loads(told.get("lost", "[]")),
                **graphs,
                "wrong": "" if wrong is None else wrong.get("message", "")[:500],
            }
        )
    return found


def summed_up(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all scenarios."""
    return {
        "scenarios": len(samples),
        "kept": sum(one["kept"] for one in samples),
        "whole": {one["scenario"]: one["whole"] for one in samples},
        "lost": {one["scenario"]: len(one["lost"]) for one in samples},
    }


def show(samples: Sequence[dict[str, Any]]) -> None:
    """The table for a person."""
    made = Table()
    for name, justify in (("scenario", "left"), ("whole", "right"), ("lost", "right")):
        made.add_column(name, justify=justify)  # type: ignore[arg-type]
    made.add_column("kept")
    for one in samples:
        kept = "yes" if one["kept"] else one["wrong"]
        made.add_row(one["scenario"], str(one["whole"]), str(len(one["lost"])), kept)
    Console().print(made)


def image() -> dict[str, str]:
    """The appliance that was tried: its name, and what that stood for."""
    if not (name := os.environ.get("TEST_IMAGE", "")):
        return {}
    asked = ["docker", "image", "inspect", "--format", "{{.Id}}", name]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return {"image": name, "image_id": done.stdout.strip()}


def of_kubernetes() -> dict[str, str]:
    """Versions of what the replicas ran on."""
    said = subprocess.run(
        ["kubectl", "version", "--output", "json"], capture_output=True, text=True, check=True
    ).stdout
    server = json.loads(said)["serverVersion"]["gitVersion"]
    return {"kubernetes": server, "helm-python-sdk": version("helm-python-sdk")}


def of_ray() -> dict[str, str]:
    """Versions of what the replicas ran on."""
    asked = [str(RAY), "-c", "import ray; print(ray.__version__)"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return {"ray": done.stdout.strip()}


ENGINES: dict[str, Callable[[], dict[str, str]]] = {"kubernetes": of_kubernetes, "ray": of_ray}


if __name__ == "__main__":
    sys.exit(main())
