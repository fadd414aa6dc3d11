"""One session: the reference, the reference restarted, then each variant; all asked the same.

Each is served by itself, through the gateway, as a person serves it. Texts are asked one at a
time, so that what shares a step with what cannot differ between two of them.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from scripts.quality import harness
from scripts.quality.divergence import Position
from scripts.quality.harness import Asked, Endpoint, Scored
from scripts.quality.modes import Text
from scripts.quality.scoring import continued, scored
from scripts.served import served

REFERENCE = "baseline"
# Of a held-out text, that the reference goes on from; and how far, in tokens.
BEGINNING = 200
DRAWN_TOKENS = 128
T = TypeVar("T")


@dataclass(frozen=True)
class Questions:
    """What every server is asked; ``drawn`` are the reference's own, None where it draws them."""

    texts: Sequence[Text]
    tasks: Sequence[Asked]
    concurrency: int
    drawn: Sequence[Text] | None = None


@dataclass(frozen=True)
class Answers:
    """What one server told: ``/variant``, positions of every text, scores by task."""

    told: dict[str, Any]
    texts: list[list[Position]]
    drawn: list[tuple[Text, list[Position]]]
    tasks: dict[str, Scored] = field(default_factory=dict)


def ask(
    settings: Mapping[str, str], questions: Questions, work: Path, environ: Mapping[str, str]
) -> Answers:
    """Serve with ``settings``, ask everything, stop. ``work`` is a folder of its own.

    :raises NotServed: it did not start.
    :raises NotEvaluated: the harness failed.
    :raises NotAligned: its tokens are not pieces of the texts.
    :raises scripts.served.Failed: a request was answered with an error, or not at all.
    :raises OSError: it did not tell what it serves.
    """
    name = settings["VARIANT"]
    say(f"{name}: starting")
    with served(settings, work) as running:
        model = json.loads(running.get("/v1/models"))["data"][0]["id"]
        told = json.loads(running.get("/variant"))
        endpoint = Endpoint(running.url, model, questions.concurrency)
        own = draw(endpoint, questions.texts) if questions.drawn is None else questions.drawn
        every = watched([*questions.texts, *own], f"{name}: texts")
        told_of = [scored(running.url, model, text.text) for text in every]
        tasks: dict[str, Scored] = {}
        if questions.tasks:
            say(f"{name}: {', '.join(f'{one.task} {len(one.places)}' for one in questions.tasks)}")
            tasks = harness.scores(questions.tasks, endpoint, work, environ)
    held_out, drawn = told_of[: len(questions.texts)], told_of[len(questions.texts) :]
    return Answers(told, held_out, list(zip(own, drawn, strict=True)), tasks)


def draw(endpoint: Endpoint, texts: Sequence[Text]) -> list[Text]:
    """Each text's beginning, gone on with by the model; seeded, empty ones left out."""

    def one(place: int, text: Text) -> Text:
        begin = text.text[:BEGINNING]
        more = continued(endpoint.url, endpoint.model, begin, DRAWN_TOKENS, place)
        return Text(text.source, begin + more, len(begin.encode()))

    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        made = list(pool.map(one, range(len(texts)), texts))
    return [text for text in made if len(text.text.encode()) > text.after]


def say(line: str) -> None:
    """How far it is, on standard error."""
    print(f"  {line} …", file=sys.stderr, flush=True)


def watched(of: Sequence[T], what: str) -> Iterable[T]:
    """Each of them, with a bar where standard error is a terminal."""
    return track(of, what, console=Console(stderr=True), disable=not sys.stderr.isatty())
