"""safetensors files as a conversion writes them: what the library reads of them, and when."""

import json

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from bake.checkpoint.output import Output
from bake.checkpoint.writing import (
    Buffers,
    index_of,
    is_whole,
    nbytes,
    planned,
    write,
)


def output(name, shape, kept=""):
    return Output(name, shape, (), lambda _inputs, _out, _threads: None, kept)


def numbers(one, dtype):
    count = nbytes(one, dtype)
    return np.arange(count, dtype=np.uint8) * 7


def written(folder, outputs, dtype="F32", most=2**31):
    files = planned(outputs, dtype, most)
    largest = max((nbytes(one, dtype) for one in outputs), default=0)
    with Buffers(largest) as buffers:
        for file in files:
            for one, array in write(folder, file, dtype, buffers):
                array.reshape(-1).view(np.uint8)[:] = numbers(one, dtype)
    return files


OUTPUTS = [
    output("b", (3, 5)),
    output("a", (7,)),
    output("ids", (4,), "I64"),
    output("none", (0, 8)),
    output("one", ()),
]


def test_the_library_reads_what_was_written(tmp_path):
    (file,) = written(tmp_path, OUTPUTS)
    assert file.name == "model.safetensors"
    assert (tmp_path / file.name).stat().st_size == file.size
    with safe_open(tmp_path / file.name, "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        for one in OUTPUTS:
            there = opened.get_tensor(one.name)
            assert there.shape == one.shape
            assert there.dtype == (np.int64 if one.kept else np.float32)
            assert there.tobytes() == numbers(one, "F32").tobytes()


def test_bf16_is_written_as_its_bits(tmp_path):
    (file,) = written(tmp_path, [output("x", (2, 3))], "BF16")
    with safe_open(tmp_path / file.name, "np") as opened:
        assert opened.get_slice("x").get_dtype() == "BF16"


@pytest.mark.parametrize("most", [1, 30, 61, 100, 10**9])
def test_files_are_split_by_size_and_the_index_knows_them(tmp_path, most):
    files = written(tmp_path, OUTPUTS, most=most)
    there = {}
    for file in files:
        held = safetensors.numpy.load_file(tmp_path / file.name)
        size = sum(array.nbytes for array in held.values())
        assert len(held) == 1 or size <= most
        there |= dict.fromkeys(held, file.name)
    assert there.keys() == {one.name for one in OUTPUTS}
    index = json.loads(index_of(files))
    assert index["weight_map"] == there
    assert index["metadata"]["total_size"] == sum(nbytes(one, "F32") for one in OUTPUTS)


def test_data_begin_where_they_can_be_mapped_as_numbers(tmp_path):
    for file in planned(OUTPUTS, "F32", 40):
        assert len(file.header) % 8 == 0


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    (file,) = planned(OUTPUTS, "F32")
    with Buffers(100) as buffers:
        making = write(tmp_path, file, "F32", buffers)
        for _ in OUTPUTS:
            next(making)
            assert not (tmp_path / file.name).exists()
        making.close()
    assert not is_whole(tmp_path / file.name, file)
    written(tmp_path, OUTPUTS)
    assert is_whole(tmp_path / file.name, file)


def test_another_file_of_its_size_is_not_taken_for_it(tmp_path):
    (file,) = written(tmp_path, OUTPUTS)
    path = tmp_path / file.name
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    assert not is_whole(path, file)
    path.write_bytes(raw[:-1])
    assert not is_whole(path, file)


def test_a_disk_that_is_full_is_told(tmp_path):
    (file,) = planned([output("x", (1 << 20,))], "F32")
    with Buffers(1 << 22) as buffers:
        # Nothing that is written to it arrives.
        (tmp_path / f"{file.name}.tmp").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space"):
            list(write(tmp_path, file, "F32", buffers))
    assert not (tmp_path / file.name).exists()


def test_an_earlier_unfinished_file_is_written_anew(tmp_path):
    (tmp_path / "model.safetensors.tmp").write_bytes(b"x" * 10_000)
    (file,) = written(tmp_path, OUTPUTS)
    assert is_whole(tmp_path / file.name, file)
