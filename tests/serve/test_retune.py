"""The copy of a baked root lacks the winners, and nothing else but what vouches for the whole."""

from pathlib import Path, PurePath

import pytest

from serve.retune import copy_without_winners, is_winner

SHA256 = "ab" * 32
WINNERS = (
    "flashinfer/autotune_configs.json",
    f"inductor/cache/{SHA256}",
    f"triton/KFH3/{'k' * 150}.autotune.json",
    f"vllm/torch_compile_cache/torch_aot_compile/{SHA256}/inductor_cache/ab/{SHA256}.best_config",
)
OTHERS = (
    "factors/backbone.json",
    "identity.json",
    f"inductor/ab/c{SHA256}.py",
    f"inductor/fxgraph/ab/{SHA256}",
    "triton/KFH3/__grp__kernel.json",
    "triton/KFH3/kernel.cubin",
    "triton/KFH3/kernel.json",
    f"vllm/torch_compile_cache/torch_aot_compile/{SHA256}/rank_0_0/model",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in (*WINNERS, *OTHERS, "manifest.json", "manifest.sig"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        path.chmod(0o444)
    return root


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_winners_are_left_out_and_named(root, tmp_path):
    assert copy_without_winners(root, tmp_path / "to") == [PurePath(name) for name in WINNERS]
    assert files(tmp_path / "to") == sorted(OTHERS)


def test_what_is_copied_is_the_same_and_can_be_written_to(root, tmp_path):
    copy_without_winners(root, tmp_path / "to")
    for name in OTHERS:
        path = tmp_path / "to" / name
        assert path.read_bytes() == name.encode()
        assert path.stat().st_mode & 0o200


def test_the_root_is_left_as_it_was(root, tmp_path):
    before = files(root)
    copy_without_winners(root, tmp_path / "to")
    assert files(root) == before


def test_folders_that_held_winners_alone_are_there_for_new_ones(root, tmp_path):
    copy_without_winners(root, tmp_path / "to")
    assert (tmp_path / "to" / "inductor" / "cache").is_dir()


def test_a_folder_that_exists_is_not_written_into(root, tmp_path):
    (tmp_path / "to").mkdir()
    with pytest.raises(FileExistsError):
        copy_without_winners(root, tmp_path / "to")


@pytest.mark.parametrize("name", WINNERS)
def test_this_is_a_winner(name):
    assert is_winner(PurePath(name))


@pytest.mark.parametrize("name", [*OTHERS, "cache", f"cache/{SHA256[:-1]}", f"other/{SHA256}"])
def test_this_is_none(name):
    assert not is_winner(PurePath(name))
