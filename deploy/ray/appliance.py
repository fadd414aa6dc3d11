"""The appliance as a Ray Serve application: each replica is a gateway and its engine.

    serve run fleet.yaml        (one stands in docs/ray.md)

Ray places replicas, counts their requests, scales and routes; what a request meets in a replica is
the gateway, as everywhere else: keys, limits, the queue, deadlines, metrics, drain. A replica
counts as started when a token was generated, and as healthy while its gateway lives, which starts
an engine that died by itself. However a replica ends, its gateway drains and goes, and the engine
with it.

    Ray's proxy ─► door (this process) ─► gateway (a child, on loopback) ─► vLLM (a Unix socket)
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Self

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from yarl import URL

from serve import keeper

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LISTENING = re.compile(r"gateway on (http://\S+)")
POLL_SECONDS = 0.05
# For the gateway's last words, and for a process that has ended to be seen to have.
MARGIN_SECONDS = 10
# What arguments say, and one of which must be said: the gateway listens on loopback, where it asks
# for no keys by itself.
OWN = frozenset(
    f"PREHEAT_{name}" for name in ("HOST", "DRAIN_SECONDS", "STOP_SECONDS", "START_SECONDS")
) | {"VARIANT", "PORT", "TMPDIR"}
KEYS = frozenset(("PREHEAT_KEYS", "PREHEAT_KEYS_FILE", "PREHEAT_NO_KEYS"))
MIB = 2**20
# A connection's own, of which each hop has its own (RFC 9110, 7.6.1).
HOP = frozenset((b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade", b"host"))


class Arguments(BaseModel):
    """What `serve run` or a configuration file may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str = "baseline"
    # Ray's environment need not be the engine's: in the image, /opt/venv/bin/python -m serve run.
    command: list[str] = Field(default=[sys.executable, "-m", "serve", "run"], min_length=1)
    # Beside them, any setting of the gateway: PREHEAT_KEYS_FILE, MODEL, TARGET.
    settings: dict[str, str] = Field(default_factory=dict)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    # Largest body that is read, in MiB: the gateway's own bound comes after it.
    body_mib: int = Field(64, ge=1)
    # Requests that a replica has before another one is wanted; what it takes at most.
    requests: int = Field(8, ge=1)
    most_requests: int = Field(64, ge=1)
    gpus: float = Field(0, ge=0)
    cpus: float = Field(1, ge=0)
    start_seconds: int = Field(300, ge=1)
    drain_seconds: int = Field(30, ge=0)
    stop_seconds: int = Field(15, ge=1)
    # Calm for so long, a replica is given back.
    calm_seconds: float = Field(120, ge=0)

    @field_validator("settings")
    @classmethod
    def _not_ours(cls, settings: dict[str, str]) -> dict[str, str]:
        if said := sorted(set(settings) & OWN):
            raise ValueError(f"{', '.join(said)}: said by arguments of their own")
        return settings

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above {self.max_replicas}")
        if not KEYS & self.settings.keys():
            raise ValueError(
                "settings: whoever reaches Ray's proxy would be let in; say PREHEAT_KEYS_FILE or "
                "PREHEAT_KEYS, or PREHEAT_NO_KEYS=true where something else lets nobody in"
            )
        return self


class NotStarted(RuntimeError):
    """The gateway of a replica ended, or was not ready in time; the text is the end of its log."""


async def door(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Hands a request to the gateway of the replica that it was routed to."""
    if scope["type"] == "lifespan":
        # What begins and ends with a replica is the replica's own.
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    replica: Appliance = ray_serve.get_replica_context().servable_object
    await replica.hand(scope, receive, send)


def doors() -> Callable[..., Awaitable[None]]:
    """What Ray asks for each replica's application."""
    return door


@ray_serve.deployment
@ray_serve.ingress(doors)
class Appliance:
    """One replica."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="preheat-ray-")
        self._log = Path(self._folder.name) / "gateway.log"
        self._client: aiohttp.ClientSession | None = None
        self._url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._process = self._begin()
        try:
            self._until_ready()
        except BaseException:
            self._end()
            raise

    def _begin(self) -> "subprocess.Popen[bytes]":
        asked = self._arguments
        own = {
            "VARIANT": asked.variant,
            "PORT": "0",
            "PREHEAT_HOST": "127.0.0.1",
            "PREHEAT_DRAIN_SECONDS": str(asked.drain_seconds),
            "PREHEAT_STOP_SECONDS": str(asked.stop_seconds),
            "PREHEAT_START_SECONDS": str(asked.start_seconds),
            "TMPDIR": self._folder.name,
        }
        grace = str(asked.drain_seconds + asked.stop_seconds + MARGIN_SECONDS)
        program, *words = asked.command
        # The keeper executes a file, and looks in no PATH for it.
        command = [shutil.which(program) or program, *words]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, grace, *command],
                env={**os.environ, **asked.settings, **own},
                # The pipe's end is ours: when the kernel closes it, the keeper ends the gateway.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _until_ready(self) -> None:
        deadline = time.monotonic() + self._arguments.start_seconds
        while not self._is("/ready"):
            if self._has_ended() or time.monotonic() > deadline:
                raise NotStarted(self._last_words())
            time.sleep(POLL_SECONDS)

    def _is(self, path: str) -> bool:
        if not self._url:
            found = LISTENING.search(self._log.read_text(errors="replace"))
            self._url = found[1] if found else ""
        try:
            with urllib.request.urlopen(self._url + path, timeout=5) as answer:  # noqa: S310 - ours
                return bool(answer.status == 200)
        except (OSError, ValueError):
            return False

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _last_words(self) -> str:
        return self._log.read_bytes()[-4000:].decode(errors="replace")

    async def check_health(self) -> None:
        """For Ray, which replaces a replica that is not.

        :raises RuntimeError: the gateway has ended, or does not answer.
        """
        # In a thread: streams go on meanwhile.
        if self._has_ended() or not await asyncio.to_thread(self._is, "/health"):
            raise RuntimeError(f"the gateway is gone: {self._last_words()}")

    async def hand(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request to the gateway and its answer back, each piece as it comes; a client that
        leaves ends the request there.
        """
        body = await _body(receive, self._arguments.body_mib * MIB)
        if body is None:
            return
        if isinstance(body, int):
            await _refuse(send, body)
            return
        if self._client is None:
            # In the loop that requests are served in, which is not there when a replica is made.
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        query = scope["query_string"].decode("latin-1")
        target = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in HOP
        ]
        async with self._client.request(
            scope["method"],
            URL(self._url + target, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
        ) as answer:
            told = [(k, v) for k, v in answer.raw_headers if k.lower() not in HOP]
            await send({"type": "http.response.start", "status": answer.status, "headers": told})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        """As everywhere: SIGTERM, which drains; and what does not listen is killed."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            asked = self._arguments
            try:
                self._process.wait(asked.drain_seconds + asked.stop_seconds + 2 * MARGIN_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._folder.cleanup()


async def _body(receive: Receive, most: int) -> bytes | int | None:
    """A request's body; the status of one that is too large; None when the client left."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return 413
        if not message.get("more_body"):
            return b"".join(parts)


async def _refuse(send: Send, status: int) -> None:
    error = {"message": "the body is too large", "type": "invalid_request_error", "param": None}
    raw = json.dumps({"error": {**error, "code": "body_too_large", "src": "gateway"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw, "more_body": False})


def app(arguments: Arguments) -> Application:
    """The application, for a configuration file's `import_path`."""
    return Appliance.options(
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=arguments.requests,
            upscale_delay_s=5,
            downscale_delay_s=arguments.calm_seconds,
        ),
        max_ongoing_requests=arguments.most_requests,
        ray_actor_options={"num_gpus": arguments.gpus, "num_cpus": arguments.cpus},
        health_check_period_s=5,
        health_check_timeout_s=10,
        # Ray waits so long for requests that it has given to a replica that is to go.
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=arguments.drain_seconds
        + arguments.stop_seconds
        + 3 * MARGIN_SECONDS,
    ).bind(arguments)
