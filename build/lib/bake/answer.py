"""The recorded answer: what the baked engine said to one fixed prompt, token by token.

    answer.json   {"body":…,"path":…,"prompt_token_ids":…,"schema":1,"text":…,"token_ids":…}

Greedy decoding over the same kernels gives the same tokens, so that an image can be asked the
same later, and one token that is another says that something is. The prompt is plain text: no
chat template, with a date in it for one, stands between. Knows nothing of engines, nor who asks.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bake.errors import BakeError
from bake.warm import COMPLETIONS, Request

FILE = "answer.json"
SCHEMA: Literal[1] = 1
# Of 88 tokens that seq8-best drafts for the tiny model here, 25 are accepted: both ways are gone.
PROMPT = "The capital of France is"
TOKENS = 48
# Fewer would say little of the kernels.
LEAST_TOKENS = 16

TokenId = Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """What came back: the prompt as the engine read it, and what it made of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt_token_ids: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    token_ids: Annotated[tuple[TokenId, ...], Field(min_length=LEAST_TOKENS)]
    text: Annotated[str, Field(min_length=1)]


class Recorded(Answer):
    """An answer with the request that it was given to: all that is needed to ask again."""

    version: Literal[1] = Field(SCHEMA, alias="schema")
    path: str = Field(pattern=r"^/[!-~]*$")
    body: dict[str, Any]


class _Choice(Answer):
    # vLLM tells more than is asked for.
    model_config = ConfigDict(extra="ignore")


class _Reply(BaseModel):
    choices: Annotated[tuple[_Choice, ...], Field(min_length=1, max_length=1)]


def request(model: str) -> Request:
    """What is asked of ``model``. Penalties stay as the variant has them: they are levers too."""
    body = {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": TOKENS,
        "temperature": 0,
        "seed": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    return Request(COMPLETIONS, body)


def parse(raw: bytes) -> Answer:
    """The answer in a completion's body ``raw``.

    :raises BakeError: there is not exactly one, or it holds no or too few token ids; named.
    """
    try:
        (choice,) = _Reply.model_validate_json(raw).choices
    except ValidationError as error:
        raise BakeError(f"the fixed prompt: no answer to record: {_first(error)}") from error
    return Answer(**dict(choice))


def record(asked: Request, answer: Answer) -> Recorded:
    """``answer`` with what was asked."""
    return Recorded(schema=SCHEMA, path=asked.path, body=asked.body, **dict(answer))


def dump(recorded: Recorded) -> bytes:
    """Canonical JSON: equal records, equal bytes."""
    tree = recorded.model_dump(mode="json", by_alias=True)
    return (json.dumps(tree, sort_keys=True, separators=(",", ":")) + "\n").encode()


def load(raw: bytes) -> Recorded:
    """The record that is spelled ``raw``.

    :raises BakeError: it is none, or not as ``dump`` spells it.
    """
    try:
        recorded = Recorded.model_validate_json(raw)
    except ValidationError as error:
        raise BakeError(f"{FILE}: {_first(error)}") from error
    if dump(recorded) != raw:
        raise BakeError(f"{FILE}: not in canonical form")
    return recorded


def differs(expected: Answer, got: Answer) -> str:
    """Where the two part: position, expected, got. Empty when they are the same."""
    if where := _parted(expected.prompt_token_ids, got.prompt_token_ids):
        return f"the prompt was read as other tokens: {where}"
    if where := _parted(expected.token_ids, got.token_ids):
        return f"{where}\n  expected {expected.text!r}\n  got      {got.text!r}"
    if expected.text != got.text:
        return f"the same tokens are other text: expected {expected.text!r}, got {got.text!r}"
    return ""


def _parted(expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    if expected == got:
        return ""
    both = min(len(expected), len(got))
    at = next((n for n in range(both) if expected[n] != got[n]), both)
    was, now = (str(ids[at]) if at < len(ids) else "the end" for ids in (expected, got))
    return f"token {at} of {len(expected)}: expected {was}, got {now}"


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
