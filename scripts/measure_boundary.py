"""Measures what the gateway's boundary costs: microseconds a body, an answer, an event of a stream.

Each case is done by the boundary, and by what reading and writing the whole body would take: the
standard library's JSON, and msgspec's. The vocabulary is as large as Qwen3.5's, 248,320 tokens of
which 65,536 are kept, drawn with a seed. Samples are taken in turn, round after round; one beside
which others burn CPU is taken again.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.options import add_sampling, sample_seconds
from scripts.quiet import attempts
from scripts.starts import NotMeasured
from serve.boundary import Boundary, Events
from serve.plan import versions
from serve.settings import REPOSITORY
from serve.translate import Answers, Vocabulary

ORIGINAL, KEPT, SEED = 248_320, 65_536, 7
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# A tick of /proc/stat is 10 ms: in a sample of 0.4 s, two ticks of two cores are 2.5 %.
SAMPLE_SECONDS = 0.4
WAYS = ("boundary", "json", "msgspec")
EXAMPLES = """examples:
  python -m scripts.measure_boundary
  python -m scripts.measure_boundary --rounds 9
  python -m scripts.measure_boundary --quick --json --no-record
"""


@dataclass
class Case:
    """One kind of body, ``size`` bytes, done one way by ``work``; microseconds so far."""

    name: str
    way: str
    size: int
    work: Callable[[], object]
    repeats: int = 1
    micros: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all was measured, 1 when others never rest, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    samples: list[dict[str, Any]] = []
    try:
        summary = measured(parsed, samples)
    except NotMeasured as stop:
        print(f"not measured: {stop}", file=sys.stderr)
        return 1
    print(json.dumps(summary, indent=1)) if parsed.json else show(summary)
    if parsed.record:
        record = Record(
            kind="boundary",
            made=made,
            command=["python", "-m", "scripts.measure_boundary", *sys.argv[1:]],
            machine=machine,
            variant={"versions": versions() | {"msgspec": msgspec.__version__}},
            parameters={"original": ORIGINAL, "kept": KEPT, "seed": SEED}
            | {"rounds": parsed.rounds, "sample_seconds": sample_seconds(parsed)}
            | {"busy": parsed.busy or parsed.quick},
            summary=summary,
            samples=samples,
        )
        path = add(record, MEASUREMENTS)
        print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_boundary",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sampling(top, 5, "two rounds", seconds=SAMPLE_SECONDS)
    return top


def measured(parsed: argparse.Namespace, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Median microseconds by case and way; ``samples`` are added to.

    :raises NotMeasured: others never rest.
    """
    chosen = random.Random(SEED).sample(range(ORIGINAL), KEPT)  # noqa: S311 - no secret
    began = time.perf_counter()
    vocabulary = Vocabulary.of(chosen, ORIGINAL)
    made_in = time.perf_counter() - began
    all_cases = list(cases(vocabulary, chosen))
    for case in all_cases:
        case.repeats = repeats(case.work, sample_seconds(parsed))
    busy = parsed.busy or parsed.quick
    rounds = 2 if parsed.quick else parsed.rounds
    for number in track(range(rounds), "measuring", console=Console(stderr=True)):
        for case in all_cases:
            for sample, counts in attempts(case.work, case.repeats, busy=busy):
                micros = sample.seconds / case.repeats * 1e6
                samples.append(
                    {"case": case.name, "way": case.way, "round": number, "kept": counts}
                    | {"micros": round(micros, 3), "others": sample.others}
                )
                if counts:
                    case.micros.append(micros)
    held = sum(map(sys.getsizeof, (vocabulary.kept, vocabulary.served)))
    return {"cases": figures(all_cases), "map_seconds": round(made_in, 4), "map_bytes": held}


def repeats(work: Callable[[], object], seconds: float) -> int:
    """How often to work for so many seconds."""
    work()
    began = time.perf_counter()
    work()
    return max(1, round(seconds / max(time.perf_counter() - began, 1e-7)))


def cases(vocabulary: Vocabulary, kept: Sequence[int]) -> Iterator[Case]:
    """Every body, every way."""
    both, none = Boundary(vocabulary, 256), Boundary()
    translated = Answers(vocabulary).translated
    for name, route, body in requests(kept):
        yield Case(name, "boundary", len(body), partial(both.request, route, body))
        yield from plain(name, body)
    _, route, body = next(requests(kept))
    yield Case("no boundary", "boundary", len(body), partial(none.request, route, body))
    for name, body in answers():
        yield Case(name, "boundary", len(body), partial(translated, COMPLETIONS, body))
        yield from plain(name, body)
    for name, body in events():
        feed = Events(partial(translated, COMPLETIONS)).feed
        yield Case(name, "boundary", len(body), partial(feed, body))


def plain(name: str, body: bytes) -> Iterator[Case]:
    """Reading a body whole and writing it again."""
    yield Case(name, "json", len(body), lambda: json.dumps(json.loads(body)).encode())
    yield Case(name, "msgspec", len(body), lambda: msgspec.json.encode(msgspec.json.decode(body)))


def requests(kept: Sequence[int]) -> Iterator[tuple[str, str, bytes]]:
    """Bodies of clients, by name and route."""
    for size in (2_000, 1_000_000):
        message = {"role": "user", "content": "words and more " * (size // 15)}
        yield (
            f"chat of {size:,} characters",
            CHAT,
            json.dumps({"model": "m", "messages": [message], "temperature": 0.7}).encode(),
        )
    for count in (1_000, 32_000):
        prompt = [kept[number % KEPT] for number in range(count)]
        yield (
            f"prompt of {count:,} ids",
            COMPLETIONS,
            json.dumps({"model": "m", "prompt": prompt, "max_tokens": 16}).encode(),
        )


def answers() -> Iterator[tuple[str, bytes]]:
    """Whole answers of an engine."""
    choice = {"index": 0, "text": "words " * 1_000, "finish_reason": "length", "stop_reason": None}
    yield "answer of 1,000 tokens", whole([choice | {"token_ids": None}])
    yield "answer with 1,000 ids", whole([choice | {"token_ids": list(range(1_000))}])
    logprob = {"logprob": -1.25, "rank": 1, "decoded_token": " word"}
    told = [{str(token): logprob, str(token + 1): logprob} for token in range(2_000)]
    yield (
        "answer with 2,000 × 2 prompt log-probabilities",
        whole([choice | {"prompt_logprobs": told}]),
    )


def events() -> Iterator[tuple[str, bytes]]:
    """Single events of a stream."""
    choice = {"index": 0, "text": " word", "finish_reason": None, "stop_reason": None}
    yield "event", b"data: " + whole([choice]) + b"\n\n"
    yield "event with an id", b"data: " + whole([choice | {"token_ids": [77]}]) + b"\n\n"


def whole(choices: list[dict[str, Any]]) -> bytes:
    """A completion as vLLM frames it."""
    frame = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1795292911}
    return json.dumps(frame | {"model": "m", "choices": choices}, separators=(",", ":")).encode()


def figures(all_cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Median microseconds by case and way, and bytes."""
    found: dict[str, dict[str, float]] = {}
    for case in all_cases:
        row = found.setdefault(case.name, {"bytes": case.size})
        row[case.way] = round(statistics.median(case.micros), 2)
    return found


def show(summary: dict[str, Any]) -> None:
    """For a person."""
    made = Table(title="the boundary's cost, microseconds (median)")
    made.add_column("what")
    for column in ("bytes", *WAYS):
        made.add_column(column, justify="right")
    for name, row in summary["cases"].items():
        shown = (f"{row[way]:,.1f}" if way in row else "" for way in WAYS)
        made.add_row(name, f"{row['bytes']:,}", *shown)
    Console().print(made)


if __name__ == "__main__":
    sys.exit(main())
