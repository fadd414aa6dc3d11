"""A GGUF as a family's config is made of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.families.metadata import Metadata
from bake.errors import Malformed, Unsupported


@dataclass(frozen=True)
class File:
    """What a config is made of: metadata, tensors' shapes, and one tensor's numbers."""

    metadata: Metadata
    tensors: Mapping[str, Tensor]

    @property
    def own(self) -> Metadata:
        """The keys below the architecture's name."""
        return self.metadata.under(self.metadata.text("general.architecture"))

    def shape(self, name: str) -> tuple[int, ...]:
        """:raises Malformed: there is no such tensor."""
        if name not in self.tensors:
            raise Malformed(self.metadata.where, f"has no tensor {name}")
        return self.tensors[name].shape

    def floats(self, name: str) -> NDArray[np.float32]:
        """The numbers of a small F32 tensor.

        :raises Unsupported: it is of another type.
        """
        tensor = self.tensors[name]
        if tensor.dtype != "F32" or tensor.big_endian or tensor.nbytes > 2**20:
            raise Unsupported(f"{self.metadata.where}: {name} is no small F32 tensor")
        raw = self.metadata.source.read(tensor.offset, tensor.offset + tensor.nbytes)
        return np.frombuffer(raw, "<f4")
