"""A model beside itself restarted, and beside itself damaged, through real vLLM and the gateway."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.quality import report
from scripts.quality.modes import evenly, read_texts
from scripts.quality.rule import LEAST_ITEMS
from scripts.quality.session import Answers, Questions, ask
from serve.settings import REPOSITORY
from tests.integration.conftest import settings

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

TINY = REPOSITORY / "weights" / "tiny"
# A quarter of them the model ends at once, on one machine some more than on another, and of fewer
# than LEAST_ITEMS that go on nothing is judged.
TEXTS = evenly(read_texts(TINY / "heldout.jsonl"), 2 * LEAST_ITEMS)
# Of each weight of the MLPs: enough to see, and the model still speaks.
NOISE = 0.5
# A tenth of it: by whole distributions, in float32, 0.0009 nats and 98 % of first tokens.
LITTLE = 0.05


@pytest.fixture(scope="module")
def reference(cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    work = tmp_path_factory.mktemp("reference")
    return ask(settings("baseline", cache_root), Questions(TEXTS, (), 4), work, {})


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the damaged model lies, whatever the damage: its path is in the key of what is
    compiled, its weights are not.
    """
    return tmp_path_factory.mktemp("spoilt") / "tiny"


def beside(reference: Answers, model: str, cache_root: Path, work: Path) -> dict[str, Any]:
    """The verdict on ``model``, and the figures that it rests on."""
    questions = Questions(TEXTS, (), 4, [text for text, _ in reference.drawn])
    answers = ask(settings("baseline", cache_root) | {"MODEL": model}, questions, work, {})
    found = report.compared(TEXTS, reference, answers)
    return report.summary(found, found, reference, answers, reference)


def test_a_model_beside_itself_is_no_distance_away_and_at_parity(reference, cache_root, tmp_path):
    told = beside(reference, "tiny", cache_root, tmp_path)
    assert told["verdict"] == "parity"
    assert abs(told["texts"]["kl"]["high"]) < 1e-3
    assert told["texts"]["top1_agreement"]["low"] > 0.99
    assert told["texts"]["compared"] == 1


def test_a_damaged_model_is_far_away_and_not_at_parity(reference, cache_root, spoilt, tmp_path):
    told = beside(reference, str(damaged(spoilt)), cache_root, tmp_path)
    assert told["verdict"] == "not at parity"
    assert told["texts"]["kl"]["low"] > 0.02
    assert told["texts"]["kl_at_least"] > 0.02
    assert told["texts"]["perplexity_variant"] > told["texts"]["perplexity_reference"]


def test_a_little_damage_is_seen_and_is_little(reference, cache_root, spoilt, tmp_path):
    told = beside(reference, str(damaged(spoilt, LITTLE)), cache_root, tmp_path)
    assert told["verdict"] != "not at parity"
    # The bound: of so little, the estimate over these few draws is mostly noise.
    assert 1e-4 < told["texts"]["kl_at_least"] < 0.01
    assert 0.95 < told["texts"]["top1_agreement"]["point"] < 0.999


def test_every_byte_of_a_text_is_in_one_token(reference):
    for text, told in zip(TEXTS, reference.texts, strict=True):
        assert told[-1].start + told[-1].size == len(text.text.encode())
        ends = [one.start + one.size for one in told]
        assert [one.start for one in told[1:]] == ends[:-1]


def damaged(folder: Path, noise: float = NOISE) -> Path:
    """Tiny with noise on the weights of its MLPs: BF16 is the upper half of float32."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    random = np.random.default_rng(0)
    for name, entry in header.items():
        if ".mlp." in name and name.endswith(".weight"):
            begin, end = (start + offset for offset in entry["data_offsets"])
            half = np.frombuffer(raw[begin:end], "<u2").astype("<u4") << 16
            values = half.view("<f4") * (1 + noise * random.standard_normal(half.size))
            raw[begin:end] = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    path.write_bytes(raw)
    return folder
