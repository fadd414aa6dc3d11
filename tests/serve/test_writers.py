import os
from pathlib import Path

import pytest

from serve import writers


def status(mode: int, uid: int | None = None, gid: int = 12345) -> os.stat_result:
    owner = os.geteuid() if uid is None else uid
    return os.stat_result((mode, 0, 0, 1, owner, gid, 0, 0, 0, 0))


STRANGER = os.geteuid() + 4321


@pytest.mark.parametrize(
    ("mode", "uid", "why"),
    [
        (0o100444, None, ""),
        (0o100600, None, ""),
        (0o100755, 0, ""),
        (0o100664, None, "can be written by group 12345"),
        (0o100646, None, "can be written by everybody"),
        (0o100666, 0, "can be written by everybody"),
        (0o100400, STRANGER, f"belongs to uid {STRANGER}, neither root nor us"),
    ],
)
def test_only_root_and_we_may_write(mode: int, uid: int | None, why: str) -> None:
    assert writers.others(status(mode, uid)) == why


def test_the_fix_can_be_pasted(tmp_path: Path) -> None:
    assert writers.fix(status(0o666), Path("/a b")) == "chmod go-w '/a b'"
    assert writers.fix(status(0o666, STRANGER), Path("/a")) == f"chown {os.geteuid()} /a"


def test_a_folder_above_that_others_can_write_is_named(tmp_path: Path) -> None:
    root = tmp_path / "open" / "root"
    root.mkdir(parents=True)
    assert writers.above(root) == []
    root.parent.chmod(0o777)
    assert writers.above(root) == [
        f"{root.parent} can be written by everybody: chmod go-w {root.parent}"
    ]


def test_a_sticky_folder_above_is_harmless(tmp_path: Path) -> None:
    root = tmp_path / "tmp" / "root"
    root.mkdir(parents=True)
    root.parent.chmod(0o1777)
    assert writers.above(root) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_above_that_belongs_to_somebody_else_is_named(tmp_path: Path) -> None:
    root = tmp_path / "his" / "root"
    root.mkdir(parents=True)
    os.chown(root.parent, STRANGER, -1)
    assert writers.above(root) == [
        f"{root.parent} belongs to uid {STRANGER}, neither root nor us: chown 0 {root.parent}"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_group_that_is_the_owner_alone_may_write_above(tmp_path: Path) -> None:
    root = tmp_path / "mine" / "root"
    root.mkdir(parents=True)
    os.chown(root.parent, 0, 0)
    root.parent.chmod(0o775)
    assert writers.above(root) == []
    os.chown(root.parent, 0, 12345)
    assert writers.above(root) == [
        f"{root.parent} can be written by group 12345: chmod go-w {root.parent}"
    ]
