"""An OpenAI server that says numbers at a steady pace, counts who asks, and breaks when told to."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Event, Thread

from aiohttp import web

GAP = 0.01


class Server:
    """Says ``max_tokens`` tokens, ``per_chunk`` in a chunk; a prompt that names a fault gets it.

    The first chunk comes after ``first`` seconds, each further one after ``gap``.
    """

    def __init__(
        self,
        per_chunk: int = 1,
        gap: float = GAP,
        odd: str = "",
        *,
        first: float | None = None,
        sound: bool = False,
    ) -> None:
        self.first = gap if first is None else first
        self.per_chunk, self.gap, self.odd, self.sound = per_chunk, gap, odd, sound
        self.asked: list[dict] = []
        self.alive = self.most = self.tokens = 0
        # Seconds to the first chunk of each answer, from it to the last, and tokens.
        self.told: list[tuple[float, float, int]] = []

    def app(self) -> web.Application:
        made = web.Application()
        made.router.add_post("/v1/completions", self.complete)
        made.router.add_post("/v1/chat/completions", self.complete)
        made.router.add_get("/metrics", self.metrics)
        return made

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            text="# TYPE vllm:generation_tokens counter\n"
            f"vllm:generation_tokens_total {self.tokens}\n"
            "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc 0.25\n"
            + "".join(self.histograms())
        )

    def histograms(self) -> Iterator[str]:
        """As vLLM counts: gaps by every chunk after the first, all else by every answer."""
        gaps = [(rest, math.ceil(tokens / self.per_chunk) - 1) for _, rest, tokens in self.told]
        counted = {
            "e2e_request_latency_seconds": [(first + rest, 1) for first, rest, _ in self.told],
            "time_to_first_token_seconds": [(first, 1) for first, _, _ in self.told],
            "request_time_per_output_token_seconds": [
                (rest / max(tokens - 1, 1), 1) for _, rest, tokens in self.told
            ],
            "inter_token_latency_seconds": gaps,
        }
        for name, each in counted.items():
            total, count = (sum(column) for column in zip(*each, strict=True)) if each else (0, 0)
            yield f"# TYPE vllm:{name} histogram\n"
            yield f'vllm:{name}_bucket{{le="+Inf"}} {count}\n'
            yield f"vllm:{name}_sum {total}\nvllm:{name}_count {count}\n"

    async def complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.asked.append(asked)
        self.alive += 1
        self.most = max(self.most, self.alive)
        try:
            return await self.stream(request, asked)
        finally:
            self.alive -= 1

    async def stream(self, request: web.Request, asked: dict) -> web.StreamResponse:
        chat = "messages" in asked
        said = asked["messages"][-1]["content"] if chat else asked["prompt"]
        # Natural text may hold any of the words below.
        said = "" if self.sound else said
        if "refused" in said:
            return web.json_response({"error": {"message": "no"}}, status=429)
        if "silent" in said:
            await asyncio.sleep(600)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        if "odd" in said:
            await answer.write(b"data: [1, 2]\n\ndata: not json\n\n")
        if chat:
            await send(answer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        wanted, began, first = asked["max_tokens"], time.perf_counter(), 0.0
        for done in range(0, wanted, self.per_chunk):
            await asyncio.sleep(self.gap if done else self.first)
            first = first or time.perf_counter() - began
            words = "".join(f"{n} " for n in range(done, min(wanted, done + self.per_chunk)))
            words = words.replace("3 ", self.odd or "3 ")
            choice = {"delta": {"content": words}} if chat else {"text": words}
            await send(answer, {"choices": [choice]})
            if "cut" in said and request.transport:
                request.transport.abort()
        if "sick" in said:
            await send(answer, {"error": {"message": "engine died"}})
        self.tokens += wanted
        self.told.append((first, time.perf_counter() - began - first, wanted))
        if "untold" not in said:
            await send(answer, {"choices": [], "usage": {"completion_tokens": wanted}})
        await answer.write(b"data: [DONE]\n\n")
        return answer


async def send(answer: web.StreamResponse, event: object) -> None:
    await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[str]:
    runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The server in a thread of its own, for runs that block."""
    urls: list[str] = []
    up, over = Event(), Event()

    async def serve() -> None:
        async with listening(server) as url:
            urls.append(url)
            up.set()
            while not over.is_set():
                await asyncio.sleep(0.01)

    thread = Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert up.wait(20)
    try:
        yield urls[0]
    finally:
        over.set()
        thread.join()
