"""AutoAWQ's GEMM layout: each layer's ``qweight``, ``qzeros``, ``scales``; four bits.

Of a layer of ``out`` × ``in`` weights: ``qweight`` int32 [in, out/8], eight outputs in a word in
the order 0, 2, 4, 6, 1, 3, 5, 7 from the least significant bits on; ``qzeros`` int32 [in/group,
out/8] in the same order; ``scales`` [in/group, out]. A weight is ``(q - zero) · scale``.

``dequantize_gemm`` of AutoAWQ 0.2.9 multiplies in the scales' type, F16: its numbers are ours,
rounded to that (:mod:`bake.checkpoint.dequant.groups`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.dequant import groups
from bake.checkpoint.dequant.plain import float32
from bake.checkpoint.output import Output
from bake.checkpoint.schemes import parts
from bake.checkpoint.schemes.gptq import columns
from bake.checkpoint.schemes.parts import SCALES, Checkpoint
from bake.errors import Unsupported

IN_WORD = 8


@dataclass(frozen=True)
class Layer:
    """How one layer is stored."""

    rows: int
    cols: int
    group: int
    scale: str

    def fill(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """Every weight of the layer."""
        words, zeros, scales = inputs

        def some(rows: slice) -> None:
            own = slice(rows.start // IN_WORD, rows.stop // IN_WORD)
            scale = np.ascontiguousarray(float32(scales[:, rows], self.scale).T)
            zero = taken(zeros[:, own]).astype(np.float32)
            groups.multiply(taken(words[:, own]), scale, zero, self.group, None, out[rows])

        groups.each_rows(some, (self.rows, self.cols), threads)


def taken(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Integers of some columns of words, outputs × inputs; a new array."""
    turned = columns(words).view(np.uint32)
    codes = np.empty((len(turned) * IN_WORD, turned.shape[1]), np.uint8)
    groups.take_awq(turned, groups.AWQ_ORDER, codes)
    return codes


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
    version = settings.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise Unsupported(f"awq: version {parts.shown(version)} is not known here (gemm is)")
    if (backend := settings.get("backend", "autoawq")) != "autoawq":
        raise Unsupported(f"awq: backend {parts.shown(backend)} is not known here (autoawq is)")
    if settings.get("zero_point", True) is not True:
        raise Unsupported("awq: weights without zero points are not known here")
    # transformers' own name, and AutoAWQ's.
    key = "bits" if "bits" in settings else "w_bit"
    if (bits := parts.whole(settings, key)) != 4:
        raise Unsupported(f"awq: {bits} bits are not known here (4 are)")


def _output(checkpoint: Checkpoint, stem: str) -> Output:
    weight = checkpoint.matrix(f"{stem}.qweight", ("I32", "U32"))
    cols, rows = weight.shape[0], weight.shape[1] * IN_WORD
    group = parts.group_size(sized(checkpoint), cols)
    if cols % group:
        raise parts.unfit(weight.name, f"{cols} inputs are not groups of {group}")
    scales = checkpoint.need(f"{stem}.scales", SCALES, (cols // group, rows))
    zeros = checkpoint.need(f"{stem}.qzeros", ("I32", "U32"), (cols // group, rows // IN_WORD))
    layer = Layer(rows, cols, group, scales.dtype)
    return parts.output(f"{stem}.weight", (rows, cols), [weight, zeros, scales], layer.fill)


def sized(checkpoint: Checkpoint) -> dict[str, Any]:
    """``group_size``, by either of its names.

    :raises Malformed: there is none, and no group can be guessed.
    """
    settings = checkpoint.settings
    key = "group_size" if "group_size" in settings else "q_group_size"
    return {"group_size": parts.whole(settings, key)}


def described(checkpoint: Checkpoint) -> str:
    """``4-bit, group 128``."""
    settings = checkpoint.settings
    return (
        f"{parts.shown(settings.get('bits', settings.get('w_bit')))}-bit{parts.grouped(settings)}"
    )
