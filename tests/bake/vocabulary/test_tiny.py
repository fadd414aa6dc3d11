"""The tiny model pruned: its real tokenizer on any text, its logits by transformers."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from tokenizers import Tokenizer

from bake.vocabulary import prune
from serve.settings import REPOSITORY

from .test_tokenizer import TEXTS

TINY = REPOSITORY / "weights" / "tiny"
COUNTS = REPOSITORY / "experiments" / "vocabularies" / "tiny.json"
SIZE = 8192
WHOLE = Tokenizer.from_file(str(TINY / "tokenizer.json"))
# transformers stays out of this process. Rows of float32 sums, each summed in the same order.
LOGITS = """
import json, sys, torch
from serve.plugin import torchvision_ops
if torchvision_ops.needed():
    torchvision_ops.apply()
from transformers import AutoModelForCausalLM
whole, small = sys.argv[1:]
kept = json.load(open(small + "/vocab_map.json"))["kept"]
ids = [at for at in range(2000, 8000, 97)]
def logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]
before = logits(whole, [kept[one] for one in ids])[:, kept]
after = logits(small, ids)
print(json.dumps([list(after.shape), float((before - after).abs().max())]))
"""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "tiny-8k"
    report = prune(TINY, folder, COUNTS, SIZE)
    assert (report.size, report.unreachable, report.lacking) == (SIZE, 0, 0)
    return folder


@pytest.fixture(scope="module")
def small(pruned):
    return Tokenizer.from_file(str(pruned / "tokenizer.json"))


@pytest.fixture(scope="module")
def kept(pruned):
    return json.loads((pruned / "vocab_map.json").read_text())["kept"]


def ids(made, text):
    return made.encode(text, add_special_tokens=False).ids


@given(text=TEXTS)
def test_any_text_comes_back(small, text):
    there = small.decode(ids(small, text), skip_special_tokens=False)
    assert there == WHOLE.normalizer.normalize_str(text)


@given(text=TEXTS)
def test_text_of_kept_tokens_has_the_same_tokens(small, kept, text):
    before, after = ids(WHOLE, text), [kept[one] for one in ids(small, text)]
    assert after == before or not set(before) <= set(kept)


def test_held_out_text_of_kept_tokens_has_the_same_tokens(small, kept):
    there, same = set(kept), 0
    for line in (TINY / "heldout.jsonl").read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        before = ids(WHOLE, text)
        if set(before) <= there:
            assert [kept[one] for one in ids(small, text)] == before
            same += 1
    assert same > 50


def test_no_data_goes_along(pruned):
    assert not (pruned / "heldout.jsonl").exists()
    assert (pruned / "chat_template.jinja").exists()


@pytest.mark.torch
def test_logits_of_kept_tokens_are_the_same(pruned):
    command = [sys.executable, "-c", LOGITS, str(TINY), str(pruned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    shape, most = json.loads(done.stdout.splitlines()[-1])
    assert shape == [62, SIZE]
    assert most < 1e-4
