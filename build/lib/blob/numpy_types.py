"""safetensors' names of types in NumPy's words; those NumPy lacks are held as their bits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from blob.dtypes import DTYPES

NUMPY: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype.numpy) for name, dtype in DTYPES.items() if dtype.numpy
}
