"""What an image weighs, layer by layer, as a table."""

import re
from dataclasses import dataclass

from docker import DockerClient
from docker.errors import ImageNotFound

from bake.errors import BakeError

# "/bin/sh -c #(nop) COPY dir:…" is how the classic builder writes it, BuildKit adds its name.
NOISE = re.compile(r"^/bin/sh -c (#\(nop\) +)?|^\|\d+ .*?/bin/sh -c |\s*# buildkit$")
DIGEST = re.compile(r"\b(file|dir|multi):[0-9a-f]{64} in ")
LONGEST = 76


@dataclass(frozen=True)
class Layer:
    """One layer: the instruction that made it, and its bytes."""

    made_by: str
    size: int


def layers(client: DockerClient, image: str) -> list[Layer]:
    """Those of ``image`` that hold anything, the base first.

    :raises BakeError: there is no such image.
    """
    try:
        history = client.images.get(image).history()
    except ImageNotFound as error:
        raise BakeError(
            f"no image {image}", "build it first: make build; MODEL says of which model"
        ) from error
    return [
        Layer(readable(one["CreatedBy"]), int(one["Size"]))
        for one in reversed(history)
        if one["Size"]
    ]


def readable(created_by: str) -> str:
    """An instruction as it stands in a Dockerfile, near enough."""
    words = " ".join(DIGEST.sub("", NOISE.sub("", created_by)).split()) or "the base"
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 1]}…"


def table(found: list[Layer]) -> str:
    """For a person: megabytes (10⁶ bytes), and what they are."""
    total = Layer("total", sum(layer.size for layer in found))
    return "\n".join(f"{layer.size / 1e6:10.1f} MB  {layer.made_by}" for layer in (*found, total))
