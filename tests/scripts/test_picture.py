"""A picture is whole or not there, and the same for the same figures."""

import pytest

pytest.importorskip("matplotlib", reason="only measuring installs it")

from matplotlib.figure import Figure

from scripts.picture import keep


def drawn() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2, 4], label="thing")
    return figure


def test_the_same_figures_give_the_same_bytes_with_text_as_text(tmp_path):
    for name in ("a.svg", "b.svg"):
        keep(tmp_path / name, drawn)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<text" in (tmp_path / "a.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_what_cannot_be_drawn_leaves_what_stood_there(tmp_path):
    path = tmp_path / "a.svg"
    path.write_text("before")

    def fails() -> Figure:
        raise LookupError("no such figure")

    with pytest.raises(LookupError):
        keep(path, fails)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_not_replaced_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(OSError, match="directory"):
        keep(tmp_path / "a.svg", drawn)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.svg"]
