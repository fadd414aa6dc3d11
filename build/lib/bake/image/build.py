"""One ``docker build`` of one stage: streamed, logged, and in words when it fails.

By the engine's own (classic) builder, which is all that the SDK speaks. Nothing is tagged here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TextIO

from docker import DockerClient

from bake.errors import BakeError
from bake.image import context
from bake.progress import Progress

STEP = re.compile(r"^Step (\d+)/(\d+) : (.*)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# The step that it quotes in full is named already.
QUOTED = re.compile(r"The command '.*' returned a non-zero code: (\d+)", re.DOTALL)
BUILT = re.compile(r"^Successfully built ([0-9a-f]+)")
TAIL_LINES = 12


@dataclass(frozen=True)
class Recipe:
    """One stage of the Dockerfile and all that it is made from."""

    stage: str
    arguments: Mapping[str, str]
    files: Mapping[str, Path]
    network: str
    labels: Mapping[str, str] = field(default_factory=dict)
    folders: Sequence[str] = ()


def build(client: DockerClient, recipe: Recipe, log: Path, progress: Progress) -> str:
    """The image's id. What the builder said stays in ``log`` if it fails, and only then.

    :raises BakeError: naming the step that failed, with its last words.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    said = client.api.build(
        fileobj=context.pack(recipe.files, recipe.folders),
        custom_context=True,
        target=recipe.stage,
        buildargs=dict(recipe.arguments),
        labels=dict(recipe.labels),
        network_mode=recipe.network,
        rm=True,
        forcerm=True,
        decode=True,
    )
    with log.open("w", encoding="utf-8") as written:
        image = _follow(_written(said, written), recipe, log, progress)
    log.unlink()
    return image


def _written(said: Iterator[Mapping[str, str]], log: TextIO) -> Iterator[Mapping[str, str]]:
    for chunk in said:
        log.write(COLOUR.sub("", chunk.get("stream") or chunk.get("error") or ""))
        log.flush()
        yield chunk


def _follow(
    said: Iterator[Mapping[str, str]], recipe: Recipe, log: Path, progress: Progress
) -> str:
    step, image = "", ""
    tail: list[str] = []
    for chunk in said:
        if problem := chunk.get("error"):
            why = QUOTED.sub(r"exit status \1", problem.strip())
            raise BakeError(
                f"building {recipe.stage}: {why}\n  in {step or 'no step yet'}\n"
                + "\n".join(f"  | {line}" for line in tail[-TAIL_LINES:]),
                f"the whole log is in {log}; what was built so far is used again",
            )
        text = COLOUR.sub("", chunk.get("stream", ""))
        tail = [*tail[-TAIL_LINES:], *(line for line in text.splitlines() if line.strip())]
        if found := STEP.match(text):
            # The builder quotes it as it stands: which base was not found would not be told.
            words = Template(found[3].strip()).safe_substitute(recipe.arguments)
            step = f"step {found[1]}/{found[2]}: {words}"
            progress.step(words[:60], int(found[1]), int(found[2]))
        if found := BUILT.match(text):
            image = found[1]
    if not image:
        raise BakeError(f"building {recipe.stage}: the engine named no image", f"look into {log}")
    return image
