"""Makes `scripts` importable however pytest was started, as it is no installed package; and what
tests of torch share.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices are slower on two of torch's threads, and far slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
