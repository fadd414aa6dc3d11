"""A seeded request draws nothing for a part of its prompt, and no offset is asked of a CPU."""

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

# What vLLM's loop does to the generator of a row whose token is discarded.
STILL_FATAL = """
import inspect, torch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as r
print(inspect.getsource(r._bookkeeping_sync).count("gen.set_offset(gen.get_offset() - 4)"))
try:
    torch.Generator().manual_seed(1).get_offset()
except RuntimeError as error:
    print("offset" in str(error))
"""
# A runner of three rows: the first two are seeded, and the first is in the middle of its prompt.
STEP = """
import numpy as np, torch
from types import SimpleNamespace
from serve.plugin.seeded_chunks import restoring, without
reading, saying = (torch.Generator().manual_seed(n) for n in (1, 2))
every = {0: reading, 1: saying}
mask = SimpleNamespace(np=np.array([True, False, True, False]))
runner = SimpleNamespace(
    discard_request_mask=mask, input_batch=SimpleNamespace(generators=every, num_reqs=3))
def sample(self, what, fails=False):
    for one in self.input_batch.generators.values():
        torch.empty(4).exponential_(generator=one)
    if fails:
        raise RuntimeError
    return what
def bookkeep(self, what):
    for row in np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]:
        gen = self.input_batch.generators.get(int(row))
        if gen is not None:
            gen.set_offset(gen.get_offset() - 4)
    return what, sorted(self.input_batch.generators)
before = [one.get_state() for one in every.values()]
print(restoring(sample)(runner, "tokens"))
print([torch.equal(a, b.get_state()) for a, b in zip(before, every.values())])
print(without(bookkeep)(runner, "told"), runner.input_batch.generators is every)
try:
    restoring(sample)(runner, "tokens", fails=True)
except RuntimeError:
    print(torch.equal(before[0], reading.get_state()))
try:
    bookkeep(runner, "told")
except RuntimeError as error:
    print("offset" in str(error))
"""


def test_an_offset_is_still_asked_of_a_generator_that_has_none():
    """Fails when ``seeded_chunks`` is no longer needed: then delete the patch."""
    done = python(STILL_FATAL, EARLY)
    assert done.stdout.endswith("1\nTrue\n"), done.stderr


def test_only_rows_that_read_their_prompt_draw_nothing_and_are_not_looked_at():
    done = python(STEP, EARLY)
    assert done.stdout.splitlines() == [
        "tokens",
        "[True, False]",
        "('told', [1]) True",
        "True",
        "True",
    ], done.stderr
