"""What a test asks of this machine's CPU."""

import pytest

from serve.identity import instructions

FOUND = instructions()
# Users' laptops mostly have none; a CPU that does not tell is no x86-64 one.
WITHOUT = bool(FOUND) and "avx512f" not in FOUND
avx512 = pytest.mark.skipif(
    WITHOUT,
    reason="this CPU has no AVX-512, which vLLM asks for INT4 weights and an FP8 KV cache",
)
same_text = pytest.mark.skipif(
    WITHOUT,
    reason="this CPU has no AVX-512: vLLM's kernels for others round otherwise with drafts, and "
    "near ties part",
)
