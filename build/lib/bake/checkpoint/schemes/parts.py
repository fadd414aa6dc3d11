"""What every scheme asks of a checkpoint: its tensors, checked, and what its config says.

Names, types and shapes are a stranger's. All of them are compared when a conversion is planned;
what is filled afterwards is compared with the plan once more, so that no kernel sees another array
than the one that was planned for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.dequant.plain import check_out
from bake.checkpoint.output import Fill, Output
from bake.errors import Malformed, Misset, Unsupported
from blob.numpy_types import NUMPY

# Gives a stored tensor: asked only for small ones, whose size was checked.
Read = Callable[[str], NDArray[Any]]
GROUPS = 32
UNFIT = "tensors and config.json do not go together: fetch both again, of the same model"
Block = tuple[int, int]
SCALES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and what ``config.json`` says of how they are quantized."""

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    read: Read | None = None
    model_type: str = ""

    @cached_property
    def weights(self) -> list[Mapping[str, Any]]:
        """``schemes`` of its settings."""
        return schemes(self.settings)

    @cached_property
    def blocks(self) -> list[Block]:
        """Sizes of blocks that the config names: its own, or those of its groups.

        :raises Malformed: one is no pair of positive numbers.
        """
        said = [self.settings.get("weight_block_size")]
        said += [weights.get("block_structure") for weights in self.weights]
        return list(dict.fromkeys(_block(each) for each in said if each is not None))

    def stems(self, suffix: str) -> list[str]:
        """The names that end so, without that ending, in their order."""
        return [name.removesuffix(suffix) for name in self.tensors if name.endswith(suffix)]

    def need(
        self, name: str, dtypes: Sequence[str], shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """The tensor of this name.

        :raises Malformed: there is none, or it has another shape.
        :raises Unsupported: it has another type.
        """
        found = self.tensors.get(name)
        if found is None:
            raise unfit(name, "is missing: another tensor cannot be read without it")
        if found.dtype not in dtypes:
            raise Unsupported(f"{name}: {found.dtype} is not known here ({', '.join(dtypes)} is)")
        if shape is not None and found.shape != shape:
            raise wrong_shape(found, shape)
        return found

    def matrix(self, name: str, dtypes: Sequence[str]) -> Tensor:
        """The same, of two dimensions.

        :raises Malformed: there is none, or it is no matrix, or nothing is in it.
        :raises Unsupported: it has another type.
        """
        found = self.need(name, dtypes)
        if len(found.shape) != 2 or not found.count:
            raise unfit(name, f"expected a matrix, got {list(found.shape)}")
        return found

    def small(self, name: str, nbytes: int) -> NDArray[Any]:
        """What is in a small tensor.

        :raises Malformed: it is not so small.
        :raises Unsupported: there is nothing to read it with.
        """
        tensor = self.tensors[name]
        if tensor.nbytes > nbytes:
            raise unfit(name, f"expected {nbytes} bytes at most, got {tensor.nbytes}")
        if self.read is None:
            raise Unsupported(f"{name}: its values say a shape, and only headers were given")
        return self.read(name)


def unfit(name: str, detail: str) -> Malformed:
    """What to raise of tensors that do not go with each other or with the config: any may be the
    one that is wrong.
    """
    return Malformed(name, detail, hint=UNFIT)


def wrong_shape(tensor: Tensor, expected: tuple[int, ...]) -> Malformed:
    """The exception that says so."""
    return unfit(tensor.name, f"expected shape {list(expected)}, got {list(tensor.shape)}")


def groups_of(cols: int, group: int) -> int:
    """How many groups ``cols`` columns make, the last one perhaps smaller."""
    return -(-cols // group)


def whole(settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number of the config.

    :raises Malformed: it is something else, or not there and has no default.
    """
    value = settings.get(key, default)
    if type(value) is not int or not -1 <= value <= 2**31:
        raise Misset("config.json", f"{key}: expected a whole number, got {shown(value)}")
    return value


def group_size(settings: Mapping[str, Any], cols: int) -> int:
    """Columns of a group; -1 is all of them.

    :raises Malformed: it is no such number.
    """
    group = whole(settings, "group_size", -1)
    if group == 0:
        raise Misset("config.json", "group_size: expected -1 or a positive number, got 0")
    return min(cols, group) if group > 0 else cols


def shown(value: object) -> str:
    """A stranger's value for a message."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    text = repr(value) if isinstance(value, str | int | float | None) else ""
    return text[:60] if text else type(value).__name__


@dataclass(frozen=True)
class Checked:
    """A fill that compares arrays with what was planned, then works."""

    planned: tuple[Tensor, ...]
    shape: tuple[int, ...]
    work: Fill

    def __call__(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """:raises ValueError: an array is another than the one that was planned."""
        check_out(out)
        if out.shape != self.shape or len(inputs) != len(self.planned):
            raise ValueError(f"out must have shape {self.shape}, got {out.shape}")
        for tensor, array in zip(self.planned, inputs, strict=True):
            kind = np.dtype(NUMPY[tensor.dtype])
            if array.shape != tensor.shape or array.dtype.newbyteorder("=") != kind:
                raise ValueError(f"{tensor.name}: planned as {kind} {tensor.shape}")
        if out.size:
            self.work(inputs, out, threads)


def output(
    name: str, shape: tuple[int, ...], planned: Sequence[Tensor], work: Fill, kept: str = ""
) -> Output:
    """An ``Output`` whose fill is ``Checked``."""
    names = tuple(tensor.name for tensor in planned)
    fill = work if kept else Checked(tuple(planned), shape, work)
    return Output(name, shape, names, fill, kept)


def grouped(settings: Mapping[str, Any]) -> str:
    """``, group 128``, for a sentence; nothing where groups are whole rows."""
    group = settings.get("group_size")
    return f", group {group}" if type(group) is int and group > 0 else ""


def schemes(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What compressed-tensors' config says of the weights of each of its groups.

    :raises Malformed: it is no mapping of mappings.
    :raises Unsupported: there are too many.
    """
    named = settings.get("config_groups")
    if named is None:
        return []
    found = list(named.values()) if isinstance(named, Mapping) else [None]
    # Each of the layers is compared with each of them.
    if len(found) > GROUPS:
        raise Unsupported(
            f"config.json: {len(found)} config_groups are too many ({GROUPS} are not)"
        )
    weights = [each.get("weights") if isinstance(each, Mapping) else 0 for each in found]
    told = [each for each in weights if isinstance(each, Mapping)]
    if len(told) + weights.count(None) != len(weights):
        raise Misset("config.json", "config_groups: expected groups that tell of their weights")
    return told


def _block(said: object) -> Block:
    """``[128, 128]``, or compressed-tensors' ``128x128``."""
    sizes = said.split("x") if isinstance(said, str) else said
    if isinstance(sizes, list | tuple) and len(sizes) == 2:
        text = [str(size) for size in sizes if type(size) in (int, str)]
        if len(text) == 2 and all(t.isascii() and t.isdigit() and len(t) < 10 for t in text):
            high, wide = int(text[0]), int(text[1])
            if high > 0 and wide > 0:
                return high, wide
    raise Misset("config.json", f"block size: expected two numbers, got {shown(said)}")
