"""Prompts and texts as they are read, whoever reads them."""

import json
from pathlib import Path

import pytest

from scripts.lines import BadLine, read_objects


def test_a_text_may_hold_any_separator_but_a_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    said = [{"text": "a\u2028b\x85c\x0cd"}, {"text": "e"}]
    path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in said) + "\n\n")
    found = list(read_objects(path))
    assert [item for _, item in found] == said
    assert found[1][0] == f"{path}: line 2"


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"{}\n{\n", "line 2: not JSON"), (b"3\n", "got int"), (b"\xff\n", "not UTF-8")],
)
def test_what_is_no_object_is_told_where(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(BadLine, match=said):
        list(read_objects(path))
