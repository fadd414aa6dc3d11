"""A pruned, capped model behind the gateway: real vLLM, and clients in the original numbering."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI
from tokenizers import Tokenizer

from bake.vocabulary import prune
from scripts.served import Served, start
from serve.settings import REPOSITORY
from serve.translate import load_map

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

TINY = REPOSITORY / "weights" / "tiny"
COUNTS = REPOSITORY / "experiments" / "vocabularies" / "tiny.json"
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
TEXT = "The capital of France is"
BUDGET = 6
VARIANT = f"""SUMMARY=pruned and capped
MAX_NUM_SEQS=8
REASONING_PARSER=qwen3
ENABLE_THINKING=true
THINKING_TOKEN_BUDGET={BUDGET}
"""


@pytest.fixture(scope="module")
def pruned(cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pruned")
    prune(TINY, folder / "tiny", COUNTS, 8192)
    experiments = folder / "experiments"
    shutil.copytree(REPOSITORY / "experiments" / "targets", experiments / "targets")
    (experiments / "capped").mkdir()
    (experiments / "capped" / "config.env").write_text(VARIANT)
    settings = {
        "VARIANT": "capped",
        "MODEL": str(folder / "tiny"),
        "TARGET": "cpu",
        "PREHEAT_EXPERIMENTS": str(experiments),
        "PREHEAT_CACHE_ROOT": str(cache_root),
        "PREHEAT_CACHE_POLICY": "off",
    }
    running = start(settings, folder / "run")
    yield running
    assert running.stop() == 0


# Kept until the run ends: a client that is thrown away warns of its open socket.
@cache
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


def completed(served: Served, prompt, *, max_tokens: int = 24, **extra):
    """One greedy choice, with its ids."""
    return (
        client(served)
        .completions.create(
            model="tiny",
            prompt=prompt,
            temperature=0,
            max_tokens=max_tokens,
            extra_body={"return_token_ids": True, "repetition_penalty": 1.0, **extra},
        )
        .choices[0]
    )


def test_text_and_the_original_ids_are_the_same_prompt(pruned):
    ids = TOKENIZER.encode(TEXT).ids
    by_text, by_ids = completed(pruned, TEXT), completed(pruned, ids)
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == ids
    assert by_text.text == by_ids.text
    assert by_text.token_ids == by_ids.token_ids


def test_returned_ids_are_text_to_the_original_tokenizer(pruned):
    for prompt in (TEXT, "1 + 2 =", "def f(x):"):
        choice = completed(pruned, prompt, ignore_eos=True)
        assert len(choice.token_ids) == 24
        assert TOKENIZER.decode(choice.token_ids) == choice.text


def test_streamed_ids_are_those_of_the_whole(pruned):
    fields = {"model": "tiny", "prompt": TEXT, "temperature": 0, "max_tokens": 24}
    extra = {"return_token_ids": True, "repetition_penalty": 1.0}
    chunks = client(pruned).completions.create(**fields, stream=True, extra_body=extra)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    whole = completed(pruned, TEXT)
    assert choices[0].prompt_token_ids == whole.prompt_token_ids
    ids = [one for choice in choices for one in getattr(choice, "token_ids", None) or ()]
    assert ids == whole.token_ids


def test_a_bias_forces_an_original_id(pruned):
    (token,) = TOKENIZER.encode(" Paris").ids[-1:]
    choice = completed(pruned, TEXT, max_tokens=3, logit_bias={str(token): 100})
    assert choice.token_ids == [token] * 3


def test_only_allowed_original_ids_are_said_and_one_of_them_stops(pruned):
    allowed = TOKENIZER.encode("a b c").ids
    choice = completed(pruned, TEXT, allowed_token_ids=allowed, stop_token_ids=allowed)
    assert choice.finish_reason == "stop"
    assert choice.stop_reason in allowed
    assert choice.token_ids == [choice.stop_reason]


def test_probabilities_are_told_by_original_ids(pruned):
    wanted = TOKENIZER.encode(" Paris London").ids
    choice = completed(
        pruned,
        TEXT,
        max_tokens=1,
        logprobs=len(wanted),
        logprob_token_ids=wanted,
        return_tokens_as_token_ids=True,
        prompt_logprobs=0,
    )
    assert {f"token_id:{token}" for token in wanted} <= set(choice.logprobs.top_logprobs[0])
    prompt = TOKENIZER.encode(TEXT).ids
    told = [next(iter(one)) for one in choice.prompt_logprobs[1:]]
    assert told == [str(token) for token in prompt[1:]]


def test_tokens_there_and_back(pruned):
    # These two stand beside /v1, not below it.
    top = client(pruned).with_options(base_url=pruned.url)
    tokens = top.post("/tokenize", body={"prompt": TEXT}, cast_to=dict)["tokens"]
    assert tokens == TOKENIZER.encode(TEXT).ids
    assert top.post("/detokenize", body={"tokens": tokens}, cast_to=dict)["prompt"] == TEXT


def test_a_pruned_token_is_refused_by_name(pruned):
    kept = load_map(pruned.log.parents[1] / "tiny" / "vocab_map.json").kept
    gone = next(token for token in range(16384) if token not in kept)
    with pytest.raises(BadRequestError, match=f"token id {gone} .* send the prompt as text"):
        completed(pruned, [*TOKENIZER.encode(TEXT).ids, gone])


def thoughts(served: Served, **extra) -> int:
    answer = client(served).chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "What is 3 + 4 * 5? Explain how."}],
        temperature=0,
        max_tokens=120,
        extra_body={"repetition_penalty": 1.0, **extra},
    )
    assert answer.choices[0].message.content
    return answer.usage.completion_tokens_details.reasoning_tokens


def test_thoughts_end_at_the_variants_cap_and_at_a_requests_own(pruned):
    uncapped = thoughts(pruned, thinking_token_budget=-1)
    assert uncapped > BUDGET
    assert thoughts(pruned) <= BUDGET
    assert thoughts(pruned, thinking_token_budget=None) == thoughts(pruned)
    assert BUDGET < thoughts(pruned, thinking_token_budget=BUDGET + 4) <= BUDGET + 4
