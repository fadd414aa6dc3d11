import pytest

from scripts.quality.kept import Kept, name_of


def test_what_was_kept_is_taken_up_and_a_fresh_start_forgets_it(tmp_path):
    Kept("one", fresh=True, cache=tmp_path).put("rtn mlp g32", {"nll": [1.5]})
    again = Kept("one", fresh=False, cache=tmp_path)
    assert again.get("rtn mlp g32") == {"nll": [1.5]}
    assert again.get("awq mlp g32") is None
    assert Kept("other", fresh=False, cache=tmp_path).get("rtn mlp g32") is None
    assert Kept("one", fresh=True, cache=tmp_path).get("rtn mlp g32") is None
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_of_words_and_of_what_files_hold(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"a")
    name = name_of(["tiny", 64], [file])
    assert name == name_of(["tiny", 64], [file])
    assert name != name_of(["tiny", 6, 4], [file])
    file.write_bytes(b"b")
    assert name != name_of(["tiny", 64], [file])
    with pytest.raises(FileNotFoundError):
        name_of([], [tmp_path / "none"])
