"""Images that tests make: built by the command, derived by a line or two, and gone afterwards."""

import io
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from docker import DockerClient

from tests.image.checkouts import VARIANT, Checkout


@dataclass(frozen=True)
class Built:
    """What ``preheat image build --json`` told."""

    image: str
    tag: str
    size: int
    baked: list[str]
    verified: list[dict[str, Any]]
    seconds: dict[str, float]
    layers: list[dict[str, Any]]


def build(checkout: Checkout, name: str, verb: Sequence[str] = ("build", VARIANT)) -> Built:
    done = checkout.preheat("image", *verb, "--image", name, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return Built(**json.loads(done.stdout))


def tags(client: DockerClient, name: str) -> list[str]:
    """Tags of the image ``name`` and of what baked for it."""
    return sorted(
        tag
        for image in client.images.list()
        for tag in image.tags
        if tag.rpartition(":")[0] in (name, f"{name}-baker")
    )


def forget(client: DockerClient, name: str) -> None:
    """Remove them; what they are made of stays in the builder's cache."""
    for tag in tags(client, name):
        # By force: a container of a test that was cut short may still stand on it.
        client.images.remove(tag, noprune=True, force=True)


@contextmanager
def derived(client: DockerClient, image: str, *lines: str) -> Iterator[str]:
    """A tag of ``image`` with more lines of a Dockerfile."""
    tag = f"preheat-test-derived:{uuid.uuid4().hex}"
    text = "\n".join([f"FROM {image}", *lines])
    client.images.build(
        fileobj=io.BytesIO(text.encode()), tag=tag, network_mode="none", rm=True, forcerm=True
    )
    try:
        yield tag
    finally:
        own = [one["Id"] for one in client.images.get(tag).history()][: len(lines)]
        client.images.remove(tag, noprune=True)
        # One by one: to prune them would take the builder's cache of ``image`` along.
        for layer in own[1:]:
            client.images.remove(layer, noprune=True)
