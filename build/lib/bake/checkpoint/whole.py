"""What a config asks for, held against the tensors that are there, before anything is made of them.

``preheat bake verify-checkpoint`` tells the same of names and shapes as one check of many; a maker
refuses. A family that is not known is passed, as it is skipped there. More tensors do no harm.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bake.checkpoint import families
from bake.checkpoint.folder import CONFIG, Located
from bake.errors import Malformed

Shapes = Mapping[str, tuple[int, ...]]
# Tensors that one message names.
TOLD = 5
INCOMPLETE = (
    f"fetch all of its files, {CONFIG} among them; preheat bake verify-checkpoint tells more"
)


def check(
    where: Path, config: Mapping[str, Any], shapes: Shapes, shards: Mapping[str, str] | None = None
) -> None:
    """Whether a family that is known finds all of its tensors, in its shapes. ``shards``: the file
    of each tensor, where ``where`` does not say it.

    :raises Malformed: naming those that are missing or of another shape.
    """
    wrong = list(_wrong(families.expected(config) or {}, shapes, shards or {}))
    if wrong:
        more = f"; and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        detail = f"not what {CONFIG} says: {'; '.join(wrong[:TOLD])}{more}"
        raise Malformed(str(where), detail, hint=INCOMPLETE)


def check_stored(folder: Path, config: Mapping[str, Any], there: Located) -> None:
    """The same of plain weights, as their headers tell them; errors as ``check``."""
    shapes = {name: tensor.shape for name, (_, tensor) in there.items()}
    paths = {shard.path for shard, _ in there.values()}
    if len(paths) == 1:
        check(paths.pop(), config, shapes)
    else:
        check(folder, config, shapes, {name: shard.path.name for name, (shard, _) in there.items()})


def _wrong(expected: Shapes, shapes: Shapes, shards: Mapping[str, str]) -> Iterator[str]:
    for name, shape in expected.items():
        for fault in families.misfits({name: shape}, shapes):
            yield f"{fault} ({shards[name]})" if name in shards else fault
