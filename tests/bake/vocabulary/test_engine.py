"""A pruned model in vLLM, drafting with its MTP head: it says what the whole one says.

Of kept tokens the logits are the same rows of the same table, so their logarithms of probability
all rise by one number: the dropped tokens' share.
"""

import json

import httpx2
import pytest
from tokenizers import Tokenizer

from bake.vocabulary import prune
from scripts.served import served
from serve.settings import REPOSITORY

# That a pruned model is served is held by tests/integration/test_pruned.py, too.
pytestmark = [pytest.mark.engine, pytest.mark.nightly, pytest.mark.timeout(900)]

TINY = REPOSITORY / "weights" / "tiny"
COUNTS = REPOSITORY / "experiments" / "vocabularies" / "tiny.json"
SIZE, PROMPTS, LENGTH = 8192, 12, 48
# BF16 logits of this model are of up to 32, and 1/8 apart there; sums differ by where they begin.
NEAR = 0.13


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "tiny-8k"
    prune(TINY, folder, COUNTS, SIZE)
    return folder


@pytest.fixture(scope="module")
def kept(pruned):
    return json.loads((pruned / "vocab_map.json").read_text())["kept"]


@pytest.fixture(scope="module")
def prompts(kept):
    """Held-out prompts of which every token is kept, as ids of the whole vocabulary."""
    cut, there = Tokenizer.from_file(str(TINY / "tokenizer.json")), set(kept)
    found = []
    for line in (TINY / "heldout.jsonl").read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        ids = cut.encode(told["prompt"] or told["text"][:300], add_special_tokens=False).ids
        if set(ids) <= there:
            found.append(ids)
    assert len(found) >= PROMPTS
    return found[:PROMPTS]


@pytest.fixture(scope="module")
def answers(pruned, kept, prompts, cache_root, tmp_path_factory):
    """Of each prompt, what the whole and the pruned model say: old ids, and their 20 likeliest."""
    new = {old: at for at, old in enumerate(kept)}
    own = [[new[one] for one in ids] for ids in prompts]
    folder = tmp_path_factory.mktemp("run")
    whole = said("tiny", prompts, cache_root, folder / "whole", lambda token: token)
    small = said(str(pruned), own, cache_root, folder / "small", lambda token: kept[token])
    return list(zip(whole, small, strict=True))


def said(model, prompts, cache_root, folder, old):
    settings = {
        "VARIANT": "seq8-best",
        "MODEL": model,
        "TARGET": "cpu",
        "PREHEAT_CACHE_ROOT": str(cache_root),
        "PREHEAT_CACHE_POLICY": "off",
    }
    with served(settings, folder) as running:
        # The engine itself: what the gateway translates is tested with the gateway.
        engine = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(running.socket)), base_url="http://engine"
        )
        with engine:
            return [one(engine, ids, old) for ids in prompts]


def one(engine, ids, old):
    name = engine.get("/v1/models").json()["data"][0]["id"]
    body = {
        "model": name,
        "prompt": ids,
        "max_tokens": LENGTH,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "logprobs": 20,
        "return_tokens_as_token_ids": True,
    }
    answer = engine.post("/v1/completions", json=body, timeout=120)
    answer.raise_for_status()
    told = answer.json()["choices"][0]["logprobs"]
    tokens = [old(number(token)) for token in told["tokens"]]
    likely = [
        {old(number(token)): value for token, value in top.items()} for top in told["top_logprobs"]
    ]
    return tokens, likely


def number(token):
    return int(token.removeprefix("token_id:"))


def test_it_says_the_same_until_a_dropped_token_would_be_said(answers, kept):
    there, same = set(kept), 0
    for (before, likely), (after, _) in answers:
        for said_before, said_after, top in zip(before, after, likely, strict=False):
            if said_before not in there:
                break
            if said_before != said_after:
                # Two that BF16 cannot tell apart.
                first, second = sorted(top.values(), reverse=True)[:2]
                assert first - second <= NEAR
                break
            same += 1
    assert same > PROMPTS * LENGTH / 4


def test_logits_of_kept_tokens_are_the_same(answers, kept):
    there, compared = set(kept), 0
    for (before, likely_before), (after, likely_after) in answers:
        for at, (old, new) in enumerate(zip(likely_before, likely_after, strict=False)):
            if before[:at] != after[:at] or not set(before[:at]) <= there:
                break
            rises = [new[token] - old[token] for token in old.keys() & new.keys()]
            assert len(rises) >= 5
            assert max(rises) - min(rises) <= NEAR
            assert min(rises) >= -NEAR
            compared += len(rises)
    assert compared > 1000
