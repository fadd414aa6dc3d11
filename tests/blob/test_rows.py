"""One matrix on several threads: the bytes are those of one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob import rows
from blob.codecs.bfloat16 import from_float32_reference
from blob.registry import codec_of
from tests.blob import blobs

ROW_CODECS = [codec for codec in blobs.CODECS if codec not in ("raw", "zipnn")]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 1000))
def test_pieces_are_all_rows_once_in_order_and_none_too_large(height, width, numbers):
    pieces = list(rows.pieces(height, width, numbers))
    assert [row for piece in pieces for row in range(height)[piece]] == list(range(height))
    assert all(len(range(height)[p]) * width <= max(numbers, width) for p in pieces)


@pytest.mark.parametrize("name", ROW_CODECS)
@pytest.mark.parametrize("shape", [(1, 256), (67, 1280), (515, 512)])
def test_any_number_of_threads_makes_the_same_bytes(name, shape):
    codec = codec_of(name, blobs.GROUP.get(name, {}), name)
    values = (np.random.default_rng(1).standard_normal(shape) * 0.02).astype(np.float32)
    one = rows.encode(codec, values)
    expected = np.empty(shape, np.uint16)
    rows.decode(codec, one, expected)
    for threads in (2, 3, 8):
        many = rows.encode(codec, values, threads)
        assert one.keys() == many.keys()
        assert all(one[key].tobytes() == many[key].tobytes() for key in one)
        out = np.full(shape, 0x5A5A, np.uint16)
        rows.decode(codec, many, out, threads)
        assert out.tobytes() == expected.tobytes()
    few = {key: part[:4] for key, part in rows.of_rows(codec, one, shape[1]).items()}
    plain = from_float32_reference(codec.decode_reference(few))
    assert plain.tobytes() == expected[:4].tobytes()


@pytest.mark.parametrize("name", ROW_CODECS)
def test_no_rows_are_no_work(name):
    codec = codec_of(name, blobs.GROUP.get(name, {}), name)
    parts = rows.encode(codec, np.empty((0, 512), np.float32), 2)
    rows.decode(codec, parts, np.empty((0, 512), np.uint16), 2)
    assert all(len(part) == 0 for part in rows.of_rows(codec, parts, 512).values())


def test_what_goes_wrong_in_a_thread_is_told():
    codec = codec_of("q6_k", {}, "x")
    parts = rows.encode(codec, np.ones((4, 256), np.float32))
    with pytest.raises(ValueError, match=r"contiguous|shape|must"):
        rows.decode(codec, {"blocks": parts["blocks"][:, :-1]}, np.empty((4, 256), np.uint16), 2)
