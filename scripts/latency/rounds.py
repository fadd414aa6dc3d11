"""The run: gateways alive side by side, warmed up, then loaded in turn, round by round.

Owns the order of what is done, what is rejected and when time is up; the load itself is another
process's.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from scripts.latency import facts
from scripts.latency.loader import Loader, loader
from scripts.latency.plan import Cell, arrivals, chosen, count, turns
from scripts.latency.prompts import Prompt, marked, number, request
from scripts.latency.rigs import Rig
from scripts.latency.samples import first_difference, pack
from scripts.quiet import TICKS, own_ticks, timed, undisturbed
from scripts.served import PAUSE_SECONDS
from scripts.starts import NotMeasured

IDLE_SECONDS = 3.0
POLL_SECONDS = 0.1


class TimeUp(Exception):
    """The run was to be over by now."""


@dataclass(frozen=True)
class Options:
    """What was asked for. With ``strict`` a request that is not answered ends the run."""

    rounds: int = 4
    requests: int | None = None
    seed: int = 7
    timeout: float = 60.0
    deadline: float = 240.0
    as_served: bool = False
    shared_prefix: bool = False
    busy_ok: bool = False
    strict: bool = False


@dataclass
class Run:
    """Everything that one run saw."""

    reference: str
    told: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    warm_up: dict[str, Any] = field(default_factory=dict)
    idle_cpu: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    # Rounds that are whole and count.
    rounds: int = 0


def measure(  # noqa: PLR0913  six different things
    alive: Sequence[Rig],
    prompts: Sequence[Prompt],
    cells: Sequence[Cell],
    options: Options,
    tell: Callable[[str], None],
    until: float = math.inf,
) -> Run:
    """Warm-up, then every cell in every round; the first rig is the reference.

    At ``until`` (of the monotonic clock) it ends: what counts then are the pairs of rounds that are
    whole, and none is begun that would hardly end in time.

    :raises NotMeasured: other processes never rest, an engine fails, or not even two rounds were
        whole in time. :raises LoadFailed: the load generator ended.
    """
    run = Run(alive[0].name, {one.name: one.told for one in alive})
    began = time.monotonic()
    with loader() as load:
        work = Work(list(alive), prompts, options, load, run, until)
        try:
            tell("warm-up")
            work.warm_up(max((c.concurrency or 1) for c in cells))
            work.idle()
            work.rounds(cells, tell)
        except TimeUp:
            _cut(run)
            tell(f"time is up: {run.rounds} of {options.rounds} rounds count")
    run.seconds = round(time.monotonic() - began, 1)
    return run


def _cut(run: Run) -> None:
    """Leave what is whole.

    :raises NotMeasured: that is less than two rounds, each variant once early and once late.
    """
    run.rounds -= run.rounds % 2
    if not run.rounds:
        raise NotMeasured("time was up before two rounds were whole: allow more, or ask for less")
    run.samples = [one for one in run.samples if one["round"] <= run.rounds]


@dataclass
class Work:
    """A run under way."""

    alive: list[Rig]
    prompts: Sequence[Prompt]
    options: Options
    load: Loader
    run: Run
    until: float = math.inf

    def rounds(self, cells: Sequence[Cell], tell: Callable[[str], None]) -> None:
        """All rounds.

        :raises TimeUp: before the last of them.
        """
        took = 0.0
        for round_ in range(1, self.options.rounds + 1):
            began = time.monotonic()
            # Rounds count in pairs.
            if round_ % 2 and began + 2 * took > self.until:
                raise TimeUp
            for cell in cells:
                tell(f"round {round_} of {self.options.rounds}, {cell.told()}")
                self.block(round_, cell)
            self.run.rounds = round_
            took = max(took, time.monotonic() - began)

    def warm_up(self, concurrency: int) -> None:
        """The whole set once at each variant, thrown away; the cache's peak use is read meanwhile,
        so that no reading of metrics disturbs what is measured.
        """
        for one in self.alive:
            job = self._job(one, range(len(self.prompts)), "warm-up") | {"concurrency": concurrency}
            with polled(one) as uses:
                answer = self.load.run(job)
            self._answered(one, answer["requests"])
            if all(seen["failed"] for seen in answer["requests"]):
                why = answer["requests"][0]["failed"]
                raise NotMeasured(f"{one.name} answers no request of the warm-up: {why}")
            self.run.warm_up[one.name] = {
                "discarded_requests": len(job["requests"]),
                "concurrency": concurrency,
                "kv_cache_use_peak": round(max(uses, default=0.0), 4),
            }

    def idle(self) -> None:
        """The share of one core that each variant's processes take while nobody asks them."""
        time.sleep(PAUSE_SECONDS)
        before = [own_ticks(one.pid) for one in self.alive]
        time.sleep(IDLE_SECONDS)
        for one, was in zip(self.alive, before, strict=True):
            share = (own_ticks(one.pid) - was) / TICKS / IDLE_SECONDS
            self.run.idle_cpu[one.name] = round(share, 4)

    def block(self, round_: int, cell: Cell) -> None:
        """One cell at every variant in turn, again until nobody else worked meanwhile.

        :raises NotMeasured: somebody always did.
        """
        taken, rejected = undisturbed(
            lambda attempt: self._turns(round_, cell, attempt), busy_ok=self.options.busy_ok
        )
        self.run.samples += taken
        self.run.rejected += [
            {name: one[name] for name in ("round", "cell", "variant", "others")} for one in rejected
        ]

    def _turns(self, round_: int, cell: Cell, attempt: int) -> list[dict[str, Any]]:
        requests = count(cell, len(self.prompts), self.options.requests)
        places = chosen(cell, round_, len(self.prompts), requests, self.options.seed)
        key = (round_, cell.label, attempt)
        by_name = {one.name: one for one in self.alive}
        texts: dict[str, list[str | None]] = {}
        taken = {}
        for turn, name in enumerate(turns(list(by_name), round_, self.options.seed), 1):
            job = self._job(by_name[name], places, key) | self._pace(cell, requests, round_)
            taken[name], texts[name] = self._sample(by_name[name], job)
            taken[name] = {
                "round": round_,
                "cell": cell.label,
                "variant": name,
                "turn": turn,
                **taken[name],
                **({"offered_per_s": offered(job["at"])} if "at" in job else {}),
                "prompts": " ".join(map(str, places)),
            }
        for name, sample in taken.items():
            sample["differ_at"] = differences(texts[self.run.reference], texts[name])
        return [taken[name] for name in by_name]

    def _sample(self, one: Rig, job: Mapping[str, Any]) -> tuple[dict[str, Any], list[str | None]]:
        time.sleep(PAUSE_SECONDS)
        before = counters(one)
        with timed() as sample:
            answer = self.load.run(job)
        seen = answer["requests"]
        self._answered(one, seen)
        after = counters(one)
        return {
            "others": sample.others,
            "wall_s": round(answer["wall"], 4),
            **pack(seen),
            "engine": facts.grown(before, after),
            "client": {
                "cpu_s": round(answer["cpu"], 4),
                "lag_p99_ms": _ms(answer["lag_p99"]),
                "late_ms": _ms(answer["late"]),
            },
        }, [None if answer["failed"] else answer["text"] for answer in seen]

    def _answered(self, one: Rig, seen: Sequence[Mapping[str, Any]]) -> None:
        """:raises NotMeasured: a request was not, and that ends the run.
        :raises TimeUp: it was cut short at the end of the time.
        """
        failed = [each["failed"] for each in seen if each["failed"]]
        if failed and time.monotonic() >= self.until:
            raise TimeUp
        if failed and self.options.strict:
            what = f"{len(failed)} of {len(seen)} requests failed"
            raise NotMeasured(f"{one.name}: {what}: {' '.join(failed[0].split())}")

    def _pace(self, cell: Cell, requests: int, round_: int) -> dict[str, Any]:
        if cell.rate is None:
            return {"concurrency": cell.concurrency}
        return {"at": arrivals(cell.rate, requests, round_, self.options.seed)}

    def _job(self, one: Rig, places: Sequence[int], key: object) -> dict[str, Any]:
        """:raises TimeUp: there is no time left for it."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeUp
        asked = []
        for order, place in enumerate(places):
            mark = None if self.options.shared_prefix else number(self.options.seed, key, order)
            prompt = marked(self.prompts[place], mark)
            asked.append(request(prompt, one.model, as_served=self.options.as_served))
        return {
            "url": one.url,
            "requests": asked,
            "timeout": self.options.timeout,
            "deadline": min(self.options.deadline, left),
        }


def counters(one: Rig) -> dict[str, float]:
    """What an engine counts.

    :raises NotMeasured: nobody tells, or it died: one that was started again is not warm.
    """
    try:
        text = one.get("/metrics").decode()
    except OSError as error:
        raise NotMeasured(f"{one.name}: its gateway does not answer: {error}") from error
    if facts.restarts(text):
        raise NotMeasured(f"{one.name}: its engine died and was started again")
    return facts.read(text)


def offered(at: Sequence[float]) -> float | None:
    """Arrivals a second, of the times at which they come."""
    return round((len(at) - 1) / at[-1], 4) if len(at) > 1 and at[-1] > 0 else None


def differences(reference: Sequence[str | None], candidate: Sequence[str | None]) -> str:
    """For each request where the texts first part, in characters; ``=`` where they are equal, ``-``
    where one of them failed.
    """

    def word(one: str | None, other: str | None) -> str:
        if one is None or other is None:
            return "-"
        at = first_difference(one, other)
        return "=" if at is None else str(at)

    return " ".join(word(a, b) for a, b in zip(reference, candidate, strict=True))


@contextmanager
def polled(one: Rig) -> Iterator[list[float]]:
    """The cache's use (0 to 1) every so often, while the body runs."""
    from threading import Event, Thread

    uses: list[float] = []
    over = Event()

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            # A busy gateway may miss one; the load itself tells whether it is gone.
            with suppress(OSError):
                uses.append(facts.read(one.get("/metrics").decode()).get(facts.KV_USE, 0.0))

    thread = Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield uses
    finally:
        over.set()
        thread.join()


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
