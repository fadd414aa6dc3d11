"""What a record says follows from its samples: today's records do, an edited figure does not."""

import json
from pathlib import Path

import pytest

from experiments.record import Record
from scripts import resum
from scripts.check_records import RECORDS, records
from scripts.mtp.asking import Said
from scripts.mtp.parity import digests, samples
from serve.settings import REPOSITORY
from tests.scripts.sampled import record
from tests.scripts.test_latency_statistics import kept

QUALITY = REPOSITORY / "experiments/awq/measurements/quality_2026-11-21T212128Z.json"


def taken(path: Path) -> Record:
    return Record.model_validate_json(path.read_bytes())


def swept() -> Record:
    counted = {"drafts": 10, "drafted_tokens": 10, "accepted_tokens": 8}
    samples = [kept("k0"), kept("k1", latency_ms="50", engine=counted)]
    samples = [{"group": 0, **one} for one in samples]
    made = record("k-sweep", "seq8-best", {}, seed=1)
    return summed(made.model_copy(update={"samples": samples}))


def timings() -> Record:
    samples = [kept("baseline"), kept("awq")]
    said = {"reference": "baseline", "candidate": "awq"}
    made = record("latency", "awq", said, seed=1).model_copy(update={"samples": samples})
    return summed(made)


def quantized() -> Record:
    rest = {"tokens": [5, 5], "bytes": 9, "seconds": 1.0, "peak_bytes": 10**6}
    samples = [
        {"recipe": "bf16", "nll": [10.0, 20.0], **rest},
        {"recipe": "rtn mlp g32", "nll": [11.0, 21.0], **rest},
        {"recipe": "awq mlp g32", "nll": [10.5, 20.5], **rest},
    ]
    made = record("quantize", "baseline", {})
    return summed(made.model_copy(update={"samples": samples}))


def thought() -> Record:
    rest = {"answer": 4, "closed": 1, "ended": "stop", "exact": 1, "answer_sha256": "a"}
    pairs = [(20, 8), (100, 8), (3, 3)]
    samples = [
        {"way": way, "thought": tokens, **rest}
        for pair in pairs
        for way, tokens in zip(("uncapped", "cap 8"), pair, strict=True)
    ]
    made = record("thoughts", "seq8-shortcot", {})
    return summed(made.model_copy(update={"samples": samples}))


def compared() -> Record:
    """Three prompts, of which one parts at a near tie."""
    answers = [Said((1,), (n, 5), "", "stop", 0.0) for n in range(3)]
    other = [*answers[:2], Said((1,), (2, 6), "", "stop", 0.0)]
    place = {"prompt": 2, "place": 1, "gap": 0.0625, "near_tie": True}
    sides = {"mine_sha256": digests(answers), "other_sha256": digests(other)}
    rows = samples({"bfloat16 alone": {**sides, "found": [place]}})
    made = record("parity", "seq8-best", {"comparisons": {"bfloat16 alone": {}}})
    return summed(made.model_copy(update={"samples": rows}))


def summed(made: Record) -> Record:
    """As it is read from a file: names are texts there."""
    summary = made.summary | resum.AGAIN[made.kind](made)
    return made.model_copy(update={"summary": json.loads(json.dumps(summary))})


MADE = [swept(), timings(), taken(QUALITY), quantized(), thought(), compared()]


@pytest.mark.parametrize("made", MADE, ids=lambda r: r.kind)
def test_an_edited_figure_is_found_and_named(made: Record) -> None:
    assert list(resum.differences(made)) == []
    place = {
        "k-sweep": ("by_k", 1, "cells", "c8", "tokens_per_s"),
        "latency": (
            "cells",
            next(iter(made.summary.get("cells", {"": 0}))),
            "awq",
            "e2e_ms",
            "p50",
        ),
        "quality": ("texts", "kl", "point"),
        "quantize": ("awq mlp g32", "beside", "point"),
        "parity": ("comparisons", "bfloat16 alone", "different"),
        "thoughts": ("cap 8", "less_uncapped", "thought_tokens", "point"),
    }[made.kind]
    summary = json.loads(json.dumps(made.summary))
    inner = summary
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] *= 1.01
    (fault,) = resum.differences(made.model_copy(update={"summary": summary}))
    assert fault.startswith(f"/{'/'.join(map(str, place))} says ")


def test_every_record_here_says_what_its_samples_give() -> None:
    for path in REPOSITORY.glob(RECORDS):
        made = taken(path)
        assert list(resum.differences(made)) == [], path


def test_no_prompt_that_parts_follows_from_the_answers_own_digests() -> None:
    made = compared()
    assert made.summary["comparisons"]["bfloat16 alone"]["different"] == 1
    answers = {**made.samples[0], "other_sha256": made.samples[0]["mine_sha256"]}
    said = list(resum.differences(made.model_copy(update={"samples": [answers]})))
    assert "/comparisons/bfloat16 alone/different says 1, its samples give 0" in said


def test_the_check_tells_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "experiments/awq/measurements"
    folder.mkdir(parents=True)
    text = json.loads(QUALITY.read_text())
    text["summary"]["texts"]["top1_agreement"]["point"] = 1.0
    (folder / QUALITY.name).write_text(json.dumps(text))
    (fault,) = records(tmp_path)
    assert "/texts/top1_agreement/point says 1, its samples give 0." in fault


def test_samples_of_another_form_are_told() -> None:
    made = taken(QUALITY).model_copy(update={"samples": []})
    (fault,) = resum.differences(made)
    assert fault.startswith("its samples cannot be summed up: ")
