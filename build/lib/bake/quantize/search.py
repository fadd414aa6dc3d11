"""AWQ's search: the scales under which rounding costs a layer's output least.

arXiv 2306.00978, equations 4 and 5, with the grid and the duo scaling of llm-compressor 0.14:
s = x̄^r / (w̄^(1−r) + 1e-4), x̄ the mean size of an input channel, w̄ the mean size of its weights
relative to the largest of their group, r from 0 to 1 in ``GRID`` steps, the first without w̄.

The error of an output over all tokens, ‖(Q(W s)/s − W) X‖², is tr(Δ H Δᵀ) with H = X Xᵀ: inputs
are met once, whatever the grid. Rows are taken in pieces of a fixed number and their sums in order,
each by one thread, so every number of threads gives the same bytes.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.quantize.families import Pair
from bake.quantize.folds import divided_norm
from blob.codecs import Floats, bfloat16
from blob.codecs.int4 import Int4

GRID = 20
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Inputs:
    """What a group of matrices met: ``gram`` is Σ x xᵀ, ``sizes`` the mean of |x|."""

    gram: Any
    sizes: Floats


@dataclass(frozen=True)
class Best:
    """The point that won. ``stored``: bits of the divided norm; none where rows are divided.
    ``scales``: factors of the columns. Errors are relative to the output's own size.
    """

    ratio: float
    duo: bool
    scales: Floats
    stored: NDArray[np.uint16] | None
    rounded_error: float
    error: float


def quantized(values: Floats, group: int) -> Floats:
    """What ``values`` (rows × cols) are once they were four bits."""
    codec = Int4(group)
    parts = {
        name: np.empty(part.shape, np.int32 if part.dtype == "I32" else np.uint16)
        for name, part in codec.parts(*values.shape).items()
    }
    codec.encode(values, parts)
    out = np.empty(values.shape, np.uint16)
    codec.decode(parts, out)
    return bfloat16.to_float32(out)


def mean_sizes(weights: Sequence[Floats], group: int) -> Floats:
    """w̄ of each column over all rows of ``weights``: |w| relative to its group's largest."""
    total = np.zeros(weights[0].shape[1], np.float64)
    for one in weights:
        groups = np.abs(one).reshape(one.shape[0], -1, group)
        groups /= groups.max(axis=2, keepdims=True) + np.float32(1e-6)
        total += groups.reshape(one.shape).sum(axis=0, dtype=np.float64)
    return np.asarray(total / sum(one.shape[0] for one in weights), np.float32)


def grid() -> list[tuple[float, bool]]:
    """Ratios, each with whether weights have a say; the first is no scaling at all."""
    return [(0.0, False), *((step / (GRID - 2), True) for step in range(GRID - 1))]


def scales_at(ratio: float, sizes: Floats, weighed: Floats, *, duo: bool) -> Floats:
    """The scales of one point, spread around 1."""
    below = weighed ** (1 - ratio) + np.float32(1e-4) if duo else np.float32(1)
    made = np.maximum((sizes**ratio / below).astype(np.float32), np.float32(1e-4))
    made = made / np.sqrt(made.max() * made.min())
    made[~np.isfinite(made)] = 1
    return np.asarray(made, np.float32)


def best(  # noqa: PLR0913 - a layer, and how to look at it
    pair: Pair,
    weights: Sequence[Floats],
    norm: Floats | None,
    offset: float,
    inputs: Inputs,
    group: int,
    pool: Executor,
) -> Best:
    """The point of the grid with the least error of the outputs of ``weights`` (those that are
    packed); of equals, the first.
    """
    weighed = mean_sizes(weights, group)
    whole = _error(weights, None, inputs, group, pool)
    found: Best | None = None
    rounded = 0.0
    for ratio, duo in grid():
        scales = scales_at(ratio, inputs.sizes, weighed, duo=duo)
        stored = None
        if pair.norm and norm is not None:
            stored, scales = divided_norm(norm, offset, scales)
        error = _error(weights, scales, inputs, group, pool) / max(whole, 1e-30)
        if found is None:
            rounded = error
        if found is None or error < found.error:
            found = Best(ratio, duo, scales, stored, rounded, error)
    assert found is not None  # noqa: S101 - a grid has points
    return found


def _error(
    weights: Sequence[Floats], scales: Floats | None, inputs: Inputs, group: int, pool: Executor
) -> float:
    """‖(Q(W s)/s − W) X‖²; of W itself where there are no scales."""
    pieces = [
        one[row : row + ROWS_AT_ONCE] for one in weights for row in range(0, len(one), ROWS_AT_ONCE)
    ]
    errors = pool.map(lambda piece: _piece(piece, scales, inputs.gram, group), pieces)
    return float(sum(errors))


def _piece(piece: Floats, scales: Floats | None, gram: Any, group: int) -> float:
    import torch

    off = piece if scales is None else quantized(piece * scales, group) / scales - piece
    delta = torch.from_numpy(np.ascontiguousarray(off, np.float32))
    return float(((delta @ gram) * delta).sum(dtype=torch.float64))
