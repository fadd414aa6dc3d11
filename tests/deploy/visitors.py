"""Clients that come all the while: each answer is whole, or somebody lost a request."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

# Long enough to be in the middle of when a pod goes, and far shorter than the drain.
TOKENS, TOKEN_SECONDS = 40, 0.05
CLIENTS = 4


@dataclass
class Seen:
    """What came of every request."""

    whole: int = 0
    lost: list[str] = field(default_factory=list)


@contextmanager
def visitors(url: str, model: str = "tiny", clients: int = CLIENTS) -> Iterator[Seen]:
    """Every client asks again as soon as it was answered, until the body ends; the last answers are
    waited for. Every second one keeps its connection for as long as the server does, and never
    looks whether it still stands.
    """
    seen, over, lock = Seen(), threading.Event(), threading.Lock()

    def visit(number: int) -> None:
        turn = 0
        with closing(connect(url)) as connection:
            while not over.is_set():
                turn += 1
                try:
                    told = said(model, f"{number}-{turn}", stream=turn % 2 == 0)
                    exchange(connection, told, keep=number % 2 == 0)
                # Whatever it is, somebody has no answer.
                except Exception as error:
                    connection.close()
                    with lock:
                        seen.lost.append(f"{type(error).__name__}: {error}")
                else:
                    with lock:
                        seen.whole += 1

    threads = [threading.Thread(target=visit, args=(n,), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
        seen.lost += ["still waits for an answer" for thread in threads if thread.is_alive()]


class NotWhole(Exception):
    """An answer that is none, or a part of one."""


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)


def said(model: str, prompt: str, *, stream: bool, tokens: int = TOKENS) -> dict[str, Any]:
    """A request for a completion of so many tokens."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        "ignore_eos": True,
        "token_seconds": TOKEN_SECONDS,
    }


def ask(url: str, body: dict[str, Any]) -> None:
    """One request on a connection of its own.

    :raises NotWhole: as ``exchange``.
    """
    with closing(connect(url)) as connection:
        exchange(connection, body, keep=False)


def exchange(connection: http.client.HTTPConnection, body: dict[str, Any], *, keep: bool) -> None:
    """One request, and its whole answer.

    :raises NotWhole: the status is no 200, or the answer lacks something.
    """
    headers = {"content-type": "application/json"} | ({} if keep else {"connection": "close"})
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    raw = answer.read()
    if answer.status != 200:
        raise NotWhole(f"status {answer.status}: {raw[:200]!r}")
    if body["stream"]:
        *events, last = [line for line in raw.split(b"\n\n") if line] or [b""]
        if last != b"data: [DONE]":
            raise NotWhole(f"a stream that ends with {last[:200]!r}")
        told = [json.loads(event.removeprefix(b"data: ")) for event in events]
        # By its name, not by the word: a model may say that, too.
        if wrong := [one["error"] for one in told if "error" in one]:
            raise NotWhole(f"a stream with an error: {wrong[0]}")
        if told[-1]["usage"]["completion_tokens"] != body["max_tokens"]:
            raise NotWhole(f"a stream that counts {told[-1]['usage']}")
    elif (usage := json.loads(raw)["usage"])["completion_tokens"] != body["max_tokens"]:
        raise NotWhole(f"an answer that counts {usage}")
