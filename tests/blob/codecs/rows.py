"""What every codec of rows must keep to, whatever it stores."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from blob.codecs import bfloat16

TYPES = {"I32": np.int32, "BF16": np.uint16, "U8": np.uint8, "I64": np.int64}


def empty(codec, rows, cols):
    """Parts to encode into, full of something else."""
    wanted = codec.parts(rows, cols)
    return {key: np.full(part.shape, 0x5A, TYPES[part.dtype]) for key, part in wanted.items()}


def encoded(codec, values):
    out = empty(codec, *values.shape)
    codec.encode(values, out)
    return out


def decoded(codec, parts, shape):
    out = np.full(shape, 0x5A5A, np.uint16)
    codec.decode(parts, out)
    return out


def as_bfloat16(values):
    """The same numbers, each the nearest of BF16's."""
    return bfloat16.to_float32(bfloat16.from_float32(values))


def of_all_sizes(rows, cols, seed):
    """Normal numbers whose rows lie between subnormal and huge, with zeros and an outlier."""
    random = np.random.default_rng(seed)
    sizes = random.choice([1e-40, 1e-38, 1e-20, 1e-3, 0.02, 1, 1e4, 1e30], (rows, 1))
    values = (random.standard_normal((rows, cols)) * sizes).astype(np.float32)
    values[random.random((rows, cols)) < 0.02] = 0
    values[random.integers(rows), random.integers(cols)] *= 50
    values[random.integers(rows)] = 0
    return values


def same_as_the_references(codec, values):
    """Fast and plain, both ways, byte for byte; what was read is returned, as BF16 bits."""
    fast, plain = encoded(codec, values), codec.encode_reference(values)
    assert fast.keys() == plain.keys()
    for key in fast:
        assert fast[key].tobytes() == plain[key].tobytes(), key
    read = decoded(codec, fast, values.shape)
    expected = bfloat16.from_float32_reference(codec.decode_reference(fast))
    assert read.tobytes() == expected.tobytes()
    return read


def same_however_rows_are_split(codec, values, threads):
    whole, out = encoded(codec, values), empty(codec, *values.shape)
    read = np.empty(values.shape, np.uint16)
    edges = np.linspace(0, len(values), threads + 1).astype(int)

    def work(slice_):
        codec.encode(values[slice_], {key: part[slice_] for key, part in out.items()})
        codec.decode({key: part[slice_] for key, part in out.items()}, read[slice_])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, map(slice, edges[:-1], edges[1:])))
    assert all(out[key].tobytes() == whole[key].tobytes() for key in whole)
    assert read.tobytes() == decoded(codec, whole, values.shape).tobytes()
