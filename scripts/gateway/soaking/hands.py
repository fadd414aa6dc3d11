"""Kinds of visits that are made byte by byte: streams, leavers, slow readers, what is refused."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.gateway.soaking.raw import Headers, end_of, exchange, raw, refusal
from scripts.gateway.soaking.visits import LEFT, WHOLE, Amiss, Kind

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
# Names of keys: one without a limit, one whose tokens are counted and which may not go everywhere,
# one that may ask little.
OPEN, COUNTED, MEAGRE = "open", "counted", "meagre"
COUNTED_ROUTES = "/v1/chat/*,/v1/completions,/v1/models"
MEAGRE_PER_MINUTE = 2
# More than anybody waits for here.
ENDLESS_TOKENS = 1500
# A slow reader's buffer, its pause after each piece, and the tokens that it reads so: it is slower
# than the engine, whose 20 log-probabilities a token then wait in the gateway.
SLOW_BUFFER, SLOW_SECONDS, SLOW_TOKENS = 4096, 0.1, 400
BIG_TOKENS = 2500
TOO_LONG = "word " * 6000
MEGABYTE = "and then some more " * (2**20 // 19)
TOO_LARGE = 65 * 2**20
DEADLINE_SECONDS = 0.4
PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write a line about the sea.",
    "Count from one to ten.",
    "How does one boil an egg?",
    "Wie heißt die Hauptstadt von Österreich?",
)
SEEN = frozenset((WHOLE, LEFT))
# A client that leaves early may have left before anything of it came.
PERHAPS = (0, 1)


@dataclass(frozen=True)
class Site:
    """What is visited: an address, a model, secrets by the names of their keys."""

    url: str
    model: str
    keys: Mapping[str, str]

    def headers(self, key: str = OPEN, **more: str) -> Headers:
        """Those of a request by the holder of ``key``."""
        return {"authorization": f"Bearer {self.keys[key]}", **more} if self.keys else more

    def chat(self, chance: random.Random, **fields: Any) -> bytes:
        """The body of a chat."""
        body = {"model": self.model, "messages": talk(chance), "max_tokens": length(chance)}
        return json.dumps(body | fields).encode()


def talk(chance: random.Random) -> list[dict[str, Any]]:
    """A prompt that was not seen before, for the most part."""
    said = f"{chance.choice(PROMPTS)} ({chance.randrange(10_000)})"
    return [{"role": "user", "content": said}]


def length(chance: random.Random) -> int:
    """Tokens of an answer, at most."""
    return chance.choice((2, 4, 8, 16, 48))


def endless(site: Site, chance: random.Random, *, stream: bool = True) -> bytes:
    """The body of a chat that goes on and on."""
    return site.chat(chance, stream=stream, max_tokens=ENDLESS_TOKENS, ignore_eos=True)


def streams(site: Site) -> list[Kind]:
    """Those that want all of it, and ask in another way than libraries do."""

    async def stream(chance: random.Random) -> str:
        async with raw(site.url) as wire:
            wire.ask("POST", CHAT, site.headers(), site.chat(chance, stream=True))
            status, headers = await wire.head()
            return end_of(status, headers, await wire.whole(headers))

    async def kept(chance: random.Random) -> str:
        """Three on one connection, one after the other."""
        async with raw(site.url) as wire:
            for number in range(3):
                more = {"connection": "close"} if number == 2 else {}
                body = site.chat(chance, stream=number != 1, max_tokens=4)
                wire.ask("POST", CHAT, site.headers(COUNTED, **more), body)
                status, headers = await wire.head()
                if (end := end_of(status, headers, await wire.whole(headers))) != WHOLE:
                    return f"the one of number {number + 1}: {end}"
        return WHOLE

    async def pipelined(chance: random.Random) -> str:
        async with raw(site.url) as wire:
            asked = (wire.request("GET", MODELS, site.headers()) for _ in range(3))
            wire.send(b"".join(asked))
            for _ in range(3):
                status, headers = await wire.head()
                body = await wire.whole(headers)
                if status != 200:
                    return refusal(status, body)
        return WHOLE

    async def slow(chance: random.Random) -> str:
        fields = {"logprobs": True, "top_logprobs": 20, "ignore_eos": True}
        asked = site.chat(chance, stream=True, max_tokens=SLOW_TOKENS, **fields)
        async with raw(site.url, buffer=SLOW_BUFFER) as wire:
            key = chance.choice((OPEN, COUNTED))
            wire.ask("POST", CHAT, site.headers(key), asked)
            status, headers = await wire.head()
            return end_of(status, headers, await wire.whole(headers, SLOW_SECONDS))

    async def big(chance: random.Random) -> str:
        prompt = [chance.randrange(100, 4000) for _ in range(BIG_TOKENS)]
        body = {"model": site.model, "prompt": prompt, "max_tokens": 4, "temperature": 0}
        headers = site.headers(chance.choice((OPEN, COUNTED)))
        return end_of(
            *await exchange(site.url, "POST", COMPLETIONS, headers, json.dumps(body).encode())
        )

    return [
        Kind("raw: stream", stream, weight=8),
        Kind("raw: three on a connection", kept, weight=3, requests=(3, 3)),
        Kind("raw: three at once on a connection", pipelined, weight=2, requests=(3, 3)),
        Kind("raw: slow reader", slow),
        Kind("raw: big prompt", big, weight=2),
    ]


def leavers(site: Site) -> list[Kind]:
    """Those that leave before the end; half of them with a reset."""

    async def mid_stream(chance: random.Random) -> str:
        async with raw(site.url) as wire:
            key = chance.choice((OPEN, COUNTED))
            wire.ask("POST", CHAT, site.headers(key), endless(site, chance))
            status, headers = await wire.head()
            if status != 200:
                return refusal(status, await wire.whole(headers))
            left = chance.randrange(1, 20)
            async for _ in wire.body(headers):
                if not (left := left - 1):
                    break
            await wire.leave(reset=chance.random() < 0.5)
        return LEFT if not left else "the stream ended before its client left"

    async def before_the_first_byte(chance: random.Random) -> str:
        async with raw(site.url) as wire:
            stream = chance.random() < 0.5
            wire.ask("POST", CHAT, site.headers(), endless(site, chance, stream=stream))
            await asyncio.sleep(chance.choice((0.0, 0.01, 0.1)))
            await wire.leave(reset=chance.random() < 0.5)
        return LEFT

    async def half(chance: random.Random) -> str:
        """Of the head, or of the body."""
        async with raw(site.url) as wire:
            asked = wire.request("POST", CHAT, site.headers(), site.chat(chance))
            wire.send(asked[: chance.choice((20, len(asked) - 20))])
            await asyncio.sleep(chance.choice((0.0, 0.1)))
            await wire.leave(reset=chance.random() < 0.5)
        return LEFT

    left = frozenset((LEFT,))
    return [
        Kind("leaves mid-stream", mid_stream, left, 5, PERHAPS),
        Kind("leaves before the first byte", before_the_first_byte, left, 2, PERHAPS),
        Kind("leaves with half said", half, left, 2, PERHAPS),
    ]


def refused(site: Site) -> list[Kind]:
    """Those that must be told no, by the gateway or by the engine."""

    def asking(
        method: str, path: str, body: bytes | None, **headers: str
    ) -> Callable[[random.Random], Awaitable[str]]:
        async def ask(chance: random.Random) -> str:
            whole = site.chat(chance) if body is None else body
            return end_of(*await exchange(site.url, method, path, headers, whole))

        return ask

    def one(
        name: str,
        end: str,
        body: bytes | None = None,
        path: str = CHAT,
        method: str = "POST",
        **headers: str,
    ) -> Kind:
        ask = asking(method, path, body, **(headers or site.headers()))
        return Kind(name, ask, frozenset((end,)))

    def chat(**fields: Any) -> bytes:
        return site.chat(random.Random(1), **fields)  # noqa: S311 - no secret

    async def announced(_: random.Random) -> str:
        """A body too large, of which nothing need come."""
        async with raw(site.url) as wire:
            more = {"content-length": str(TOO_LARGE), "content-type": "application/json"}
            wire.ask("POST", CHAT, site.headers(**more))
            status, headers = await wire.head()
            return refusal(status, await wire.whole(headers))

    async def no_http(_: random.Random) -> str:
        async with raw(site.url) as wire:
            wire.send(b"GET /v1/models HTTP/1.1\r\nhost : x\r\n\r\n")
            status, headers = await wire.head()
            return refusal(status, await wire.whole(headers))

    talk_of = {"messages": [{"role": "user", "content": TOO_LONG}]}
    megabyte = {"messages": [{"role": "user", "content": MEGABYTE}]}
    return [
        one("wrong key", "401 invalid_api_key", authorization="Bearer ph-aaaaaaaa-nobody"),
        one("no key", "401 missing_api_key", accept="*/*"),
        one(
            "route not the key's",
            "403 route_not_allowed",
            b"{}",
            "/tokenize",
            **site.headers(COUNTED),
        ),
        one("unknown route", "404 unknown_route", b"", "/v1/unheard-of", "GET"),
        one("wrong method", "405 method_not_allowed", b"", CHAT, "GET"),
        Kind("body announced too large", announced, frozenset(("413 body_too_large",))),
        Kind("no HTTP", no_http, frozenset(("400 malformed_request",)), requests=(0, 0)),
        one("invalid JSON", "400 engine", b'{"model": '),
        one("invalid UTF-8", "400 engine", b'{"model": "\xff\xfe"}'),
        one("bad parameter", "400 engine", chat(temperature=-1)),
        one("bad parameter of a stream", "400 engine", chat(temperature=-1, stream=True)),
        one("unknown model", "404 engine", chat(model="gpt-unheard-of")),
        one("prompt too long", "400 engine", chat(**talk_of)),
        one("prompt of a megabyte", "400 engine", chat(**megabyte)),
    ]


def held_back(site: Site) -> list[Kind]:
    """Those that ask for more than they may: too often, or for too long."""

    async def over_quota(chance: random.Random) -> str:
        body = site.chat(chance, max_tokens=4)
        status, headers, said = await exchange(site.url, "POST", CHAT, site.headers(MEAGRE), body)
        if status == 429 and not headers.get("retry-after", "").isdecimal():
            raise Amiss("429 without a time to come again")
        return end_of(status, headers, said)

    async def late(chance: random.Random) -> str:
        """By its own deadline, as a whole or as a stream."""
        headers = site.headers(**{"x-request-timeout": str(DEADLINE_SECONDS)})
        body = endless(site, chance, stream=chance.random() < 0.5)
        return end_of(*await exchange(site.url, "POST", CHAT, headers, body))

    ends = frozenset((WHOLE, "429 requests_per_minute"))
    over = frozenset(("504 deadline_exceeded", "error event deadline_exceeded"))
    return [
        Kind(OVER_QUOTA, over_quota, ends, weight=5),
        Kind("beyond its deadline", late, over, weight=2),
    ]


OVER_QUOTA = "over its quota"


def pollers(site: Site) -> list[Kind]:
    """What machines ask every second or so."""

    async def ready(_: random.Random) -> str:
        return end_of(*await exchange(site.url, "GET", "/ready", {}))

    async def metrics(_: random.Random) -> str:
        status, headers, said = await exchange(site.url, "GET", "/metrics", site.headers())
        if b"preheat_requests_total" not in said:
            return f"{status} without our counters"
        return end_of(status, headers, said)

    return [Kind("poll /ready", ready), Kind("poll /metrics", metrics)]
