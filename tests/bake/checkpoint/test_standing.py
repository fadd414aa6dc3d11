"""Where a folder may be made is known before the work that fills it."""

import pytest

from bake.checkpoint.standing import check_free
from bake.errors import BakeError


def test_a_free_place_is_free_and_nothing_is_left_of_the_question(tmp_path):
    (tmp_path / "model").mkdir()
    check_free(tmp_path / "new" / "folder", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(BakeError, match="file/new: cannot be written: Not a directory"):
        check_free(tmp_path / "file" / "new", tmp_path / "model")
