"""Gateways that are alive side by side: where each is, and what it says it is."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.served import START_SECONDS, Served, several


@dataclass
class Rig:
    """One running variant: where it is, and what it says it is."""

    name: str
    url: str
    told: Mapping[str, Any]
    model: str
    pid: int
    get: Callable[[str], bytes]


@contextmanager
def rigs(
    each: Mapping[str, Mapping[str, str]],
    folder: Path,
    at_once: int = 1,
    seconds: float = START_SECONDS,
) -> Iterator[list[Rig]]:
    """A gateway for each of the settings (VARIANT, MODEL, TARGET, …), by name, all ready in so many
    seconds; stopped at the end. ``at_once`` of them start side by side.

    :raises NotServed: one of them does not start.
    """
    with several(each, folder, at_once, seconds) as running:
        yield [rig(name, one) for name, one in running.items()]


def rig(name: str, running: Served) -> Rig:
    """What a running gateway says of itself."""
    told = json.loads(running.get("/variant"))
    model = json.loads(running.get("/v1/models"))["data"][0]["id"]
    return Rig(name, running.url, told, model, running.process.pid, running.get)
