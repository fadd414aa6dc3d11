"""The ``anthropic`` client gets through the gateway exactly what it gets from vLLM directly."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from anthropic import Anthropic, APIStatusError, NotFoundError

from tests.integration.asked import CLAUDE_CALLED, CLAUDE_TOOL, TALK
from tests.integration.clients import claude_direct, claude_via, settled

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

# This client has no such argument any more; the engine has.
GREEDY = {"temperature": 0}
MESSAGES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled with a seedless top_k of one": {"extra_body": {"temperature": 1, "top_k": 1}},
    "a system prompt": {"system": "Be brief."},
    "a system prompt in blocks": {"system": [{"type": "text", "text": "Be brief."}]},
    "content in blocks": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "And of Spain?"}]}]
    },
    "a stop sequence": {"stop_sequences": ["is"]},
    "a tool's answer": {"messages": CLAUDE_CALLED},
    "thinking off": {"thinking": {"type": "disabled"}},
    "metadata": {"metadata": {"user_id": "me"}},
}
# What this engine does not do, or not for this request, and how a client hears of it.
REFUSED: dict[str, Callable[[Anthropic], object]] = {
    "tools it has no parser for": lambda client: message(client, tools=[CLAUDE_TOOL]),
    "a named tool": lambda client: message(
        client, tools=[CLAUDE_TOOL], tool_choice={"type": "tool", "name": "weather"}
    ),
    "thoughts it cannot tell apart": lambda client: message(
        client, max_tokens=2048, thinking={"type": "enabled", "budget_tokens": 1024}
    ),
    "no messages": lambda client: message(client, messages=[]),
    "a stream from an unknown model": lambda client: message(client, model="x", stream=True),
    "a prompt that is too long": lambda client: message(
        client, messages=[{"role": "user", "content": "word " * 5000}]
    ),
    "tokens of an unknown model": lambda client: client.messages.count_tokens(
        model="x", messages=TALK
    ),
}


def message(client, **fields):
    return client.messages.create(
        **{"model": "tiny", "messages": TALK, "max_tokens": 16, "extra_body": GREEDY, **fields}
    )


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message_is_the_same_through_the_gateway(seq8, case):
    through = message(claude_via(seq8), **MESSAGES[case])
    assert settled(through) == settled(message(claude_direct(seq8), **MESSAGES[case]))
    assert through.usage.output_tokens > 0


@pytest.mark.parametrize("case", MESSAGES)
def test_a_streamed_message_says_the_same_through_the_gateway(seq8, case):
    fields = MESSAGES[case] | {"stream": True}
    through = told(message(claude_via(seq8), **fields))
    assert through == told(message(claude_direct(seq8), **fields))
    assert through["kinds"][0] == "message_start"
    assert through["kinds"][-1] == "message_stop"


def told(stream) -> dict[str, Any]:
    """What a stream's events amount to; how they cut the text is the engine's timing."""
    events = list(stream)
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    return {
        "kinds": [kind for kind, _ in groupby(events, lambda event: event.type)],
        "text": "".join(delta.text for delta in deltas),
        "start": settled(events[0].message),
        "ends": [settled(event) for event in events if event.type == "message_delta"],
    }


def test_the_clients_own_stream_puts_a_message_together(seq8):
    whole, directly = (_put_together(client) for client in (claude_via(seq8), claude_direct(seq8)))
    assert settled(whole) == settled(directly)
    assert settled(whole)["content"] == settled(message(claude_via(seq8)))["content"]


def _put_together(client):
    fields = {"model": "tiny", "messages": TALK, "max_tokens": 16, "extra_body": GREEDY}
    with client.messages.stream(**fields) as stream:
        return stream.get_final_message()


def test_a_stop_sequence_ends_the_message_and_is_named(seq8):
    whole = message(claude_via(seq8)).content[0].text
    cut = message(claude_via(seq8), stop_sequences=["is"])
    assert cut.content[0].text == whole[: whole.index("is")]
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", "is")


@pytest.mark.parametrize("fields", [{}, {"system": "Be brief."}], ids=["plain", "system"])
def test_tokens_are_counted_alike(seq8, fields):
    through, directly = (
        client.messages.count_tokens(model="tiny", messages=TALK, **fields).input_tokens
        for client in (claude_via(seq8), claude_direct(seq8))
    )
    assert through == directly == message(claude_via(seq8), **fields).usage.input_tokens


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_reaches_the_client_as_the_engine_put_it(seq8, case):
    heard = []
    for client in (claude_via(seq8), claude_direct(seq8)):
        with pytest.raises(APIStatusError) as caught:
            REFUSED[case](client)
        heard.append((type(caught.value), caught.value.status_code, caught.value.body))
    assert heard[0] == heard[1]


def test_an_unknown_model_is_not_found(seq8):
    with pytest.raises(NotFoundError, match="does not exist"):
        message(claude_via(seq8), model="claude-unheard-of")


def test_what_vllm_has_not_is_not_found(seq8):
    with pytest.raises(NotFoundError, match="/v1/messages/batches"):
        claude_via(seq8).messages.batches.list()
