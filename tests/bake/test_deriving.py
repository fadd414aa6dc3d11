"""``preheat bake derive`` as a person and as ``make`` call it, on the model that ships."""

import json
import os
from pathlib import Path

import pytest

from bake.__main__ import main
from serve.derivation import derived
from serve.model import find_model
from serve.settings import REPOSITORY
from serve.variant import load_variant

EXPERIMENTS = REPOSITORY / "experiments"
# Of these, one alone makes weights, and quickly.
PLAIN, HEAD = "seq8", "seq8-w4lm"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("PREHEAT_") or name in ("VARIANT", "MODEL", "TARGET", "PORT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PREHEAT_DERIVED_ROOT", str(tmp_path / "derived"))
    monkeypatch.setenv("TARGET", "cpu")
    return tmp_path / "derived"


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["derive", *words]) == status
    return capsys.readouterr().out


def test_what_is_needed_is_made_where_the_server_looks_and_then_needed_no_more(root, capsys):
    both = (PLAIN, HEAD, HEAD, "--model", "tiny")
    assert said(capsys, "--needed", *both) == f"{HEAD}\n"
    assert not root.exists()
    assert said(capsys, *both).startswith(f"wrote {root}/tiny/lmhead-w4a16_g32: ")
    source = find_model("tiny", EXPERIMENTS)
    assert derived(load_variant(HEAD, EXPERIMENTS), source, root).path.is_dir()
    assert json.loads(said(capsys, "--needed", "--json", *both)) == {"needed": []}
    assert ": there already: " in said(capsys, *both)
    assert said(capsys, "--force", *both).startswith("wrote ")


def test_a_program_is_told_what_was_made(root, capsys):
    (told,) = json.loads(said(capsys, HEAD, "--model", "tiny", "--json"))["derived"]
    assert told["folder"] == str(root / "tiny" / "lmhead-w4a16_g32")
    assert told["new"] is True
    assert told["bytes"] > 0


def test_variants_that_serve_a_model_as_it_is_need_nothing(root, capsys):
    assert said(capsys, PLAIN, "--model", "tiny").startswith("nothing to make")
    assert said(capsys, PLAIN, "--needed", "--model", "tiny") == "\n"
    assert not root.exists()


def test_a_model_by_its_path_is_not_the_one_that_has_its_name(root, capsys):
    path = str(REPOSITORY / "weights" / "tiny")
    out = said(capsys, HEAD, "--model", path)
    assert f"wrote {root}/tiny-" in out
    assert said(capsys, HEAD, "--needed", "--model", "tiny") == f"{HEAD}\n"


def test_a_variant_that_is_none_is_named(root, capsys):
    assert main(["derive", "seq9"]) == 2
    assert "no variant 'seq9'" in capsys.readouterr().err
