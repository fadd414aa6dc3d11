"""Whether an image's weights are still those of a checkout; which of them an archive asks for."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from bake.archive import Limits
from bake.current import wanted
from bake.derive import derive
from bake.errors import BakeError
from bake.image import __main__ as command_line
from bake.image import weights
from serve.errors import ConfigError
from serve.model import find_model
from serve.origin import RECORD
from serve.settings import REPOSITORY, Settings, read_settings
from serve.variant import load_variant
from tests.bake.archives import archive, member

HEAD = "seq8-w4lm"
OTHER = "the image holds other weights than "
KEPT = ("models", "targets", "baseline", "seq8", "awq", HEAD)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A checkout of a few variants and the model that ships."""
    for name in KEPT:
        shutil.copytree(
            REPOSITORY / "experiments" / name,
            tmp_path / "experiments" / name,
            ignore=shutil.ignore_patterns("measurements"),
        )
    shutil.copytree(REPOSITORY / "weights/tiny", tmp_path / "weights/tiny")
    shutil.copy(REPOSITORY / ".dockerignore", tmp_path)
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path / "weights")
    said = {
        "PREHEAT_EXPERIMENTS": str(tmp_path / "experiments"),
        "PREHEAT_DERIVED_ROOT": str(tmp_path / "weights/derived"),
        "TARGET": "cpu",
        "MODEL": "tiny",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    return read_settings(said)


@contextmanager
def step(_what):
    yield lambda _done, _total: None


def make(here: Settings, name: str) -> Path:
    """The folder that a variant serves, made for real."""
    source = find_model("tiny", here.experiments)
    one = wanted(load_variant(name, here.experiments), source, here.derived_root)
    assert one
    return derive(one, step, lambda _line: None).folder


def train(path: Path) -> None:
    """Other weights of the same shape."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def tiny(here: Settings) -> Path:
    return here.experiments.parent / "weights/tiny"


class TestUnlike:
    def test_the_same_weights_are_not_and_others_of_the_same_size_are(self, here):
        held = weights.here(tiny(here))
        assert weights.unlike(here, "tiny", "seq8", held) == ""
        train(tiny(here) / "model.safetensors")
        said = weights.unlike(here, "tiny", "seq8", held)
        assert said == f"{OTHER}{tiny(here)}: make build MODEL=tiny"

    def test_weights_that_were_derived_of_others_are(self, here):
        folder = make(here, HEAD)
        held = weights.here(folder)
        assert weights.unlike(here, "tiny", HEAD, held) == ""
        assert weights.unlike(here, "tiny", HEAD, f"sha256:{'0' * 64}").startswith(OTHER)
        train(tiny(here) / "model.safetensors")
        said = weights.unlike(here, "tiny", HEAD, held)
        assert said.startswith(f"{folder}: made of other weights or by other steps")
        assert said.endswith(": make build MODEL=tiny")

    def test_nobody_can_tell_where_nothing_is_to_compare_with(self, here):
        other = f"sha256:{'0' * 64}"
        assert weights.unlike(here, "unheard-of", "seq8", other) == ""
        assert weights.unlike(here, "tiny", "seq8", "") == ""
        # Derived where it was built.
        assert weights.unlike(here, "tiny", "awq", other) == ""
        shutil.rmtree(tiny(here))
        assert weights.unlike(here, "tiny", "seq8", other) == ""

    def test_a_file_that_no_image_would_take_is_named_and_nothing_else_read(self, here):
        held = weights.here(tiny(here))
        (tiny(here) / "lost.json").symlink_to("nowhere")
        said = weights.unlike(here, "tiny", "seq8", held)
        assert said.startswith("weights/tiny/lost.json: no plain file that can be read")
        assert said.endswith(": make build MODEL=tiny")

    def test_a_package_that_is_not_installed_is_no_answer_and_a_module_of_ours_that_is_gone_is(
        self, here, monkeypatch
    ):
        source = find_model("tiny", here.experiments)
        monkeypatch.setitem(sys.modules, "bake.current", None)
        with pytest.raises(ModuleNotFoundError, match=r"bake\.current"):
            weights.stale(here, source, HEAD)
        monkeypatch.delitem(sys.modules, "bake.current")
        monkeypatch.delitem(sys.modules, "bake.heads", raising=False)
        monkeypatch.setitem(sys.modules, "numpy", None)
        assert weights.stale(here, source, HEAD) == ""

    def test_an_image_alone_is_no_reason_to_derive_what_it_was_made_of_again(self, here):
        folder = make(here, HEAD)
        held = weights.here(folder)
        shutil.rmtree(tiny(here))
        assert weights.unlike(here, "tiny", HEAD, held) == ""


class TestDigest:
    def test_it_is_over_what_goes_into_an_image_less_the_record_of_its_making(self, here):
        folder = make(here, HEAD)
        before = weights.here(folder)
        (folder / "training.json").touch()
        (folder / RECORD).write_bytes((folder / RECORD).read_bytes() + b"\n")
        assert weights.here(folder) == before
        (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
        assert weights.here(folder) != before

    def test_a_file_is_read_again_only_when_its_size_or_time_is_another(self, here, monkeypatch):
        read = []

        def digest(path, most, really=weights.digest):
            read.append(path.name)
            return really(path, most)

        monkeypatch.setattr(weights, "digest", digest)
        before = weights.here(tiny(here))
        assert "model.safetensors" in read
        read.clear()
        assert weights.here(tiny(here)) == before
        assert read == []
        os.utime(tiny(here) / "model.safetensors", (1, 1))
        assert weights.here(tiny(here)) == before
        assert read == ["model.safetensors"]

    def test_what_is_gone_is_not_noted_for_ever(self, here):
        (tiny(here) / "more.json").touch()
        weights.here(tiny(here))
        notes = here.experiments.parent / weights.NOTES
        assert b"more.json" in notes.read_bytes()
        (tiny(here) / "more.json").unlink()
        os.utime(tiny(here) / "config.json", (1, 1))
        weights.here(tiny(here))
        assert b"more.json" not in notes.read_bytes()
        assert b"config.json" in notes.read_bytes()

    @pytest.mark.parametrize("raw", [b"", b"[]", b'{"weights/tiny/config.json": [1]}'])
    def test_damaged_notes_are_read_over(self, here, raw):
        before = weights.here(tiny(here))
        notes = here.experiments.parent / weights.NOTES
        notes.write_bytes(raw)
        assert weights.here(tiny(here)) == before

    def test_of_all_weights_of_an_image_those_in_one_folder(self):
        a, b = ("tiny/a", "0" * 64, 1), ("derived/tiny/v/a", "0" * 64, 1)
        one = weights.digest_of([a, b], "tiny")
        assert one == weights.digest_of([a], "tiny") == weights.digest_of([b], "derived/tiny/v")
        with pytest.raises(BakeError, match="no weights in tin"):
            weights.digest_of([a, b], "tin")


def test_what_was_derived_where_no_image_would_find_it_is_refused(here, tmp_path):
    elsewhere = here.model_copy(update={"derived_root": tmp_path / "weights/mine"})
    source = find_model("tiny", here.experiments)
    assert weights.served(elsewhere, source, ["seq8"])["seq8"] is source
    with pytest.raises(ConfigError, match=r"an image holds what lies in .*/weights/derived"):
        weights.served(elsewhere, source, ["awq"])


class TestImport:
    """What an archive's own names ask for, before any engine is."""

    def told(self, capsys, tmp_path: Path, *names: str) -> tuple[int, str]:
        file = archive(tmp_path / "c.tar.zst", *(member(f"{name}/a") for name in names))
        status = command_line.main(["import", str(file)])
        out, err = capsys.readouterr()
        assert out == ""
        first, *after = err.splitlines(keepends=True)
        # Of gigabytes, it takes minutes.
        assert first == "  read c.tar.zst …\n"
        return status, "".join(one for one in after if not one.startswith("  read c.tar.zst done"))

    def test_folders_that_its_variants_serve_must_be_here(self, here, capsys, tmp_path):
        status, said = self.told(capsys, tmp_path, "cpu/tiny/awq", "cpu/tiny/seq8")
        assert (status, said.splitlines()[0]) == (
            2,
            f"preheat: model tiny: no folder {here.derived_root}/tiny/awq-w4a16-mlp_g32",
        )
        assert "preheat bake derive awq --model tiny" in said

    def test_of_other_variants_none_need_be_and_none_are_taken(
        self, here, capsys, tmp_path, monkeypatch
    ):
        made = []
        monkeypatch.setattr(command_line, "_make", lambda _, wanted: made.append(wanted) or 0)
        make(here, HEAD)
        assert self.told(capsys, tmp_path, "cpu/tiny/seq8") == (0, "")
        assert made[0].weights == {"seq8": "tiny"}
        assert made[0].variants == ("seq8",)
        assert made[0].archive == tmp_path / "c.tar.zst"

    def test_one_that_grows_without_end_is_refused_before_its_signature_is_asked_for(
        self, here, capsys, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(command_line, "LIMITS", Limits(total_bytes=512))
        status, said = self.told(capsys, tmp_path, "cpu/tiny/awq", "cpu/tiny/seq8")
        assert status == 1
        assert said.startswith(f"preheat: {tmp_path / 'c.tar.zst'}: ")
        assert "512" in said

    def test_those_that_are_stale_are_refused(self, here, capsys, tmp_path):
        folder = make(here, HEAD)
        train(tiny(here) / "model.safetensors")
        status, said = self.told(capsys, tmp_path, f"cpu/tiny/{HEAD}")
        assert status == 2
        assert said.startswith(f"preheat: {folder}: made of other weights")

    @pytest.mark.parametrize("name", ["cpu/tiny/seq9", "cpu/other/seq8", "a10g/tiny/seq8"])
    def test_a_root_of_something_else_is_named(self, here, capsys, tmp_path, name):
        status, said = self.told(capsys, tmp_path, name)
        assert status == 1
        assert f"c.tar.zst: holds {name}; wanted cpu/tiny/<variant>, variants " in said
