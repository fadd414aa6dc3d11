import ctypes
import mmap
import os
from pathlib import Path

import pytest

from serve.readahead import read_ahead
from tests.serve.live import wait_for

SIZE = 8 * 1024**2
LIBC = ctypes.CDLL(None, use_errno=True)


def cached(path: Path) -> bool:
    """Whether every page of the file is in the page cache; asking reads none (mincore(2))."""
    resident = (ctypes.c_ubyte * (SIZE // mmap.PAGESIZE))()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as pages:
        first = ctypes.c_char.from_buffer(pages)
        where = ctypes.c_void_p(ctypes.addressof(first))
        assert LIBC.mincore(where, ctypes.c_size_t(SIZE), resident) == 0
        del first, where
    return all(page & 1 for page in resident)


def test_shards_come_into_the_page_cache_and_other_files_do_not(tmp_path: Path) -> None:
    first, second, other = (tmp_path / f"{n}" for n in ("a.safetensors", "b.safetensors", "other"))
    for path in (first, second, other):
        path.write_bytes(os.urandom(SIZE))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(map(cached, (first, second, other))):
        pytest.skip("this file system keeps its pages")
    read_ahead(tmp_path)
    wait_for(lambda: cached(first) and cached(second), "the shards are cached")
    assert not cached(other)


def test_a_folder_without_shards_is_no_error(tmp_path: Path) -> None:
    read_ahead(tmp_path)
