"""Drafts are chosen and verified faster, and never otherwise."""

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

STILL_TORCHS = """
import inspect
from vllm.v1.sample import rejection_sampler as r
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer as p
print(inspect.getsource(p._greedy_sample).count(".compute_logits(hidden_states).argmax(dim=-1)"),
      inspect.getsource(r.rejection_sample).count("target_logits.argmax(dim=-1)"))
"""
SAME_IDS = """
import torch
from serve.plugin.draft_argmax import argmax
torch.manual_seed(0)
same = []
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    # Few values, so that every row has many equals.
    few = torch.randint(-3, 4, (40, 16384)).to(dtype)
    many = torch.randn(40, 16384).to(dtype)
    nan, low = many.clone(), torch.full((3, 77), float("-inf"), dtype=dtype)
    nan[::2, 9000] = nan[::4, 5] = float("nan")
    strided = many[:, ::3]
    for x in (few, many, nan, low, strided, many[:0]):
        want = x.argmax(dim=-1)
        same.append(torch.equal(argmax(x), want) and argmax(x).dtype == want.dtype)
print(all(same), len(same))
"""
SAME_TOKENS = """
import torch
from types import SimpleNamespace
from vllm.platforms import current_platform
current_platform.import_kernels()
current_platform.register_triton_kernel_overrides()
from vllm.v1.sample import rejection_sampler as r
from serve.plugin.draft_argmax import verifying
torch.manual_seed(0)
patched, same = verifying(r.rejection_sample, r), []
greedy = SimpleNamespace(all_greedy=True, all_random=False)
for counts in ([4, 4, 4], [0, 4, 1], [4]):
    total = sum(counts)
    logits = torch.randint(-2, 3, (total, 64)).float()
    drafts = torch.where(torch.rand(total) < 0.7, logits.argmax(-1), 1).to(torch.int32)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    bonus = torch.randint(0, 64, (len(counts), 1), dtype=torch.int32)
    operands = (drafts, counts, 4, ends, None, logits, bonus, greedy)
    want, got = r.rejection_sample(*operands), patched(*operands)
    same.append(torch.equal(want, got) and want.dtype == got.dtype)
print(same)
"""


def test_both_places_still_ask_torch():
    """Fails when ``draft_argmax`` is no longer needed: then delete the patch."""
    done = python(STILL_TORCHS, EARLY)
    assert done.stdout.endswith("1 1\n"), done.stderr


def test_ids_are_torchs_for_equals_nans_and_every_type():
    done = python(SAME_IDS, EARLY)
    assert done.stdout.endswith("True 18\n"), done.stderr


def test_verified_tokens_are_vllms():
    done = python(SAME_TOKENS, EARLY)
    assert done.stdout.endswith("[True, True, True]\n"), done.stderr
