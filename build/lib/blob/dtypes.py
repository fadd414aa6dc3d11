"""Types of numbers: safetensors' names for them, and what others call the same.

Imports no NumPy: a server tells types apart where it is not installed (``blob.numpy_types`` has
NumPy's own).
"""

from collections.abc import Mapping
from typing import NamedTuple


class Dtype(NamedTuple):
    """Bits of a number; safetensors' Python word for it; the NumPy type that holds it, which for
    those NumPy lacks is one of their bits. Without that, only its size is known here.
    """

    bits: int
    library: str = ""
    numpy: str = ""


# Every type of safetensors 0.8. Those of less than a byte fill whole bytes, as the format asks.
DTYPES: Mapping[str, Dtype] = {
    "BOOL": Dtype(8, "bool", "bool"),
    "F4": Dtype(4),
    "F6_E2M3": Dtype(6),
    "F6_E3M2": Dtype(6),
    "U8": Dtype(8, "uint8", "uint8"),
    "I8": Dtype(8, "int8", "int8"),
    "F8_E4M3": Dtype(8, "float8_e4m3fn", "uint8"),
    "F8_E5M2": Dtype(8, "float8_e5m2", "uint8"),
    "F8_E8M0": Dtype(8, "float8_e8m0fnu", "uint8"),
    "F8_E4M3FNUZ": Dtype(8, "float8_e4m3fnuz", "uint8"),
    "F8_E5M2FNUZ": Dtype(8, "float8_e5m2fnuz", "uint8"),
    "U16": Dtype(16, "uint16", "uint16"),
    "I16": Dtype(16, "int16", "int16"),
    "F16": Dtype(16, "float16", "float16"),
    "BF16": Dtype(16, "bfloat16", "uint16"),
    "U32": Dtype(32, "uint32", "uint32"),
    "I32": Dtype(32, "int32", "int32"),
    "F32": Dtype(32, "float32", "float32"),
    "U64": Dtype(64, "uint64", "uint64"),
    "I64": Dtype(64, "int64", "int64"),
    "F64": Dtype(64, "float64", "float64"),
    "C64": Dtype(64),
}
BITS: Mapping[str, int] = {name: dtype.bits for name, dtype in DTYPES.items()}
# Bytes of one number, of those that can be held.
WIDTH: Mapping[str, int] = {name: dtype.bits // 8 for name, dtype in DTYPES.items() if dtype.numpy}
