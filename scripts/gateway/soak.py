"""Soaks the gateway: real vLLM behind it, mixed clients before it, for minutes; then counts.

Clients of openai, anthropic and httpx, streams read by hand, slow readers, clients that leave at
any moment, that ask too often, with no key, wrongly or for too much: about eight at once, beside
machines that poll. Every visit ends as its kind may, or is lost and its story kept. Every few
seconds memory, files, threads and connections are looked at. At the end nobody may be left in the
engine, no connection and no file be open that was not before, and memory be flat: the rules stand
in scripts/gateway/soaking/verdict.py.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from bake.progress import Progress, shown
from experiments.record import MEASUREMENTS, Record, add, check_writable, now, this_machine, typed
from scripts.gateway.soaking import hands, verdict
from scripts.gateway.soaking.load import GONE, Load, Soaked, soaked
from scripts.gateway.soaking.raw import exchange
from scripts.gateway.soaking.verdict import Goal
from scripts.gateway.soaking.visits import Kind
from scripts.gateway.soaking.vitals import Place, by_route
from scripts.options import add_axes, amount
from scripts.served import NotServed, Served, served
from serve.cli import positive
from serve.keeper import descendants
from serve.settings import REPOSITORY

KIND = "gateway-soak"
CLIENTS, EVERY_SECONDS, MINUTES = 8, 5.0, 20.0
# A line of progress that stays, where nobody sees the live one.
TOLD_EVERY = 12
STORIES_SHOWN = 5
KEYS: dict[str, tuple[str, ...]] = {
    hands.OPEN: (),
    hands.COUNTED: ("--tokens-per-minute", "1000000000", "--routes", hands.COUNTED_ROUTES),
    hands.MEAGRE: ("--requests-per-minute", str(hands.MEAGRE_PER_MINUTE)),
}
EXAMPLES = """examples:
  python -m scripts.gateway.soak
  python -m scripts.gateway.soak seq8 --minutes 60
  python -m scripts.gateway.soak --minutes 1 --no-record
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all was kept, 1 when not or when it could not be measured, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    try:
        if parsed.record:
            check_writable(MEASUREMENTS)
        with shown() as progress:
            variant, seen, goals = run(parsed, progress)
    except (NotServed, *GONE) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    summary = summed_up(seen, goals)
    if parsed.json:
        print(json.dumps(summary, indent=1))
    else:
        show(seen.book.stories, goals, summary["kinds"])
    if parsed.record:
        record = Record(
            kind=KIND,
            made=made,
            command=typed("scripts.gateway.soak", arguments),
            machine=machine,
            variant=variant,
            parameters=asked(parsed),
            summary=summary,
            samples=seen.samples,
        )
        path = add(record, MEASUREMENTS)
        print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 0 if summary["kept"] else 1


def run(
    parsed: argparse.Namespace, progress: Progress
) -> tuple[dict[str, Any], Soaked, list[Goal]]:
    """What is served, what was seen, what came of what was wanted.

    :raises NotServed: the gateway does not start. :raises Exception: one of ``GONE``.
    """
    with tempfile.TemporaryDirectory(prefix="preheat-") as made:
        folder = Path(made)
        file = folder / "keys.json"
        keys = give_out(file)
        settings = {
            "VARIANT": parsed.variant,
            "MODEL": parsed.model,
            "TARGET": parsed.target,
            "PREHEAT_CACHE_POLICY": "prefer",
            "PREHEAT_KEYS_FILE": str(file),
        }
        progress.say(f"start {parsed.variant} on {parsed.model}")
        with served(settings, folder) as running:
            anybody = hands.Site(running.url, "", keys)
            variant = asyncio.run(said(anybody, "/variant"))
            models = asyncio.run(said(anybody, hands.MODELS))
            site = replace(anybody, model=models["data"][0]["id"])
            port = urlsplit(running.url).port or 0
            place = Place(running.process.pid, port, running.socket)
            progress.begin("soak")
            tell = Teller(progress, parsed.minutes * 60)
            seen = asyncio.run(soaked(wanted(parsed, site), site, place, tell))
            progress.end("soak", seen.seconds)
            goals = [*verdict.goals(seen), quota(seen), *verdict.ended(*stopped(running))]
    return variant, seen, goals


def give_out(file: Path) -> dict[str, str]:
    """Keys as an operator makes them: secrets by their names."""
    secrets = {}
    for name, limits in KEYS.items():
        argv = [sys.executable, "-m", "serve", "keys", "add", "--file", str(file), "--name", name]
        done = subprocess.run(
            [*argv, *limits], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        secrets[name] = done.stdout.strip()
    return secrets


def wanted(parsed: argparse.Namespace, site: hands.Site) -> Load:
    """Who comes."""
    return Load(
        kinds=partial(mixed, site),
        pollers=hands.pollers(site),
        seconds=parsed.minutes * 60,
        clients=parsed.clients,
        every=parsed.every,
        seed=parsed.seed,
    )


@asynccontextmanager
async def mixed(site: hands.Site) -> AsyncIterator[Sequence[Kind]]:
    """All kinds, while their clients are open."""
    # What the tests of this script's bookkeeping do without.
    from scripts.gateway.soaking.clients import Clients

    clients = Clients(site)
    groups = (hands.streams, hands.leavers, hands.refused, hands.held_back)
    try:
        yield [*clients.kinds(), *(kind for group in groups for kind in group(site))]
    finally:
        await clients.close()


async def said(site: hands.Site, path: str) -> dict[str, Any]:
    """The JSON that a path is answered with."""
    _, _, body = await exchange(site.url, "GET", path, site.headers())
    found: dict[str, Any] = json.loads(body)
    return found


class Teller:
    """Shows how far it is."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        self._progress = progress
        self._seconds = seconds
        self._told = 0

    def __call__(self, sample: Mapping[str, Any]) -> None:
        """One sample more."""
        line = (
            f"{clock(sample['s'])} of {clock(self._seconds)}: {sample['visits']:,} visits, "
            f"{sample['lost']} lost, {sample['rss_mib']:.1f} MiB, {sample['fds']} files, "
            f"{sample['engine_running'] or 0:.0f} in the engine"
        )
        self._progress.step(line)
        if self._told % TOLD_EVERY == 0:
            self._progress.say(line)
        self._told += 1


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def quota(seen: Soaked) -> Goal:
    """Of the key that may ask little."""
    ends = seen.book.entries[hands.OVER_QUOTA].ends
    return verdict.quota_kept(ends, hands.MEAGRE_PER_MINUTE, seen.seconds)


def stopped(running: Served) -> tuple[int, int]:
    """The exit status after SIGTERM, and how many of its processes are left."""
    below = descendants(running.process.pid)
    return running.stop(), sum(map(alive, below))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has buried does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def summed_up(seen: Soaked, goals: Sequence[Goal]) -> dict[str, Any]:
    """Of the record."""
    ours, theirs = (verdict.memory(seen.samples, of) for of in ("rss_mib", "engine_rss_mib"))
    return {
        "kept": all(goal.kept for goal in goals),
        "goals": [goal.describe() for goal in goals],
        "seconds": round(seen.seconds, 1),
        "visits": seen.book.visits,
        "lost": seen.book.lost,
        "peak_mib": max((one["rss_mib"] for one in seen.samples), default=None),
        "memory": ours.describe() if ours else None,
        "engine_memory": theirs.describe() if theirs else None,
        "at_rest_before": seen.start.vitals.describe(),
        "at_rest_after": seen.end.vitals.describe() if seen.end else None,
        "counted": by_route(seen.before, seen.end.counters) if seen.end else None,
        "kinds": seen.book.describe(),
        "stories": seen.book.stories,
    }


def asked(parsed: argparse.Namespace) -> dict[str, Any]:
    """Of the record."""
    options = {name: getattr(parsed, name) for name in ("minutes", "clients", "every", "seed")}
    bounds = {"slope_mib": verdict.SLOPE_MIB, "grown_mib": verdict.GROWN_MIB}
    return options | {"variant": parsed.variant, "model": parsed.model, "bounds": bounds}


def show(
    stories: Sequence[Mapping[str, Any]], goals: Sequence[Goal], kinds: Mapping[str, Any]
) -> None:
    """For a person."""
    console = Console()
    console.print(kinds_table(kinds))
    console.print(goals_table(goals))
    for story in stories[:STORIES_SHOWN]:
        console.print(f"lost: {story}", markup=False, style="red")
    if (more := len(stories) - STORIES_SHOWN) > 0:
        console.print(f"and {more} more, in the record", style="red")


def kinds_table(kinds: Mapping[str, Mapping[str, Any]]) -> Table:
    """How visits ended, by kind."""
    made = Table(title="visits")
    made.add_column("kind", no_wrap=True)
    for name in ("visits", "lost", "median s", "longest s"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("ended, where not all alike")
    for name, found in kinds.items():
        # Most end in the one way that they may.
        ends = found["ends"] if len(found["ends"]) > 1 else {}
        told = ", ".join(f"{end} {count:,}" for end, count in ends.items())
        lost = f"[red]{found['lost']}[/red]" if found["lost"] else "0"
        times = (f"{found[of]:.2f}" for of in ("median_s", "longest_s"))
        made.add_row(name, f"{found['visits']:,}", lost, *times, told)
    return made


def goals_table(goals: Sequence[Goal]) -> Table:
    """What was wanted."""
    made = Table(title="goals")
    for name in ("what", "wanted", "found", ""):
        made.add_column(name)
    for goal in goals:
        kept = "[green]kept[/green]" if goal.kept else "[red]not kept[/red]"
        made.add_row(goal.what, goal.wanted, goal.found, kept)
    return made


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.gateway.soak",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", nargs="?", default="seq8-best", help="what is served (seq8-best)")
    add_axes(top)
    top.set_defaults(model="tiny")
    top.add_argument("--minutes", type=amount, default=MINUTES, help="of visits (20)")
    top.add_argument("--clients", type=positive, default=CLIENTS, help="at once (8)")
    top.add_argument("--every", type=amount, default=EVERY_SECONDS, help="seconds a sample (5)")
    top.add_argument("--seed", type=int, default=7, help="of who comes when (7)")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as tables")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


if __name__ == "__main__":
    sys.exit(main())
