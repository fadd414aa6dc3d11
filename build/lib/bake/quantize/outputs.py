"""Every tensor of the folder that is made, and what fills it. No number is read yet.

A packed matrix becomes three: words of eight values, a scale for each group, and its shape, as
compressed-tensors' ``pack-quantized`` has them. The three stand side by side in a file, so what the
first computes is kept for the second.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.output import Output
from bake.errors import Malformed
from bake.quantize.folds import Folds, bits_as, floats
from bake.quantize.linears import HEAD, Selection, Stored
from blob.codecs import Floats, Parts, bfloat16
from blob.codecs.int4 import Int4
from blob.rows import decode, encode, pieces

# Numbers of a matrix that are in float32 at once.
AT_ONCE = 16 * 1024**2


class Plan:
    """The outputs of one recipe; ``errors`` fills as they are made."""

    def __init__(
        self, tensors: Mapping[str, Stored], selection: Selection, folds: Folds, group: int
    ) -> None:
        self._tensors = tensors
        self._folds = folds
        self._codec = Int4(group)
        self._scales: dict[str, NDArray[np.uint16]] = {}
        self.errors: dict[str, float] = {}
        self.outputs = tuple(self._all(selection))

    def _all(self, selection: Selection) -> list[Output]:
        made: list[Output] = []
        for name, stored in self._tensors.items():
            if name == HEAD and selection.head:
                continue
            if name in selection.chosen:
                made.extend(self._packed(name, name, stored))
            else:
                made.append(self._kept(name, stored))
        if selection.head:
            made.extend(self._packed(selection.head, HEAD, self._tensors[selection.head]))
        return made

    def _kept(self, name: str, stored: Stored) -> Output:
        def copy(inputs: Sequence[NDArray[Any]], out: NDArray[Any], _threads: int) -> None:
            if (bits := self._folds.replaced.get(name)) is not None:
                out[...] = bits_as(bfloat16.to_float32(bits), stored.dtype)
            elif self._folds.touches(name):
                out[...] = bits_as(
                    self._folds.of(name, _finite(inputs[0], stored, name)), stored.dtype
                )
            else:
                out[...] = inputs[0]

        return Output(name, stored.shape, (name,), copy, stored.dtype)

    def _packed(self, source: str, name: str, stored: Stored) -> list[Output]:
        rows, cols = stored.shape
        parts = self._codec.parts(rows, cols)
        base = name.removesuffix("weight")

        def pack(inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
            scale = np.empty(parts["scale"].shape, np.uint16)
            wrong = right = 0.0
            # An embedding in float32 would be several times what is bounded here.
            for some in pieces(rows, cols, AT_ONCE):
                # Nothing is folded into a head: what is under its name is of the layers alone.
                values = finite(floats(inputs[0][some], stored.dtype), source, some.start)
                values = self._folds.of(name, values, some)
                near = bfloat16.to_float32(bfloat16.from_float32(values))
                made = encode(self._codec, near, threads)
                out[some], scale[some] = made["packed"], made["scale"]
                squares = self._squares(near, made, threads)
                wrong, right = wrong + squares[0], right + squares[1]
            self._scales[name] = scale
            self.errors[name] = round((wrong / right) ** 0.5, 6) if right else 0.0

        def scale(_inputs: Sequence[NDArray[Any]], out: NDArray[Any], _threads: int) -> None:
            out[...] = self._scales.pop(name)

        def shape(_inputs: Sequence[NDArray[Any]], out: NDArray[Any], _threads: int) -> None:
            out[...] = (rows, cols)

        return [
            Output(f"{base}weight_packed", parts["packed"].shape, (source,), pack, "I32"),
            Output(f"{base}weight_scale", parts["scale"].shape, (source,), scale, "BF16"),
            Output(f"{base}weight_shape", (2,), (source,), shape, "I64"),
        ]

    def _squares(self, near: Floats, made: Parts, threads: int) -> tuple[float, float]:
        """‖Q − W‖² and ‖W‖²; summed in one order, whatever the number of threads."""
        back = np.empty(near.shape, np.uint16)
        decode(self._codec, made, back, threads)
        wrong = right = 0.0
        for some in pieces(*near.shape):
            off = bfloat16.to_float32(back[some]) - near[some]
            wrong += float(np.square(off, dtype=np.float64).sum())
            right += float(np.square(near[some], dtype=np.float64).sum())
        return wrong, right


def finite(values: Floats, name: str, row: int = 0) -> Floats:
    """``values``, if all are numbers. ``row`` is which of the tensor's comes first.

    :raises Malformed: one is not, or is infinite.
    """
    if not np.isfinite(values).all():
        place = [int(one) for one in np.argwhere(~np.isfinite(values))[0]]
        place[0] += row
        raise Malformed(name, f"holds what is no number, at {place}")
    return values


def _finite(stored: NDArray[Any], about: Stored, name: str) -> Floats:
    return finite(floats(stored, about.dtype), name)
