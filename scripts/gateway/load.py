"""The load client: asks a server at a rate, or with so many clients, and says what it saw.

A process of its own. Open loop (--rate): requests are sent when they are due, whatever became of
those before, and every duration counts from then, so that a server that stalls is seen to. Closed
loop (--concurrency): each client asks again as soon as it has its answer. Times are those of reads;
chunks that come clumped have gaps of zero. Every request ends as whole or as one kind of failure:
refused, reset, closed (before a byte), cut (after), status N, error event, empty, not HTTP, late,
not sent (an open loop with too many under way).
"""

import argparse
import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from math import inf
from typing import Any
from urllib.parse import urlsplit

import uvloop

from scripts.gateway.alarm import Alarm
from scripts.gateway.client import Client, Outcome
from scripts.gateway.tally import QUANTILES, quantile, tally, written
from scripts.gateway.upstream import MODEL, pace_of
from scripts.options import amount
from serve.cli import positive

CHAT = "/v1/chat/completions"
# In the open loop: each is used again within a second, before any server hangs up.
CONNECTIONS = 32
# More wait than any server has answers for within a second or two.
AT_MOST = 256
# A prompt of a chat's usual size.
PROMPT_BYTES = 1_000
GRACE_SECONDS = 30.0
# After a failure, so that a server which refuses is not stormed.
AGAIN_SECONDS = 0.05
LEAD_SECONDS = 0.05
# Of a number of requests, whatever a server does.
LONGEST = 600.0
EXAMPLES = """examples:
  python -m scripts.gateway.load http://127.0.0.1:8000 --rate 50 --seconds 5 --stream \\
      --pace 'first=0.02 gap=0.002 tokens=24'
  python -m scripts.gateway.load http://127.0.0.1:8000 --concurrency 8 --requests 10000 --json
"""


class Pool:
    """Keep-alive connections to one server; ``on_end`` is told of every outcome."""

    def __init__(self, url: str, request: bytes, *, stream: bool) -> None:
        parts = urlsplit(url)
        self._where = parts.hostname or "127.0.0.1", parts.port or 80
        self._request, self._stream = request, stream
        self._idle: deque[Client] = deque()
        self._busy: dict[Client, Outcome] = {}
        self._connecting: dict[asyncio.Task[None], Outcome] = {}
        self.outcomes: list[Outcome] = []
        self.connections = 0
        self.on_end: Callable[[Outcome], object] = lambda _: None

    async def fill(self, connections: int) -> None:
        """Have so many connections before the first request; what cannot be had is seen later."""
        with suppress(OSError):
            for _ in range(connections):
                self._idle.append(await self._connected())

    def send(self, due: float) -> None:
        """Send a request that was due at ``due``, over a connection that is free, or a new one."""
        outcome = Outcome(due)
        self.outcomes.append(outcome)
        while self._idle:
            client = self._idle.popleft()
            if client.usable:
                self._ask(client, outcome)
                return
        task = asyncio.get_running_loop().create_task(self._ask_anew(outcome))
        self._connecting[task] = outcome
        task.add_done_callback(self._connecting.pop)

    @property
    def under_way(self) -> int:
        """Requests that were sent, or wait for their connection."""
        return len(self._busy) + len(self._connecting)

    def leave_out(self, due: float) -> None:
        """Count a request that is not sent."""
        outcome = Outcome(due, ended=time.perf_counter(), failed="not sent")
        self.outcomes.append(outcome)
        self.on_end(outcome)

    def give_up(self) -> None:
        """Whoever waits still has waited too long."""
        self.on_end = lambda _: None
        for client in list(self._busy):
            client.give_up()
        for task, outcome in list(self._connecting.items()):
            task.cancel()
            outcome.ended = time.perf_counter()

    def close(self) -> None:
        """Hang up."""
        for client in self._idle:
            client.close()

    async def _connected(self) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(self._ended), *self._where)
        self.connections += 1
        return client

    async def _ask_anew(self, outcome: Outcome) -> None:
        try:
            client = await self._connected()
        except OSError:
            outcome.failed, outcome.ended = "refused", time.perf_counter()
            self.on_end(outcome)
        else:
            self._ask(client, outcome)

    def _ask(self, client: Client, outcome: Outcome) -> None:
        self._busy[client] = outcome
        client.ask(self._request, outcome, stream=self._stream)

    def _ended(self, client: Client, outcome: Outcome) -> None:
        del self._busy[client]
        if client.usable:
            self._idle.append(client)
        self.on_end(outcome)


class OpenLoop:
    """Requests at times that are known before; with ``most`` under way none is sent.

    Without an end to them, a server that is overloaded would be busy long after.
    """

    def __init__(self, pool: Pool, alarm: Alarm, times: Sequence[float], most: int) -> None:
        self.over = asyncio.Event()
        self._pool, self._most, self._left = pool, most, len(times)
        pool.on_end = self._ended
        for due in times:
            alarm.at(due, partial(self._arrive, due))

    def _arrive(self, due: float) -> None:
        if self._pool.under_way < self._most:
            self._pool.send(due)
        else:
            self._pool.leave_out(due)

    def _ended(self, _: Outcome) -> None:
        self._left -= 1
        if not self._left:
            self.over.set()


class ClosedLoop:
    """So many clients that each wait for their answer; none asks after ``until``."""

    def __init__(self, pool: Pool, alarm: Alarm, asked: argparse.Namespace, began: float) -> None:
        self.over = asyncio.Event()
        self._pool, self._alarm = pool, alarm
        self._clients: int = asked.concurrency
        self._left: float = asked.requests or inf
        self._until = began + (asked.seconds or inf)
        pool.on_end = self._ended
        for _ in range(self._clients):
            alarm.at(began, self._next)

    def _next(self) -> None:
        now = time.perf_counter()
        if self._left > 0 and now < self._until:
            self._left -= 1
            self._pool.send(now)
            return
        self._clients -= 1
        if not self._clients:
            self.over.set()

    def _ended(self, outcome: Outcome) -> None:
        if outcome.failed:
            self._alarm.at(time.perf_counter() + AGAIN_SECONDS, self._next)
        else:
            self._next()


async def run(asked: argparse.Namespace) -> dict[str, Any]:
    """One load, as JSON: counts, and durations as tallies."""
    alarm = Alarm(asyncio.get_running_loop())
    pool = Pool(asked.url, request(asked), stream=asked.stream)
    await pool.fill(asked.concurrency or CONNECTIONS)
    cpu, began = time.process_time(), time.perf_counter() + LEAD_SECONDS
    loop: OpenLoop | ClosedLoop
    if asked.rate:
        loop = OpenLoop(pool, alarm, [began + at for at in arrivals(asked)], asked.at_most)
    else:
        loop = ClosedLoop(pool, alarm, asked, began)
    try:
        await asyncio.wait_for(loop.over.wait(), (asked.seconds or LONGEST) + asked.grace)
    except TimeoutError:
        pool.give_up()
    cpu = time.process_time() - cpu
    pool.close()
    alarm.close()
    return seen(pool.outcomes) | {"connections": pool.connections, "client_cpu_s": round(cpu, 3)}


def arrivals(asked: argparse.Namespace) -> Iterator[float]:
    """Seconds at which requests are due: evenly spaced, or as Poisson's process has it."""
    count = round(asked.rate * asked.seconds)
    if asked.even:
        return (number / asked.rate for number in range(count))
    chance = random.Random(asked.seed)  # noqa: S311 - no secret
    return accumulate(chance.expovariate(asked.rate) for _ in range(count))


def request(asked: argparse.Namespace) -> bytes:
    """The request that is sent over and over."""
    words = f"{asked.pace.words}\n" if asked.pace else ""
    prompt = words + "word " * ((asked.prompt_bytes - len(words)) // 5)
    body: dict[str, Any] = {
        "model": asked.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": asked.pace.tokens if asked.pace else 16,
    }
    if asked.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    raw = json.dumps(body).encode()
    head = [
        f"POST {urlsplit(asked.url).path.rstrip('/')}{CHAT} HTTP/1.1",
        f"Host: {urlsplit(asked.url).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(raw)}",
        *asked.header,
    ]
    return "\r\n".join([*head, "", ""]).encode() + raw


def seen(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What came of all requests; durations only of those whose answer was whole."""
    whole = [one for one in outcomes if not one.failed]
    ended = max((one.ended for one in outcomes), default=0.0)
    seconds = ended - min((one.due for one in outcomes), default=0.0)
    durations = {
        "whole": [one.ended - one.due for one in whole],
        "first_byte": [one.first_byte - one.due for one in whole],
        "first_chunk": [one.said[0] - one.due for one in whole if one.said],
        "gap": [gap for one in whole for gap in one.gaps],
        "late": [max(0.0, one.sent - one.due) for one in outcomes if one.sent],
    }
    there = {name: found for name, found in durations.items() if found}
    return {
        "sent": len(outcomes),
        "whole": len(whole),
        "failed": dict(Counter(one.failed for one in outcomes if one.failed).most_common()),
        "seconds": round(seconds, 4),
        "per_second": round(len(whole) / seconds, 2) if seconds else 0.0,
        "chunks": sum(len(one.said) for one in whole),
        "at_once": at_once(outcomes),
        "tallies": {name: written(tally(found)) for name, found in there.items()},
        "milliseconds": {
            name: {
                label: round(1_000 * quantile(found, share), 4)
                for label, share in QUANTILES.items()
            }
            for name, found in there.items()
        },
    }


def at_once(outcomes: Sequence[Outcome]) -> int:
    """How many answers had begun and not ended, at most."""
    begun = [one for one in outcomes if one.first_byte]
    # Of a begin and an end at one time, the end goes first.
    steps = sorted([(one.first_byte, 1) for one in begun] + [(one.ended, -1) for one in begun])
    return max(accumulate((step for _, step in steps), initial=0))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.gateway.load",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("url", help="of the server, http://127.0.0.1:8000")
    kind = top.add_mutually_exclusive_group(required=True)
    kind.add_argument("--rate", type=amount, help="open loop: requests a second")
    kind.add_argument("--concurrency", type=positive, help="closed loop: clients")
    top.add_argument("--seconds", type=amount, help="how long requests are sent")
    top.add_argument("--requests", type=positive, help="closed loop: how many at most")
    top.add_argument("--even", action="store_true", help="open loop: evenly spaced, not Poisson")
    top.add_argument(
        "--at-most", type=positive, default=AT_MOST, help="open loop: under way at once (256)"
    )
    top.add_argument("--seed", type=int, default=7, help="of Poisson's arrivals (7)")
    top.add_argument("--stream", action="store_true", help="ask for streams")
    top.add_argument("--pace", type=pace_of, help="asked of scripts.gateway.upstream")
    top.add_argument("--model", default=MODEL, help=f"name of the model ({MODEL})")
    top.add_argument("--prompt-bytes", type=positive, default=PROMPT_BYTES, help="(1000)")
    top.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="of every request"
    )
    top.add_argument(
        "--grace", type=amount, default=GRACE_SECONDS, help="seconds for the last answers (30)"
    )
    top.add_argument("--json", action="store_true", help="all of it as JSON, with tallies")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every answer was whole, 1 when one was not, 2 usage."""
    top = parser()
    asked = top.parse_args(arguments)
    if not asked.seconds and (asked.rate or not asked.requests):
        top.error("--seconds says how long" + (", or --requests" if asked.concurrency else ""))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A collection would be a pause in what is measured.
    gc.freeze()
    gc.disable()
    found = uvloop.run(run(asked))
    if asked.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0 if found["sent"] == found["whole"] else 1


def show(found: dict[str, Any]) -> None:
    """For a person."""
    failed = ", ".join(f"{count} {kind}" for kind, count in found["failed"].items()) or "none"
    print(f"{found['sent']} sent, {found['whole']} whole, failed: {failed}")
    print(f"{found['per_second']:,.1f}/s, {found['at_once']} at once, {found['chunks']} chunks")
    print(f"{'ms':12}" + "".join(f"{label:>10}" for label in QUANTILES))
    for name, row in found["milliseconds"].items():
        print(f"{name:12}" + "".join(f"{value:10.3f}" for value in row.values()))


if __name__ == "__main__":
    sys.exit(main())
