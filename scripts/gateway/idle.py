"""Streams held open: what many of them, an event a second each, take of a system's memory."""

import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from scripts.gateway.costs import Processes, rested
from scripts.gateway.rounds import LoadFailed
from scripts.gateway.systems import System
from scripts.gateway.upstream import Pace
from serve.settings import REPOSITORY

# Streams begin so many a second: their events come spread over the second, as people's do.
BEGIN_PER_SECOND = 500
HOLD_SECONDS = 20
LOOK_SECONDS = 0.5
GRACE_SECONDS = 15


def hold(system: System, costs: Processes, streams: int) -> dict[str, Any]:
    """Open so many streams, hold them, let all of them end; bytes before, meanwhile and after.

    :raises LoadFailed: the client ended without saying what it saw.
    """
    rested([costs], HOLD_SECONDS)
    before, cpu, began = costs.resident_bytes(), costs.cpu_seconds(), time.monotonic()
    seconds = streams / BEGIN_PER_SECOND
    pace = Pace(0.0, 1.0, round(HOLD_SECONDS + seconds))
    words = ["--rate", str(BEGIN_PER_SECOND), "--even", "--seconds", str(seconds)]
    words += ["--stream", "--at-most", str(streams)]
    words += ["--pace", pace.words, "--grace", str(pace.tokens + GRACE_SECONDS), "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.gateway.load", system.url, *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        held, said = list[int](), None
        while said is None:
            # All have begun, none has ended.
            if HOLD_SECONDS / 4 < time.monotonic() - began - seconds < HOLD_SECONDS * 3 / 4:
                held.append(costs.resident_bytes())
            with suppress(subprocess.TimeoutExpired):
                said, _ = client.communicate(timeout=LOOK_SECONDS)
    if not said or not held:
        raise LoadFailed(f"the load client ended ({client.returncode}) with {streams} streams open")
    found = json.loads(said)
    took = costs.cpu_seconds() - cpu
    while_held = round(statistics.median(held))
    return {
        "streams": streams,
        "sent": found["sent"],
        "whole": found["whole"],
        "failed": found["failed"],
        "at_once": found["at_once"],
        "before_bytes": before,
        "held_bytes": while_held,
        "bytes_a_stream": round((while_held - before) / streams),
        "after_bytes": costs.resident_bytes(),
        "core_share": round(took / (time.monotonic() - began), 4),
        "gap_ms": found["milliseconds"].get("gap"),
    }
