"""Asks a server for its log-probabilities of texts. Knows its protocol, not what they are for."""

from collections.abc import Iterator, Sequence
from typing import Any

from scripts.quality.divergence import NotAligned, Position
from scripts.served import post

# vLLM's most without --max-logprobs, which no variant sets.
TOP = 20


def scored(url: str, model: str, text: str) -> list[Position]:
    """Every token of ``text`` but the first, with the ``TOP`` most probable at its place.

    Token ids are sent, not text: a server could put a token before it.

    :raises NotAligned: its tokens are not pieces of the text's bytes.
    :raises scripts.served.Failed: the server answers with an error, or not at all.
    """
    asked = {"model": model, "prompt": text, "add_special_tokens": False}
    told = post(url, "/tokenize", asked | {"return_token_strs": True})
    ids, sizes = told["tokens"], [len(word) for word in told["token_strs"]]
    if sum(sizes) != len(text.encode()):
        raise NotAligned(f"{model}: its tokens are not pieces of bytes (byte-level BPE): {text!r}")
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0}
    answer = post(url, "/v1/completions", body | {"prompt_logprobs": TOP})
    return list(positions(ids, sizes, answer["choices"][0]["prompt_logprobs"]))


def continued(url: str, model: str, beginning: str, tokens: int, seed: int) -> str:
    """What the model draws after ``beginning``: from its whole distribution, as it is."""
    body = {"model": model, "prompt": beginning, "max_tokens": tokens, "seed": seed}
    whole = {"temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    answer = post(url, "/v1/completions", body | whole | {"skip_special_tokens": False})
    return str(answer["choices"][0]["text"])


def positions(
    ids: Sequence[int], sizes: Sequence[int], told: Sequence[dict[str, Any] | None]
) -> Iterator[Position]:
    """vLLM's ``prompt_logprobs``, ``sizes`` bytes a token, as positions; the first has none."""
    start = 0
    for token, size, here in zip(ids, sizes, told, strict=True):
        if here:
            top = {int(one): entry["logprob"] for one, entry in here.items()}
            first = max(top, key=lambda one: top[one])
            yield Position(token, start, size, first, top, here[str(token)]["rank"] <= TOP)
        start += size
