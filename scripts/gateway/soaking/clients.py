"""Kinds of visits that are made by people's own libraries: openai, anthropic, httpx.

Each library is used both ways, waiting and asynchronous, one client of each for all visits, as a
program would; one kind makes a client of its own each time.
"""

import asyncio
import json
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anthropic
import httpx2
import openai

from scripts.gateway.soaking.hands import CHAT, COUNTED, Site, length, talk
from scripts.gateway.soaking.raw import end_of, refusal
from scripts.gateway.soaking.visits import LONGEST_SECONDS, WHOLE, Amiss, Kind

ID = "x-request-id"
REGEX = r'\{"city": "[A-Z][a-z]{2,9}", "known": (true|false)\}'
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "known": {"type": "boolean"}},
    "required": ["city", "known"],
    "additionalProperties": False,
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "The weather now", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees"},
]
MOST_LOGPROBS = 3

# Made for one call by what a client offers; the libraries' own types differ without end.
Ask = Callable[["Clients", random.Random], Awaitable[str]]


class Clients:
    """One client of each library and way; all are closed together."""

    def __init__(self, site: Site) -> None:
        self.site = site
        waiting, awaited = partial(self._hooked, tag, same), partial(self._hooked, atag, asame)
        v1: dict[str, Any] = {
            "base_url": f"{site.url}/v1",
            "max_retries": 0,
            "timeout": LONGEST_SECONDS,
        }
        root = v1 | {"base_url": site.url}
        held, counted = site.keys["open"], site.keys[COUNTED]
        self.openai: Any = openai.OpenAI(
            api_key=held, http_client=waiting(openai.DefaultHttpxClient), **v1
        )
        self.aopenai: Any = openai.AsyncOpenAI(
            api_key=held, http_client=awaited(openai.DefaultAsyncHttpxClient), **v1
        )
        self.counted: Any = openai.AsyncOpenAI(
            api_key=counted, http_client=awaited(openai.DefaultAsyncHttpxClient), **v1
        )
        self.claude: Any = anthropic.Anthropic(
            api_key=held, http_client=waiting(anthropic.DefaultHttpxClient), **root
        )
        self.aclaude: Any = anthropic.AsyncAnthropic(
            api_key=held, http_client=awaited(anthropic.DefaultAsyncHttpxClient), **root
        )
        self.http = awaited(httpx2.AsyncClient, base_url=site.url, timeout=LONGEST_SECONDS)

    @staticmethod
    def _hooked(on_request: Any, on_response: Any, make: Any, **more: Any) -> Any:
        return make(event_hooks={"request": [on_request], "response": [on_response]}, **more)

    async def close(self) -> None:
        """Close every connection."""
        for one in (self.openai, self.claude):
            one.close()
        for each in (self.aopenai, self.counted, self.aclaude):
            await each.close()
        await self.http.aclose()

    def chat(self, chance: random.Random, **fields: Any) -> dict[str, Any]:
        """What the ``openai`` client is asked for."""
        common = {"model": self.site.model, "messages": talk(chance), "max_tokens": length(chance)}
        return common | fields

    def kinds(self) -> list[Kind]:
        """All that these clients do."""
        return [
            Kind(name, partial(self._visit, ask), frozenset((end,)), weight)
            for name, ask, weight, end in KINDS
        ]

    async def _visit(self, ask: Ask, chance: random.Random) -> str:
        try:
            return await ask(self, chance)
        except (openai.APIStatusError, anthropic.APIStatusError) as error:
            return refusal(error.status_code, error.response.content)


def tag(request: Any) -> None:
    """Give a request an id of its own."""
    request.headers[ID] = uuid.uuid4().hex


def same(response: Any) -> None:
    """Its answer must bear it.

    :raises Amiss: it is somebody else's.
    """
    given, wanted = response.headers.get(ID), response.request.headers[ID]
    if given != wanted:
        raise Amiss(f"the answer's {ID} is {given}, not {wanted}")


async def atag(request: Any) -> None:
    """``tag``."""
    tag(request)


async def asame(response: Any) -> None:
    """``same``."""
    same(response)


def must(holds: object, words: str) -> None:
    """:raises Amiss: it does not hold."""
    if not holds:
        raise Amiss(words)


def _check(answer: Any) -> None:
    must(answer.usage and answer.usage.completion_tokens, f"no tokens: {answer.usage}")
    ends = [choice.finish_reason for choice in answer.choices]
    must(ends and all(ends), f"no finish_reason: {ends}")


def _check_stream(chunks: Sequence[Any]) -> None:
    ids = {chunk.id for chunk in chunks}
    must(len(ids) == 1, f"events of several answers: {ids}")
    must(any(c.finish_reason for chunk in chunks for c in chunk.choices), "no finish_reason")


async def chat(clients: Clients, chance: random.Random) -> str:
    asked = clients.chat(chance, temperature=chance.choice((0, 0.7)))
    _check(await asyncio.to_thread(clients.openai.chat.completions.create, **asked))
    return WHOLE


async def own_client(clients: Clients, chance: random.Random) -> str:
    asked = clients.chat(chance, max_tokens=4)
    url, key = f"{clients.site.url}/v1", clients.site.keys[COUNTED]
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        made: Any = client
        _check(await made.chat.completions.create(**asked))
    return WHOLE


async def chat_stream(clients: Clients, chance: random.Random) -> str:
    asked = clients.chat(chance, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in await clients.aopenai.chat.completions.create(**asked)]
    must(chunks and chunks[-1].usage, "no usage at the stream's end")
    _check_stream(chunks)
    return WHOLE


async def chat_stream_waiting(clients: Clients, chance: random.Random) -> str:
    asked = clients.chat(chance, stream=True)

    def read() -> list[Any]:
        return list(clients.openai.chat.completions.create(**asked))

    chunks = await asyncio.to_thread(read)
    _check_stream(chunks)
    return WHOLE


async def counted_stream(clients: Clients, chance: random.Random) -> str:
    """The gateway asks the engine for usage, and keeps it."""
    asked = clients.chat(chance, stream=True)
    chunks = [chunk async for chunk in await clients.counted.chat.completions.create(**asked)]
    must(all(chunk.choices for chunk in chunks), "a chunk that was not asked for")
    _check_stream(chunks)
    return WHOLE


async def completion(clients: Clients, chance: random.Random) -> str:
    prompts = [f"{talk(chance)[0]['content']} {n}" for n in range(2)]
    answer = await clients.aopenai.completions.create(
        model=clients.site.model, prompt=prompts, max_tokens=length(chance), echo=True
    )
    _check(answer)
    said = [choice.text for choice in sorted(answer.choices, key=lambda one: int(one.index))]
    mine = all(text.startswith(prompt) for text, prompt in zip(said, prompts, strict=True))
    must(mine, f"another one's answer: {said}, asked {prompts}")
    return WHOLE


async def completion_stream(clients: Clients, chance: random.Random) -> str:
    prompt = talk(chance)[0]["content"]
    stream = await clients.counted.completions.create(
        model=clients.site.model, prompt=prompt, max_tokens=length(chance), echo=True, stream=True
    )
    choices = [choice async for chunk in stream for choice in chunk.choices]
    said = "".join(choice.text for choice in choices)
    must(said.startswith(prompt), f"another one's answer: {said!r}, asked {prompt!r}")
    must(choices[-1].finish_reason, "no finish_reason")
    return WHOLE


async def structured(clients: Clients, chance: random.Random) -> str:
    schema = {"type": "json_schema", "json_schema": {"name": "capital", "schema": SCHEMA}}
    regex = {"extra_body": {"structured_outputs": {"regex": REGEX}}}
    how: dict[str, Any] = chance.choice(({"response_format": schema}, regex))
    asked = clients.chat(chance, max_tokens=100, temperature=0, **how)
    answer = await asyncio.to_thread(clients.openai.chat.completions.create, **asked)
    _check(answer)
    said = answer.choices[0].message.content
    with suppress(ValueError):
        must(set(json.loads(said)) == {"city", "known"}, f"another form: {said!r}")
        return WHOLE
    must(answer.choices[0].finish_reason == "length", f"no JSON: {said!r}")
    return WHOLE


async def logprobs(clients: Clients, chance: random.Random) -> str:
    asked = clients.chat(chance, logprobs=True, top_logprobs=MOST_LOGPROBS)
    answer = await clients.aopenai.chat.completions.create(**asked)
    _check(answer)
    told = answer.choices[0].logprobs.content
    must(len(told) == answer.usage.completion_tokens, f"{len(told)} of {answer.usage}")
    must(all(len(one.top_logprobs) >= MOST_LOGPROBS for one in told), "too few of them")
    return WHOLE


async def tools(clients: Clients, chance: random.Random) -> str:
    """Offered, and answered before."""
    messages = [*talk(chance), *CALLED]
    asked = clients.chat(chance, messages=messages, tools=[TOOL], tool_choice="none")
    _check(await clients.aopenai.chat.completions.create(**asked))
    return WHOLE


async def tool_named(clients: Clients, chance: random.Random) -> str:
    named = {"type": "function", "function": {"name": "weather"}}
    asked = clients.chat(chance, tools=[TOOL], tool_choice=named)
    _check(await clients.aopenai.chat.completions.create(**asked))
    return WHOLE


async def response(clients: Clients, chance: random.Random) -> str:
    answer = await asyncio.to_thread(
        clients.openai.responses.create,
        model=clients.site.model,
        input=talk(chance)[0]["content"],
        max_output_tokens=length(chance),
    )
    must(answer.usage.output_tokens, f"no tokens: {answer.usage}")
    return WHOLE


async def response_stream(clients: Clients, chance: random.Random) -> str:
    stream = await clients.aopenai.responses.create(
        model=clients.site.model,
        input=talk(chance)[0]["content"],
        max_output_tokens=length(chance),
        stream=True,
    )
    kinds = [event.type async for event in stream]
    must(kinds[-1] in ("response.completed", "response.incomplete"), f"ended by {kinds[-1]}")
    return WHOLE


async def models(clients: Clients, _: random.Random) -> str:
    found = await asyncio.to_thread(clients.openai.models.list)
    must(clients.site.model in [one.id for one in found], f"not among {found}")
    return WHOLE


def _message(clients: Clients, chance: random.Random) -> dict[str, Any]:
    fields = {"messages": talk(chance), "max_tokens": length(chance)}
    return {"model": clients.site.model, **fields}


async def message(clients: Clients, chance: random.Random) -> str:
    answer = await asyncio.to_thread(clients.claude.messages.create, **_message(clients, chance))
    must(answer.usage.output_tokens and answer.stop_reason, f"no end: {answer}")
    return WHOLE


async def message_stream(clients: Clients, chance: random.Random) -> str:
    asked = _message(clients, chance) | {"stream": True}
    kinds = [event.type async for event in await clients.aclaude.messages.create(**asked)]
    must(kinds[-1] == "message_stop", f"ended by {kinds[-1]}")
    return WHOLE


async def count_tokens(clients: Clients, chance: random.Random) -> str:
    asked = {"model": clients.site.model, "messages": talk(chance)}
    must((await clients.aclaude.messages.count_tokens(**asked)).input_tokens, "no tokens")
    return WHOLE


async def http_stream(clients: Clients, chance: random.Random) -> str:
    site = clients.site
    headers = site.headers(COUNTED, **{"content-type": "application/json"})
    asked = {"content": site.chat(chance, stream=True), "headers": headers}
    async with clients.http.stream("POST", CHAT, **asked) as answer:
        body = await answer.aread()
    return end_of(answer.status_code, answer.headers, body)


async def tokenize(clients: Clients, chance: random.Random) -> str:
    site = clients.site
    body = {"model": site.model, "prompt": talk(chance)[0]["content"]}
    answer = await clients.http.post("/tokenize", json=body, headers=site.headers())
    must(answer.status_code == 200 and answer.json()["count"], answer.text)
    return WHOLE


# Name, what is done, how often beside the others, how it must end.
KINDS: tuple[tuple[str, Ask, int, str], ...] = (
    ("openai: chat", chat, 8, WHOLE),
    ("openai: chat stream", chat_stream, 8, WHOLE),
    ("openai: chat stream, waiting", chat_stream_waiting, 5, WHOLE),
    ("openai: chat stream, counted", counted_stream, 5, WHOLE),
    ("openai: completions", completion, 4, WHOLE),
    ("openai: completion stream, counted", completion_stream, 4, WHOLE),
    ("openai: structured output", structured, 3, WHOLE),
    ("openai: log-probabilities", logprobs, 3, WHOLE),
    ("openai: tools", tools, 2, WHOLE),
    # This engine has no parser for calls, and says so.
    ("openai: tool that must be called", tool_named, 1, "400 engine"),
    ("openai: response", response, 3, WHOLE),
    ("openai: response stream", response_stream, 3, WHOLE),
    ("openai: models", models, 2, WHOLE),
    ("openai: a client of its own", own_client, 1, WHOLE),
    ("anthropic: message", message, 5, WHOLE),
    ("anthropic: message stream", message_stream, 5, WHOLE),
    ("anthropic: count tokens", count_tokens, 2, WHOLE),
    ("httpx: stream", http_stream, 6, WHOLE),
    ("httpx: tokenize", tokenize, 2, WHOLE),
)
