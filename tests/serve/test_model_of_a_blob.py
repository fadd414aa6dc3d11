"""A model folder whose weights are a blob, or the slices of ranks."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blob.codecs.int4 import Int4
from blob.codecs.raw import Raw
from blob.errors import BlobError
from blob.manifest import NAME, Rank
from blob.recipe import Choice, Recipe
from blob.store import Store
from blob.writer import About, Plain, write
from serve.command import build
from serve.errors import ConfigError
from serve.model import Model, find_model, load_model
from serve.plan import Plan
from serve.preflight import needed_bytes
from tests.serve.test_command import GPU, PLACE, after, variant

CONFIG = b'{"architectures": ["Qwen3_5ForCausalLM"]}'
MODEL = "0" * 64


def loaded(folder: Path) -> Model:
    return load_model(find_model(str(folder), folder / "no-experiments"))


def packed(folder: Path, *names: str, rank: Rank | None = None) -> Path:
    tensors = [Plain(name, "F32", np.ones(8, np.float32), Choice(Raw())) for name in names]
    files = {} if rank else {"config.json": CONFIG, "tokenizer.json": b"{}"}
    about = About(Recipe("raw").describe(), files=files, rank=rank)
    write(folder, tensors, Store(folder.parent / "store"), about)
    return folder


def sliced(folder: Path, world: int) -> Path:
    for rank in range(world):
        of = Rank(rank=rank, world=world, topology=f"tp{world} pp1", model=MODEL)
        packed(folder / f"rank-{rank}-of-{world}", "model.a", rank=of)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "tokenizer.json").write_bytes(b"{}")
    return folder


def test_a_blob_is_told_by_its_manifest(tmp_path: Path) -> None:
    model = loaded(packed(tmp_path / "m", "model.a", "mtp.b"))
    assert model.has_mtp
    assert model.weight_bytes == 64
    assert model.blob is not None
    assert (model.blob.codec, model.blob.stored_bytes, model.blob.world) == ("raw", 64, 1)
    assert len(model.blob.fingerprint) == 64


def test_it_is_loaded_by_our_format_and_its_decoders_are_cached_with_the_rest(
    tmp_path: Path,
) -> None:
    command = build(variant(), loaded(packed(tmp_path / "m", "model.a")), GPU, PLACE)
    assert after(command, "--load-format") == ["preheat"]
    assert "--tensor-parallel-size" not in command.argv
    assert command.env["NUMBA_CACHE_DIR"] == str(PLACE.cache_root / "numba")


def test_a_checkpoint_is_loaded_as_ever() -> None:
    command = build(variant(), Model("m", Path("/m"), "A", 1, has_mtp=False), GPU, PLACE)
    assert "--load-format" not in command.argv
    assert "NUMBA_CACHE_DIR" not in command.env


def test_slices_ask_for_as_many_ranks(tmp_path: Path) -> None:
    model = loaded(sliced(tmp_path / "m", 2))
    assert model.blob is not None
    assert (model.blob.world, model.weight_bytes, model.blob.stored_bytes) == (2, 64, 64)
    assert not model.has_mtp
    command = build(variant(), model, GPU, PLACE)
    assert after(command, "--tensor-parallel-size") == ["2"]


def test_slices_of_a_drafter_tell_that_there_is_one(tmp_path: Path) -> None:
    folder = sliced(tmp_path / "m", 2)
    of = Rank(rank=0, world=2, topology="tp2 pp1", model=MODEL)
    packed(folder / "drafter-0-of-2", "model.fc", rank=of)
    assert loaded(folder).has_mtp


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    folder = sliced(tmp_path / "m", 2)
    shutil.rmtree(folder / "rank-1-of-2")
    with pytest.raises(BlobError, match="rank-1-of-2"):
        loaded(folder)


def test_slices_for_two_worlds_are_no_answer(tmp_path: Path) -> None:
    folder = sliced(sliced(tmp_path / "m", 2), 4)
    with pytest.raises(ConfigError, match=r"worlds of \[2, 4\]"):
        loaded(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_beside_the_weights_that_changed_is_refused(tmp_path: Path, name: str) -> None:
    folder = packed(tmp_path / "m", "model.a")
    path = folder / name
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw.replace(b"{", b"{ ", 1))
    with pytest.raises(ConfigError, match=f"{name}: expected .* bytes, got"):
        loaded(folder)


def test_a_file_that_nobody_listed_is_refused_as_vllm_might_read_it(tmp_path: Path) -> None:
    folder = packed(tmp_path / "m", "model.a")
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"added_tokens\.json: is not in the blob's manifest"):
        loaded(folder)


def test_int4_stays_packed_in_memory(tmp_path: Path) -> None:
    weights = Plain("m.weight", "F32", np.ones((32, 64), np.float32), Choice(Int4()))
    files = {"config.json": CONFIG, "tokenizer.json": b"{}"}
    about = About(Recipe("int4").describe(), files=files)
    made = write(tmp_path / "m", [weights], Store(tmp_path / "store"), about)
    assert loaded(tmp_path / "m").weight_bytes == made.stored_size < made.size


def test_each_rank_of_a_gpu_needs_room_for_its_own_slices_only(tmp_path: Path) -> None:
    model = loaded(sliced(tmp_path / "m", 2))
    on_gpu = needed_bytes(model, GPU)
    cpu = GPU.model_copy(update={"device": "cpu"})
    assert needed_bytes(model, cpu) - on_gpu == 32


def test_a_damaged_manifest_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = packed(tmp_path / "m", "model.a")
    path = folder / NAME
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(BlobError, match=r"model\.a"):
        loaded(folder)


def test_what_is_served_is_told_in_full(tmp_path: Path) -> None:
    model = loaded(packed(tmp_path / "m", "model.a"))
    plan = Plan(variant(), model, GPU, None, build(variant(), model, GPU, PLACE))
    assert plan.describe()["model"]["blob"]["codec"] == "raw"
    plain = replace(plan, model=replace(model, blob=None))
    assert plain.describe()["model"]["blob"] is None
