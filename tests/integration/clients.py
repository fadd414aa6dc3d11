"""The same client twice: through the gateway, and past it to vLLM's own socket."""

from functools import cache
from typing import Any

import httpx2
from anthropic import Anthropic
from openai import OpenAI

from scripts.served import Served

# What differs between any two answers to the same request.
CHANGING = frozenset(("completed_at", "created", "created_at", "id", "item_id", "request_id"))


# Kept until the run ends: a client that is thrown away warns of its open socket.
@cache
def via(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


@cache
def direct(served: Served) -> OpenAI:
    return OpenAI(
        base_url="http://engine/v1", api_key="unused", max_retries=0, http_client=_socket(served)
    )


@cache
def claude_via(served: Served) -> Anthropic:
    return Anthropic(base_url=served.url, api_key="unused", max_retries=0)


@cache
def claude_direct(served: Served) -> Anthropic:
    return Anthropic(
        base_url="http://engine", api_key="unused", max_retries=0, http_client=_socket(served)
    )


def _socket(served: Served) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(served.socket)))


def settled(answer: Any) -> dict[str, Any]:
    """A client's object as plain values, without what changes."""
    plain: dict[str, Any] = _without_changing(answer.model_dump(mode="json"))
    return plain


def _without_changing(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_changing(v) for k, v in value.items() if k not in CHANGING}
    return [_without_changing(item) for item in value] if isinstance(value, list) else value
