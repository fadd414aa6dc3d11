"""What codecs are called, and the groups they take: all that a command line needs to know of them.

Imports no numpy: verbs that have nothing to do with weights run where it is not installed.
"""

from collections.abc import Mapping
from typing import Literal

Targets = Literal["mlp", "linears", "all"]
# Name → class in the module of that name in ``blob.codecs``.
CODECS: Mapping[str, str] = {
    "raw": "Raw",
    "zipnn": "ZipNN",
    "int4": "Int4",
    "int5": "Int5",
    "q8_0": "Q8_0",
    "q4_k": "Q4_K",
    "q5_k": "Q5_K",
    "q6_k": "Q6_K",
}
# Group size that a codec takes when none is said; codecs that take none are not here.
GROUPS: Mapping[str, int] = {"int4": 32, "int5": 128}
