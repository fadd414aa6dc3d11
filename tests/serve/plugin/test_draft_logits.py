"""Verifying drafts copies no logits that nobody asked for, and decides the same."""

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

STILL_COPIED = """
import inspect
from vllm.v1.sample.rejection_sampler import RejectionSampler as s
print(inspect.getsource(s.forward).count("target_logits = target_logits.clone()"))
"""
# A rejection sampler whose parts only note what they are given.
FORWARD = """
import torch
from types import SimpleNamespace
from unittest.mock import patch
from dataclasses import make_dataclass
from vllm.platforms import current_platform
current_platform.import_kernels()
current_platform.register_triton_kernel_overrides()
from vllm.v1.sample import rejection_sampler as r
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.logits_processor import LogitsProcessors
from serve.plugin.draft_logits import sparing
torch.manual_seed(0)
def run(forward, logprobs, penalties):
    torch.manual_seed(1)
    sampler = r.RejectionSampler(Sampler())
    drafts = [[3, 4], [5, 6]]
    metadata = SpecDecodeMetadata.make_dummy(drafts, device=torch.device("cpu"))
    logits = torch.randint(-3, 4, (6, 32)).to(torch.bfloat16)
    logits[0, 3] = logits[1, 4] = 9
    scale = torch.full((2,), 1.3)
    sampling = SamplingMetadata(
        temperature=None, all_greedy=True, all_random=False, top_p=None, top_k=None,
        generators={}, max_num_logprobs=logprobs, no_penalties=not penalties,
        prompt_token_ids=torch.tensor([[1, 2], [7, 8]]), frequency_penalties=torch.zeros(2),
        presence_penalties=torch.zeros(2), repetition_penalties=scale,
        output_token_ids=[[3], [5]], spec_token_ids=drafts, allowed_token_ids_mask=None,
        bad_words_token_ids={}, logitsprocs=LogitsProcessors())
    clones, clone = [], torch.Tensor.clone
    with patch.object(torch.Tensor, "clone", lambda x, **k: clones.append(x.shape) or clone(x)):
        out = forward(sampler, metadata, None, logits, sampling)
    told = out.logprobs_tensors and [t.tolist() for t in out.logprobs_tensors[:3]]
    return out.sampled_token_ids.tolist(), told, sampler.is_processed_logprobs_mode, clones
stock = r.RejectionSampler.forward
for logprobs in (None, 2):
    for penalties in (False, True):
        a, b = run(stock, logprobs, penalties), run(sparing(stock), logprobs, penalties)
        whole = torch.Size([4, 32])
        print(a[:3] == b[:3], whole in a[3], whole in b[3])
"""


def test_the_copy_is_still_made():
    """Fails when ``draft_logits`` is no longer needed: then delete the patch."""
    done = python(STILL_COPIED, EARLY)
    assert done.stdout.endswith("1\n"), done.stderr


def test_decisions_and_log_probabilities_are_the_same_and_only_the_useless_copy_goes():
    done = python(FORWARD, EARLY)
    unasked, asked = ["True True False"] * 2, ["True True True"] * 2
    assert done.stdout.splitlines()[-4:] == unasked + asked, done.stderr
