"""GPTQ as AutoGPTQ and GPTQModel write it: each layer's ``qweight``, ``qzeros``, ``scales``,
``g_idx``.

Of a layer of ``out`` × ``in`` weights: ``qweight`` int32 [in·bits/32, out] holds column after
column of unsigned integers, dense along its first dimension; ``qzeros`` int32 [groups,
out·bits/32] the zero points, dense along its second; ``scales`` [groups, out]; ``g_idx`` int32 [in]
the group of each input ("act-order" where it is not in order). A weight is ``scale · (q - zero)``.

``checkpoint_format`` ``gptq`` stores each zero point less one. Where that wrapped around, AutoGPTQ
0.7.1 disagrees with itself: the largest code means 0 in its ``qlinear_cuda_old``, the default, but
2^bits in its ``qlinear_cuda``, and in both where bits are three. The default is followed.
``gptq_v2`` stores them as they are. AutoGPTQ multiplies in the type of the scales, F16: its numbers
are ours, rounded to that (:mod:`bake.checkpoint.dequant.groups`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.dequant import groups
from bake.checkpoint.dequant.plain import aligned, float32
from bake.checkpoint.output import Output
from bake.checkpoint.schemes import parts
from bake.checkpoint.schemes.parts import SCALES, Checkpoint
from bake.errors import Unsupported

BITS = (2, 3, 4, 8)
WORD = groups.WORD_BITS
FORMATS = {"gptq": 1, "gptq_v2": 0}
# Their layers are Conv1D: their weights are stored [in, out], and only there.
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


@dataclass(frozen=True)
class Layer:
    """How one layer is stored; ``added`` is what its zero points lack."""

    name: str
    rows: int
    cols: int
    bits: int
    group: int
    groups: int
    scale: str
    added: int
    indexed: bool

    def fill(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """:raises Malformed: a group's number is not one of a group."""
        words, zeros, scales = inputs[:3]
        index = ordered(self, inputs[3]) if self.indexed else None

        def some(rows: slice) -> None:
            codes = groups.unpacked(columns(words[:, rows]), self.bits, self.cols, True)
            scale = np.ascontiguousarray(float32(scales[:, rows], self.scale).T)
            zero = self.zeros(zeros, rows)
            groups.multiply(codes, scale, zero, self.group, index, out[rows])

        groups.each_rows(some, (self.rows, self.cols), threads)

    def zeros(self, stored: NDArray[Any], rows: slice) -> NDArray[np.float32]:
        """Zero points of some rows, rows × groups; rows begin at a multiple of 32."""
        words = slice(rows.start * self.bits // WORD, rows.stop * self.bits // WORD)
        codes = groups.unpacked(
            aligned(stored[:, words]), self.bits, rows.stop - rows.start, dense=True
        )
        mask = np.uint8(0xFF if self.bits == 3 else (1 << self.bits) - 1)
        return np.ascontiguousarray(((codes + np.uint8(self.added)) & mask).T, np.float32)


def columns(words: NDArray[Any]) -> NDArray[np.int32]:
    """``words`` (int32, of any memory) transposed: contiguous."""
    if words.flags.aligned and words.dtype.isnative:
        return groups.transposed(words)
    return groups.transposed(aligned(words))


def ordered(layer: Layer, stored: NDArray[Any]) -> NDArray[np.int32] | None:
    """The group of each column; none where each is what the column's place says.

    :raises Malformed: one is not a group's number.
    """
    index: NDArray[np.int32] = aligned(stored)
    if index.min() < 0 or index.max() >= layer.groups:
        raise parts.unfit(
            layer.name,
            f"groups are 0 to {layer.groups - 1}, got {index.min()} to {index.max()}",
        )
    places = np.arange(layer.cols, dtype=np.int32) // np.int32(layer.group)
    return None if np.array_equal(index, places) else index


def outputs(checkpoint: Checkpoint) -> list[Output]:
    """The weights of every layer that has a ``qweight``.

    :raises Malformed: a part is missing, or does not fit.
    :raises Unsupported: a format or a number of bits that is not known here.
    """
    check(checkpoint)
    return [_output(checkpoint, stem) for stem in checkpoint.stems(".qweight")]


def check(checkpoint: Checkpoint) -> None:
    """Whether what the config says of all layers is known here.

    :raises Unsupported: it is not.
    """
    settings = checkpoint.settings
    form = settings.get("checkpoint_format") or "gptq"
    if not isinstance(form, str) or form not in FORMATS or settings.get("is_marlin_format"):
        raise Unsupported(f"gptq: checkpoint_format {parts.shown(form)} is not known here")
    if settings.get("dynamic"):
        raise Unsupported("gptq: layers of their own settings ('dynamic') are not known here")
    if checkpoint.model_type in CONV1D:
        raise Unsupported(f"gptq: layers of {checkpoint.model_type} are Conv1D")
    if (bits := parts.whole(settings, "bits")) not in BITS:
        raise Unsupported(f"gptq: {bits} bits are not known here (2, 3, 4 and 8 are)")


def _output(checkpoint: Checkpoint, stem: str) -> Output:
    weight = checkpoint.matrix(f"{stem}.qweight", ("I32", "U32"))
    bits = parts.whole(checkpoint.settings, "bits")
    rows, cols = weight.shape[1], weight.shape[0] * WORD // bits
    if weight.shape[0] % (bits if bits == 3 else 1) or rows * bits % WORD:
        raise parts.unfit(weight.name, f"{list(weight.shape)} cannot hold weights of {bits} bits")
    scales = checkpoint.matrix(f"{stem}.scales", SCALES)
    index = _index(checkpoint, stem, cols)
    group = parts.group_size(checkpoint.settings, cols)
    count = scales.shape[0] if index else parts.groups_of(cols, group)
    if scales.shape != (count, rows) or count > cols:
        raise parts.wrong_shape(scales, (min(count, parts.groups_of(cols, group)), rows))
    zeros = checkpoint.need(f"{stem}.qzeros", ("I32", "U32"), (count, rows * bits // WORD))
    form = str(checkpoint.settings.get("checkpoint_format") or "gptq")
    layer = Layer(
        f"{stem}.g_idx", rows, cols, bits, group, count, scales.dtype, FORMATS[form], bool(index)
    )
    return parts.output(f"{stem}.weight", (rows, cols), [weight, zeros, scales, *index], layer.fill)


def _index(checkpoint: Checkpoint, stem: str, cols: int) -> list[Tensor]:
    """``g_idx``, if there is one; it must be there with ``desc_act``."""
    name = f"{stem}.g_idx"
    if name not in checkpoint.tensors and not checkpoint.settings.get("desc_act"):
        return []
    return [checkpoint.need(name, ("I32",), (cols,))]


def described(checkpoint: Checkpoint) -> str:
    """``4-bit, group 128, act-order``."""
    settings = checkpoint.settings
    order = ", act-order" if settings.get("desc_act") is True else ""
    return f"{parts.shown(settings.get('bits'))}-bit{parts.grouped(settings)}{order}"
