"""One tensor of the folder that a conversion writes, and what makes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

# The stored inputs, the array to fill (float32, or uint16 for the bits of BF16), and threads.
# Shapes were checked when it was planned; bytes are the same for every number of threads.
Fill = Callable[[Sequence[NDArray[Any]], NDArray[Any], int], None]


@dataclass(frozen=True)
class Output:
    """``inputs`` are names of stored tensors. ``kept`` is the dtype of one that is copied as it
    is (whole numbers, truth values); without it, numbers become the dtype asked for.
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    fill: Fill
    kept: str = ""
