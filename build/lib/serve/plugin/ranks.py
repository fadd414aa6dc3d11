"""Per-rank blobs: what vLLM's own slicing left on each rank, kept before it is post-processed.

    <folder>/                  config.json, tokenizer …; a whole blob, or no weights of its own
      rank-0-of-2/             a blob: parameters of rank 0, by vLLM's names for them
      drafter-0-of-2/          the same of its drafter
      rank-1-of-2/ …

A hybrid layer has regions that are sliced unequally, so no rule of ours slices: ranks are captured
from a load by vLLM. A rank opens the tensors of no other, and refuses another's; of the others it
reads the manifests, to know that all ranks are of one model and one recipe.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blob import manifest
from blob.blob import Blob
from blob.errors import BlobError
from blob.manifest import Manifest, Rank, is_blob
from blob.recipe import Recipe, check, choose
from blob.store import Store
from serve.plugin.filling import NAMES, to_array
from serve.plugin.sources import Source

FOLDER = re.compile(r"^(rank|drafter)-(\d+)-of-(\d+)$")


@dataclass(frozen=True)
class Here:
    """Which rank this process is, of how many, and what the ranks are of each other."""

    rank: int
    world: int
    topology: str


def here() -> Here:
    """Of the calling worker: ranks that hold the same weights (data parallel) are one."""
    from vllm.config import get_current_vllm_config
    from vllm.distributed import get_pp_group, get_tp_group

    tensor, pipeline = get_tp_group(), get_pp_group()
    parallel = get_current_vllm_config().parallel_config
    experts = " ep" if parallel.enable_expert_parallel else ""
    return Here(
        rank=pipeline.rank_in_group * tensor.world_size + tensor.rank_in_group,
        world=tensor.world_size * pipeline.world_size,
        topology=f"tp{tensor.world_size} pp{pipeline.world_size}{experts}",
    )


def name_of(rank: int, world: int, *, drafter: bool = False) -> str:
    """Of the folder that a rank's slices are in."""
    return f"{'drafter' if drafter else 'rank'}-{rank}-of-{world}"


def find(folder: Path, at: Here, drafter: bool) -> Path | None:
    """The folder of a rank in ``folder``; None where there is a whole blob, or no ranks at all.

    :raises BlobError: there are ranks, but of another world, and no whole blob beside them.
    """
    own = folder / name_of(at.rank, at.world, drafter=drafter)
    if own.is_dir():
        return own
    there = sorted(path.name for path in folder.glob("*") if FOLDER.match(path.name))
    if there and not is_blob(folder):
        raise BlobError(
            f"{folder}: expected {own.name}, got {', '.join(there)}",
            f"shard it for this engine ({at.topology}): preheat bake shard",
        )
    return None


def opened(folder: Path, own: Path, at: Here) -> Blob:
    """The blob in ``own``, if it is this rank's, and its model and recipe are all other ranks'.

    :raises BlobError: rank, world, topology, model or recipe is another; both values are told.
    """
    blob = Blob.open(own)
    said = blob.manifest.rank
    if said is None:
        raise BlobError(f"{own}: expected the slices of {own.name}, got a whole model")
    others = _others(folder, own, at.world)
    for what, expected, got in (
        ("rank", at.rank, said.rank),
        ("world", at.world, said.world),
        ("topology", at.topology, said.topology),
        *[("model", model, said.model) for model in _models(folder, others)],
        *[("recipe", other.recipe, blob.manifest.recipe) for other in others],
    ):
        if expected != got:
            raise BlobError(
                f"{own}: {what}: expected {expected}, got {got}",
                "shard the model again: preheat bake shard",
            )
    return blob


def _others(folder: Path, own: Path, world: int) -> list[Manifest]:
    """Of every other rank of this world in ``folder``, and of its drafter."""
    paths = sorted(folder.glob(f"*-of-{world}"))
    return [manifest.read(path) for path in paths if FOLDER.match(path.name) and path != own]


def _models(folder: Path, others: Sequence[Manifest]) -> list[str]:
    """The fingerprints that ``folder`` says its ranks are of: by its manifest, and by theirs."""
    whole = [manifest.read(folder).fingerprint] if is_blob(folder) else []
    return whole + [other.rank.model for other in others if other.rank]


def places(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a rank's blob holds: parameters, tied ones once, and the buffers that are saved."""
    held = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                held[f"{prefix}.{name}" if prefix else name] = buffer
    # Placeholders of quantization methods hold nothing.
    return {name: tensor.data for name, tensor in held.items() if tensor.numel()}


def check_parameters(model: torch.nn.Module, of: Manifest) -> None:
    """Whether ``of`` holds exactly what ``model`` has, before any of it is read.

    :raises BlobError: naming the first that is missing, too much, or of another shape or type.
    """
    expected = {name: _form(t.shape, NAMES[t.dtype]) for name, t in places(model).items()}
    got = {tensor.name: _form(tensor.shape, tensor.dtype) for tensor in of.tensors}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise BlobError(
                f"{name}: expected {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}",
                "shard the model again, with the vLLM and the settings that serve it",
            )


def _form(shape: Any, dtype: str) -> str:
    return f"{dtype} {list(shape)}"


def capture(  # noqa: PLR0913 - what, where, whose, how
    model: torch.nn.Module,
    out: Path,
    store: Store,
    at: Here,
    codec: str,
    source: Source,
    *,
    drafter: bool,
) -> Manifest:
    """Write this rank's slices below ``out``, each in ``codec`` where that is for it.

    What is sliced is what ``source`` gave back: a codec that loses bits is for a source that lost
    none, and makes the weights of its own recipe where no slice cuts its groups.

    :raises BlobError: they cannot be written, or stand there already.
    """
    # It brings numba, which a load of raw slices does not need.
    from blob.writer import About, Plain, write

    recipe = Recipe(codec)
    check(recipe)
    rank = Rank(rank=at.rank, world=at.world, topology=at.topology, model=source.fingerprint())
    tensors = []
    for name, tensor in places(model).items():
        dtype = NAMES[tensor.dtype]
        choice = choose(name, tensor.shape, dtype, recipe)
        tensors.append(Plain(name, dtype, to_array(tensor), choice))
    folder = out / name_of(at.rank, at.world, drafter=drafter)
    folder.mkdir(parents=True, exist_ok=True)
    return write(folder, tensors, store, About(recipe.describe(), rank=rank))
