"""A capped thought ends in the same place with drafts and without."""

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

# vLLM's own bookkeeping of thoughts, between a model that is a rule and a drafter that knows the
# rule but errs now and then: what is said with K drafts must be what is said with none.
SIMULATED = """
import random, sys
from types import SimpleNamespace
import torch
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder
from serve.plugin import thought_end

if sys.argv[1] == "patched":
    assert thought_end.needed()
    thought_end.apply()
    assert not thought_end.needed()
START, END, SIZE, LENGTH = 1, 2, 90, 20
CONFIG = SimpleNamespace(reasoning_start_token_ids=[START], reasoning_end_token_ids=[END])

def next_of(said, ends_at):
    if END in said:
        return 50 + len(said) - said.index(END)
    return END if len(said) == ends_at else 10 + len(said)

def row(said, ends_at):
    logits = torch.zeros(SIZE)
    logits[next_of(said, ends_at)] = 1
    return logits

def drafted(said, ends_at, k, errs, chance):
    drafts = []
    for _ in range(k):
        drafts.append(9 if chance.random() < errs else next_of(said + drafts, ends_at))
    return drafts

def spoken(budget, ends_at, k=0, errs=0.0):
    chance = random.Random(3)
    holder, said = Holder(CONFIG, 1, k, torch.device("cpu"), False), []
    holder._state[0] = holder._init_state_entry([5, START, 6], budget)
    while len(said) < LENGTH:
        # The first token is of the prompt's own step, which has no drafts.
        drafts = drafted(said, ends_at, k if said else 0, errs, chance)
        holder.update_state([said], [drafts] if k else None)
        bonus = row(said + drafts, ends_at)[None]
        bonus = holder.apply_to_logits(bonus, bool(drafts), [drafts] if k else None)
        rows = [row(said + drafts[:at], ends_at) for at in range(len(drafts))]
        chosen = []
        if drafts:
            rows = holder.apply_to_logits(torch.stack(rows), False, [drafts])
            chosen = rows.argmax(-1).tolist()
        right = [a == b for a, b in zip(chosen, drafts)] + [False]
        said += [*chosen, int(bonus[0].argmax())][: right.index(False) + 1]
    return said[:LENGTH]

runs = [
    spoken(budget, ends_at, k, errs) == spoken(budget, ends_at)
    for budget in range(8) for ends_at in range(10) for k in (1, 4, 7) for errs in (0.0, 0.4)
]
print(runs.count(False), len(runs))
"""


@pytest.mark.timeout(300)
def test_vllm_still_forces_an_end_after_the_end() -> None:
    """Fails when ``thought_end`` is no longer needed: then delete the patch."""
    done = python(SIMULATED, EARLY, "as it is")
    assert done.returncode == 0, done.stderr[-2000:]
    wrong, runs = map(int, done.stdout.split()[-2:])
    assert 0 < wrong < runs


@pytest.mark.timeout(300)
def test_with_the_patch_drafts_change_nothing_of_what_is_said() -> None:
    done = python(SIMULATED, EARLY, "patched")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["0", "480"]
