"""What is in a file, whatever its format: tensors, where they lie, what it says of itself."""

from collections.abc import Mapping
from math import prod
from typing import Any, Literal

import msgspec

Format = Literal["safetensors", "gguf", "pth", "npz"]


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor. ``dtype`` in safetensors' words (``BF16``, ``F8_E4M3``, ``I64``, …), or one of
    ggml's block types (``Q4_K``, ``IQ2_XXS``, ``MXFP4``, …). ``shape`` is rows first, as NumPy
    says it, whatever the format does.

    ``offset`` is where in the file its bytes begin, ``nbytes`` how many belong to it. A view of
    a larger storage has ``strides`` (in elements, not negative); ``None`` is contiguous.
    ``deflated`` is the size of a compressed member at ``offset``; 0 is stored as it is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None
    big_endian: bool = False
    deflated: int = 0

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.shape)


class Listed(msgspec.Struct, frozen=True):
    """A long list of a file's metadata, told and not kept: what of, how many, and where."""

    kind: str
    count: int
    begin: int
    end: int


class Contents(msgspec.Struct, frozen=True):
    """What a file holds, from its header alone.

    ``metadata`` is the format's own: a mapping of names to numbers, text, truth values, short
    lists and ``Listed``. ``header_bytes`` is how far into the file one must look to know all this.
    """

    format: Format
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, Any]
    header_bytes: int

    def by_name(self) -> dict[str, Tensor]:
        """Names are unique in every format: a parser refuses others."""
        return {tensor.name: tensor for tensor in self.tensors}
