"""The arithmetic of a low-rank preview: directions, energy, cost, recall."""

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 256


def directions(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, largest first, and right singular vectors as columns, of (rows, width).

    By the eigenvectors of the width x width Gram matrix in float64, as rows may be 250,000:
    values below 1e-8 of the largest are noise.
    """
    double = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for part in matrix.split(16384):
        double += part.double().t() @ part.double()
    values, vectors = torch.linalg.eigh(double)
    return values.clamp(min=0).sqrt().flip(0), vectors.flip(1).float()


def energy(values: Tensor, rank: int) -> float:
    """Share of the squared Frobenius norm that ``rank`` directions hold (Eckart-Young)."""
    squares = values.double() ** 2
    return float(squares[:rank].sum() / squares.sum())


def costs(vocabulary: int, hidden: int, rank: int, candidates: int, width: int) -> dict[str, int]:
    """Bytes read and FLOPs of one token's logits, by the whole head and by a preview.

    A preview reads its (vocabulary, rank) scores' matrix, the (hidden, rank) projection and the
    candidates' rows; ``width`` is a value's bytes. It is held beside the head.
    """
    values = vocabulary * rank + hidden * rank
    return {
        "bytes_full": vocabulary * hidden * width,
        "bytes_read": (values + candidates * hidden) * width,
        "bytes_held_more": values * width,
        "flops_full": 2 * vocabulary * hidden,
        "flops": 2 * (values + candidates * hidden),
    }


def recall(
    head: Tensor, axes: Tensor, states: Tensor, candidates: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Share of the head's first choice, and of its first five, among so many candidates.

    ``axes`` is (hidden, rank) with orthonormal columns, ``states`` (tokens, hidden).
    """
    scores = head @ axes
    found = {"top1": dict.fromkeys(map(str, candidates), 0), "top5": {}}
    found["top5"] = dict(found["top1"])
    for part in states.split(ROWS):
        best = (part @ head.t()).topk(5).indices
        ranked = ((part @ axes) @ scores.t()).topk(max(candidates)).indices
        for m in candidates:
            hit = (best[:, :, None] == ranked[:, None, :m]).any(-1)
            found["top1"][str(m)] += int(hit[:, 0].sum())
            found["top5"][str(m)] += int(hit.sum())
    count = len(states)
    return {
        "top1": {m: round(n / count, 5) for m, n in found["top1"].items()},
        "top5": {m: round(n / count / 5, 5) for m, n in found["top5"].items()},
    }
