"""Drafts are chosen from the tokens that are used most, and otherwise as ever."""

import json
from pathlib import Path

import pytest

from bake.image import context
from bake.vocabulary.counts import Counts, dumped
from serve.command import EARLY
from serve.plugin import draft_vocabulary
from serve.plugin.draft_vocabulary import NoDraftVocabulary, draft_ids, named, select
from serve.plugin.patches import DRAFT_VOCABULARY
from serve.settings import REPOSITORY
from tests.serve.plugin.fresh import python

TINY = REPOSITORY / "weights" / "tiny"
TINY_COUNTS = REPOSITORY / "experiments" / "vocabularies" / "tiny.json"
EOS = 16377


def counts(folder: Path, levels: bytes, *always: int) -> Path:
    path = folder / "counts.json"
    path.write_text(dumped(Counts("m", "d", levels, always)))
    return path


def model(folder: Path, **files: object) -> Path:
    """A checkpoint's files by name, less ``.json``."""
    there = folder / "model"
    there.mkdir()
    for name, told in files.items():
        (there / f"{name}.json").write_text(json.dumps(told))
    return there


@pytest.fixture(autouse=True)
def _not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(draft_vocabulary.SIZE, raising=False)


def test_the_most_used_are_chosen_and_of_equals_the_first() -> None:
    assert select(bytes([3, 9, 5, 5, 0, 5]), (), 3) == [1, 2, 3]


def test_what_is_required_stays_however_rare() -> None:
    assert select(bytes([3, 9, 5, 5, 0, 5]), (4, 0), 3) == [0, 1, 4]


def test_specials_and_what_ends_a_text_are_required(tmp_path: Path) -> None:
    added = [{"id": 7, "content": "<a>"}, {"id": 5, "content": '"added_tokens": ['}]
    folder = model(
        tmp_path,
        config={"eos_token_id": None, "text_config": {"eos_token_id": 1}},
        generation_config={"eos_token_id": [2, 3], "pad_token_id": 4},
        tokenizer_config={"added_tokens_decoder": {"6": {"content": "<b>"}}},
        tokenizer={"added_tokens": added, "model": {"vocab": {"added_tokens": 9}}},
    )
    assert named(folder) == {1, 2, 3, 4, 5, 6, 7}
    assert draft_ids(folder, counts(tmp_path, bytes(range(12)), 0), 9, 12) == [*range(8), 11]


def test_what_a_config_says_where_it_has_no_such_token_is_no_id(tmp_path: Path) -> None:
    folder = model(
        tmp_path,
        config={"pad_token_id": -1, "eos_token_id": [3, -1], "bos_token_id": True},
        tokenizer_config={"added_tokens_decoder": {"-1": {"content": "<a>"}}},
    )
    assert named(folder) == {3}
    assert draft_ids(folder, counts(tmp_path, bytes(8)), 2, 8) == [0, 3]


def test_ids_of_a_pruned_vocabulary_are_its_own(tmp_path: Path) -> None:
    kept = [1, 3, 5, 7]
    folder = model(tmp_path, vocab_map={"schema": 1, "original_size": 8, "kept": kept})
    file = counts(tmp_path, bytes([9, 1, 9, 4, 9, 3, 9]), 5, 6)
    # The counts' 5 is number 2 here and stays, their 6 is gone, and of their 7 nothing is known.
    assert draft_ids(folder, file, 2, 4) == [1, 2]
    assert draft_ids(folder, file, 3, 4) == [0, 1, 2]


def test_counts_of_a_larger_vocabulary_are_refused(tmp_path: Path) -> None:
    file = counts(tmp_path, bytes(9))
    with pytest.raises(NoDraftVocabulary, match="counts of 9 tokens, the model has 8"):
        draft_ids(model(tmp_path), file, 4, 8)


@pytest.mark.parametrize("size", [1, 9])
def test_a_size_that_cannot_be_says_what_can(tmp_path: Path, size: int) -> None:
    file = counts(tmp_path, bytes(8), 0, 1)
    with pytest.raises(NoDraftVocabulary, match=f"={size}: expected from 2 .* to 8 "):
        draft_ids(model(tmp_path), file, size, 8)


def test_tiny_keeps_its_specials_and_the_same_ids_again() -> None:
    ids = draft_ids(TINY, TINY_COUNTS, 2048, 16384)
    assert len(ids) == 2048
    assert ids == sorted(set(ids))
    assert {EOS, *range(16375, 16384)} <= {*ids}
    assert {*ids} <= {*draft_ids(TINY, TINY_COUNTS, 4096, 16384)}


def test_nothing_is_patched_that_was_not_asked_for() -> None:
    assert not draft_vocabulary.needed()


def test_an_engine_without_it_is_not_what_was_asked_for() -> None:
    assert DRAFT_VOCABULARY.required


HEADS = """
import torch
from types import SimpleNamespace
import vllm._custom_ops
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from serve.plugin.draft_vocabulary import chooser
torch.manual_seed(0)
rows, width = 1024, 320
# Small whole numbers: sums are exact in every kernel, and many scores are equal.
weight = torch.randint(-2, 3, (rows, width)).to(torch.bfloat16)
hidden = torch.randint(-2, 3, (9, width)).to(torch.bfloat16)
ids = sorted(torch.randperm(rows)[:512].tolist())
class Packed:
    def apply(self, head, x, bias=None): return x @ weight.T
empty = torch.empty(0)
heads = [
    SimpleNamespace(quant_method=UnquantizedEmbeddingMethod(), weight=weight),
    # What vLLM leaves of a plain linear once it is packed for its kernel; and a quantized head.
    SimpleNamespace(quant_method=UnquantizedLinearMethod(), weight=empty, embedding_dim=width),
    SimpleNamespace(quant_method=Packed(), weight_packed=empty, embedding_dim=width),
]
heads[1].quant_method.apply = Packed().apply
scores = (hidden.float() @ weight.float().T)
outside = torch.ones(rows, dtype=torch.bool); outside[ids] = False
want = scores.masked_fill(outside, float("-inf")).argmax(-1)
same = []
for head in heads:
    got = chooser(head, ids, torch.bfloat16, "cpu")(hidden)
    same.append(torch.equal(got, want) and got.dtype == torch.int64)
    same.append(torch.equal(chooser(head, ids, torch.bfloat16, "cpu")(hidden[:1], 3), want[:1]))
print(same)
"""


@pytest.mark.torch
def test_the_choice_is_the_best_of_what_is_kept_whatever_the_head_is_packed_as() -> None:
    done = python(HEADS, EARLY)
    assert done.stdout.endswith(f"{[True] * 6}\n"), done.stderr


LOADED = """
import torch
from pathlib import Path
from types import SimpleNamespace as N
import vllm._custom_ops
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from serve.plugin.draft_vocabulary import NoDraftVocabulary, narrowing
counts, folder = {counts!r}, {folder!r}
def drafter(ranks=1, method="greedy", top=True):
    head = N(quant_method=UnquantizedEmbeddingMethod(), weight=torch.eye(16, 32))
    model = N(lm_head=head, **(dict(get_top_tokens=None) if top else {{}}))
    config = N(model=folder, dtype=torch.float32, get_vocab_size=lambda: 16)
    told = N(parallel_config=N(tensor_parallel_size=ranks), model_config=config,
             speculative_config=N(draft_sample_method=method))
    return N(vllm_config=told, model=model, device="cpu", use_local_argmax_reduction=False)
load = narrowing(lambda self, target: None, 4, Path(counts))
one = drafter(); load(one, None)
print(one.use_local_argmax_reduction, one.model.get_top_tokens(torch.eye(16, 32)[12:]).tolist())
for refused in (drafter(ranks=2), drafter(method="probabilistic"), drafter(top=False)):
    try: load(refused, None)
    except NoDraftVocabulary as error: print(error)
"""


@pytest.mark.torch
def test_a_loaded_drafter_is_asked_for_the_best_of_them_or_the_engine_stops(
    tmp_path: Path,
) -> None:
    file = counts(tmp_path, bytes(range(16)))
    code = LOADED.format(counts=str(file), folder=str(model(tmp_path)))
    done = python(code, EARLY)
    assert done.stdout.splitlines()[-4:] == [
        "True [12, 13, 14, 15]",
        "PREHEAT_DRAFT_VOCAB_SIZE: the head is sliced over 2 ranks",
        "PREHEAT_DRAFT_VOCAB_SIZE: drafts are sampled (probabilistic), expected greedy ones",
        "PREHEAT_DRAFT_VOCAB_SIZE: SimpleNamespace is not asked for its best tokens by vLLM",
    ], done.stderr


STILL_VLLMS = """
import inspect
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer as one
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator as two
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
    TargetDependentARSpeculator as three)
from vllm.model_executor.models.qwen3_5_mtp import Qwen3_5MTP
from vllm.config.speculative import SpeculativeConfig
sources = [inspect.getsource(x) for x in (one._greedy_sample, two.get_draft_top_tokens)]
asked = [s.count("self.model.get_top_tokens(hidden_states)") for s in sources]
greedy = inspect.getsource(two.sample_draft).count("self.use_local_argmax_reduction")
through = inspect.getsource(three.load_model).count("super().load_model(target_model)")
default = [f.default for f in SpeculativeConfig.__dataclass_fields__.values()
           if f.name == "draft_sample_method"]
print(asked, greedy, through, hasattr(Qwen3_5MTP, "get_top_tokens"), default,
      "use_local_argmax_reduction" in inspect.getsource(SpeculativeConfig.compute_hash))
"""


@pytest.mark.torch
def test_both_model_runners_still_ask_the_drafter_for_its_best_tokens() -> None:
    """Fails when vLLM asks another way: then ``draft_vocabulary`` is asked by nobody."""
    done = python(STILL_VLLMS, EARLY)
    assert done.stdout.endswith("[1, 1] 1 1 True ['greedy'] False\n"), (done.stdout, done.stderr)


def test_an_image_holds_the_counts() -> None:
    assert "experiments/vocabularies/tiny.json" in context.files(REPOSITORY, ["tiny"], {})
