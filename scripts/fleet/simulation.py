"""The same replicas request by request, on simpy's clock: what the formulas of ``line`` leave out.

A request is a prompt and a number of answers' tokens, drawn from those that were measured; all in
flight at a replica go on side by side, each at the pace of the state that the replica is in.
"""

import random
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import simpy

from scripts.fleet.curve import Curve

Router = Literal["random", "fewest"]
# A request as done whose rest is smaller: floats.
NOTHING = 1e-9


@dataclass(frozen=True)
class Load:
    """Requests at random (Poisson), ``arrivals`` a second for so many seconds; their answers are as
    long as one of ``tokens``, or exponentially long around the curve's mean.
    """

    arrivals: float
    seconds: float
    tokens: Sequence[float] = ()
    seed: int = 7


@dataclass(frozen=True)
class Done:
    """One request: when it came, had its first token, and ended, in seconds."""

    came: float
    first: float
    ended: float


@dataclass
class Job:
    """One request under way; ``left`` counts parts: 1 to the first token, then one each."""

    came: float
    tokens: float
    left: float = 0.0
    first: float | None = None

    @property
    def prefilling(self) -> bool:
        return self.first is None


@dataclass
class Replica:
    """One engine: its places, and the line before them."""

    env: simpy.Environment
    curve: Curve
    done: list[Done]
    jobs: list[Job] = field(default_factory=list)
    line: deque[Job] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._since = self.env.now
        self._wake = self.env.event()
        self.env.process(self._run())

    @property
    def has(self) -> int:
        return len(self.jobs) + len(self.line)

    def take(self, job: Job) -> None:
        """A request comes."""
        self._advance()
        self.line.append(job)
        self._wake.succeed()
        self._wake = self.env.event()

    def _run(self) -> Generator[Any, Any, None]:
        while True:
            self._advance()
            while self.line and len(self.jobs) < self.curve.places:
                job = self.line.popleft()
                job.left = 1.0
                self.jobs.append(job)
            if not self.jobs:
                yield self._wake
                continue
            soonest = min(job.left / self._pace(job) for job in self.jobs)
            yield self.env.timeout(soonest) | self._wake

    def _pace(self, job: Job) -> float:
        """Parts of the request that are done in a second."""
        n = len(self.jobs)
        return 1 / (self.curve.first(n) if job.prefilling else self.curve.gap(n))

    def _advance(self) -> None:
        """All that are in flight go on by the time that has passed."""
        passed, self._since = self.env.now - self._since, self.env.now
        for job, pace in [(job, self._pace(job)) for job in self.jobs]:
            job.left -= passed * pace
            if job.left > NOTHING:
                continue
            if job.prefilling and job.tokens > 1:
                job.first, job.left = self.env.now, job.tokens - 1
            else:
                first = self.env.now if job.first is None else job.first
                self.done.append(Done(job.came, first, self.env.now))
                self.jobs.remove(job)


def simulate(curve: Curve, load: Load, replicas: int = 1, router: Router = "random") -> list[Done]:
    """Every request of the load, in the order of their coming, once all have ended."""
    draw = random.Random(load.seed)  # noqa: S311 - no secret
    env = simpy.Environment()
    done: list[Done] = []
    all_of_them = [Replica(env, curve, done) for _ in range(replicas)]

    def length() -> float:
        if load.tokens:
            return draw.choice(load.tokens)
        return 1 + draw.expovariate(1 / max(curve.shape.output - 1, NOTHING))

    def coming() -> Generator[Any, Any, None]:
        while True:
            yield env.timeout(draw.expovariate(load.arrivals))
            if env.now > load.seconds:
                return
            chosen = (
                min(all_of_them, key=lambda one: (one.has, draw.random()))
                if router == "fewest"
                else draw.choice(all_of_them)
            )
            chosen.take(Job(env.now, length()))

    env.process(coming())
    env.run()
    return sorted(done, key=lambda one: one.came)
