"""What the table of variants says of quality, and of what."""

import os
import subprocess

import pytest

from scripts import docs
from scripts.reporting.records import Found, Source
from serve.settings import REPOSITORY
from tests.scripts import sampled

COMPARED = {"verdict": "identical", "prompts": 9, "near_ties": 0, "largest_gap": None}


def found(record):
    return Found(f"experiments/{record.variant['variant']}/{record.kind}.json", record)


def judged(on):
    made = sampled.quality("seq8-best", 0.001)
    return found(made.model_copy(update={"summary": made.summary | {"judged_on": on}}))


def drafts(*different):
    passes = [COMPARED | {"different": n} for n in different]
    told = {f"bfloat16 {name}": one for name, one in zip("abc", passes, strict=False)}
    told |= {"bfloat16 floor": COMPARED | {"different": 5}}
    return found(sampled.record("parity", "seq8-best", {"agreed": True, "comparisons": told}))


@pytest.mark.parametrize(
    ("of", "beside", "said"),
    [
        (None, None, ""),
        (None, drafts(0), "[same greedy text, 9 of 9](experiments/seq8-best/parity.json)"),
        (judged("texts and tasks"), drafts(0), "[parity](experiments/seq8-best/quality.json)"),
        (judged("texts alone"), None, "[parity (texts)](experiments/seq8-best/quality.json)"),
        (
            judged("texts alone"),
            drafts(0, 2),
            "[parity (texts)](experiments/seq8-best/quality.json); "
            "[same greedy text, 7 of 9](experiments/seq8-best/parity.json)",
        ),
    ],
)
def test_a_verdict_says_that_it_is_of_texts_and_what_drafts_changed_beside_it(of, beside, said):
    assert docs._verdict(of, beside) == said


def test_what_was_measured_with_other_levers_is_not_told_of_todays():
    def of(levers):
        made = sampled.quality("awq", 0.001)
        return found(made.model_copy(update={"variant": made.variant | {"levers": levers}}))

    then, now = of({"weights": None}), of({"weights": "awq-w4a16"})
    kept = docs.of_today(Source([then, now]), {"awq": {"weights": "awq-w4a16"}})
    assert kept.records == [now]
    assert docs.of_today(Source([then]), {}).records == []


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """As a person types it, whatever `make test` was told."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(
        command, cwd=REPOSITORY, env=kept, capture_output=True, text=True, check=False
    )


def test_the_page_shows_what_make_help_prints():
    assert docs.make_help() == f"```console\n$ make help\n{make('help').stdout}```"


def test_a_target_that_is_none_is_told_before_anything_is_installed():
    told = make("--dry-run", "serve", "TARGET=zzz")
    assert told.returncode == 2
    assert "no target 'zzz'; there are: a10g cpu" in told.stderr


@pytest.mark.parametrize(
    ("words", "variant"),
    [
        (["eval-parity"], "seq8-best"),
        (["eval-parity", "VARIANT=seq8-drafts"], "seq8-drafts"),
        (["eval-quality", "VARIANT=awq,seq8"], "awq,seq8"),
    ],
)
def test_make_hands_over_the_variant_that_its_help_names(words, variant):
    said = make("--dry-run", *words).stdout
    assert f"-m scripts.{words[0].replace('-', '_')} '{variant}'" in said
    assert f"--image {variant.replace(',', ' ')}" in said
