"""Checkpoints made of arrays, as a parser would give them, and what a plan makes of them."""

import numpy as np

from bake.checkpoint import schemes
from bake.checkpoint.contents import Tensor
from blob.codecs import bfloat16

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}


class Stored:
    """Arrays by name; ``dtypes`` says what bits are, where their array does not."""

    def __init__(self, arrays, dtypes=None):
        self.arrays = dict(arrays)
        self.dtypes = dict(dtypes or {})

    @property
    def tensors(self):
        return {
            name: Tensor(
                name,
                self.dtypes.get(name, DTYPES[array.dtype.name]),
                array.shape,
                0,
                array.nbytes,
            )
            for name, array in self.arrays.items()
        }

    def read(self, name):
        return self.arrays[name]

    def plan(self, settings=None, **config):
        if settings is not None:
            config["quantization_config"] = settings
        return schemes.plan(self.tensors, config, self.read)

    def filled(self, settings, name, into=np.float32, threads=1):
        """The one output of this name, filled."""
        (output,) = (each for each in self.plan(settings) if each.name == name)
        out = np.full(output.shape, 7, into)
        output.fill([self.arrays[each] for each in output.inputs], out, threads)
        return out

    def check_threads(self, settings, name):
        """Bytes are the same on any number of threads, and BF16 is float32 rounded; float32."""
        alone = self.filled(settings, name)
        short = self.filled(settings, name, np.uint16)
        np.testing.assert_array_equal(short, bfloat16.from_float32_reference(alone))
        for threads in (2, 3, 7):
            assert self.filled(settings, name, threads=threads).tobytes() == alone.tobytes()
            again = self.filled(settings, name, np.uint16, threads)
            assert again.tobytes() == short.tobytes()
        return alone


def same(ours, theirs):
    """Bit for bit, whatever NaN."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float32
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    np.testing.assert_array_equal(ours.view(np.uint32)[~nan], theirs.view(np.uint32)[~nan])
