"""Drafts from a part of the vocabulary change no text, and nearly as many are accepted."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.eval_parity import judged
from scripts.mtp.accepted import counters, grown
from scripts.mtp.asking import Ask, Said, complete_all
from scripts.mtp.held_out import HELD_OUT, read_asks
from scripts.mtp.parity import IDENTICAL
from scripts.served import Served, start
from serve.settings import REPOSITORY
from tests.integration.conftest import settings

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

LEVER = "DRAFT_VOCAB_SIZE"
SIZE = 4096
PROMPTS, TOKENS = 12, 32
TOLD = "drafts are chosen from "


@pytest.fixture(scope="module")
def other(
    seq8_best: Served, cache_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """seq8-best with the lever where it stands without, and without where it stands with it, in the
    root that it has compiled into itself.
    """
    there = tmp_path_factory.mktemp("draft-vocabulary")
    experiments = there / "experiments"
    for folder in ("models", "seq8-best", "targets", "vocabularies"):
        shutil.copytree(REPOSITORY / "experiments" / folder, experiments / folder)
    (experiments / "models" / "tiny.env").write_text(f"PATH={REPOSITORY / 'weights' / 'tiny'}\n")
    levers = experiments / "seq8-best" / "config.env"
    lines = levers.read_text().splitlines()
    kept = [one for one in lines if not one.startswith(LEVER)]
    levers.write_text("\n".join([*kept, f"{LEVER}={SIZE}" if kept == lines else "", ""]))
    asked = settings("seq8-best", cache_root) | {"PREHEAT_EXPERIMENTS": str(experiments)}
    running = start(asked, there / "run")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def pair(seq8_best: Served, other: Served) -> tuple[Served, Served]:
    """First the one that drafts from all tokens."""
    both = sorted((seq8_best, other), key=lambda one: TOLD in one.log.read_text(errors="replace"))
    return both[0], both[1]


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    return read_asks(HELD_OUT, TOKENS, PROMPTS)


def said(running: Served, asks: list[Ask]) -> tuple[list[Said], float]:
    """The answers, one prompt at a time, and tokens a step by the engine's own counters."""
    before = counters(running.get("/metrics").decode())
    answers = complete_all(running, asks, 1)
    more = grown(before, counters(running.get("/metrics").decode()))
    return answers, 1 + more["accepted"] / more["steps"]


def test_the_same_text_and_nearly_as_many_drafts_accepted(
    pair: tuple[Served, Served], asks: list[Ask]
) -> None:
    (whole, all_accepted), (part, some_accepted) = (said(one, asks) for one in pair)
    told = judged(pair[0], "bfloat16", whole, part, asks)
    # Of target cpu: steps are of other heights, as other drafts are accepted, and round alike.
    assert told["verdict"] == IDENTICAL, told["found"]
    assert some_accepted > 0.85 * all_accepted


def test_nothing_is_compiled_for_it(pair: tuple[Served, Served], other: Served) -> None:
    log = other.log.read_text(errors="replace")
    assert log.count("Directly load AOT compilation from path") == 2
    assert "saved AOT compiled function" not in log
    assert [TOLD in one.log.read_text(errors="replace") for one in pair] == [False, True]
