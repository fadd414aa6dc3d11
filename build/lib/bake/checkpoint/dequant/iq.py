"""ggml's IQ types: the kernel of each, by its name in GGUF.

Each gives the float32 numbers of ``dequantize_row_iq*`` (ggml-quants.c), bit for bit, or these
rounded once to BF16. gguf-py's are the same.
"""

from collections.abc import Mapping

from bake.checkpoint.dequant.blocks import Blocks, Kernel
from bake.checkpoint.dequant.iq1 import iq1_m_rows, iq1_s_rows
from bake.checkpoint.dequant.iq2 import iq2_s_rows, iq2_xs_rows, iq2_xxs_rows
from bake.checkpoint.dequant.iq3 import iq3_s_rows, iq3_xxs_rows
from bake.checkpoint.dequant.iq4 import iq4_nl_rows, iq4_xs_rows
from bake.checkpoint.ggml_types import BY_NAME

KERNELS: Mapping[str, Kernel] = {
    "IQ1_S": iq1_s_rows,
    "IQ1_M": iq1_m_rows,
    "IQ2_XXS": iq2_xxs_rows,
    "IQ2_XS": iq2_xs_rows,
    "IQ2_S": iq2_s_rows,
    "IQ3_XXS": iq3_xxs_rows,
    "IQ3_S": iq3_s_rows,
    "IQ4_NL": iq4_nl_rows,
    "IQ4_XS": iq4_xs_rows,
}
DECODERS: Mapping[str, Blocks] = {
    name: Blocks(name, BY_NAME[name].values, BY_NAME[name].size, rows)
    for name, rows in KERNELS.items()
}
