"""The verbs on blobs, as a person runs them."""

import json
import os
import subprocess
import sys

import pytest

from bake.__main__ import main
from tests.bake.weights.folders import folder_of, model
from tests.blob.blobs import bfloats, content, names, place


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs ``preheat bake``: exit status, what it printed, and what it complained of."""
    folder_of(tmp_path / "small")
    monkeypatch.setenv("PREHEAT_BLOB_ROOT", str(tmp_path / "blobs"))
    monkeypatch.chdir(tmp_path)

    def running(*argv):
        capsys.readouterr()
        status = main(list(argv))
        said = capsys.readouterr()
        return status, said.out, said.err

    return running


def damage(folder):
    shard = next(folder.glob("*.safetensors"))
    raw = shard.read_bytes()
    place(folder, raw[:-1] + bytes([raw[-1] ^ 1]), shard.name)


def test_a_blob_is_packed_proven_compared_shipped_and_swept(run, tmp_path):
    status, out, err = run("pack", "small", "--codec", "int5")
    blob = tmp_path / "blobs" / "small-int5"
    assert (status, err) == (0, "")
    assert f"wrote {blob}: 12 tensors (6 int5, 6 raw)" in out
    assert f"serve it: make serve MODEL={blob}" in out

    status, out, _ = run("verify", str(blob))
    assert status == 0
    assert out.startswith(f"{blob}: sound: 12 tensors, fingerprint ")

    run("pack", "small", "--codec", "q6_k", "--out", "other")
    status, out, _ = run("diff", str(blob), "other")
    assert status == 1
    assert "model.layers.0.mlp.up_proj.weight: changed: codec int5 → q6_k" in out
    assert run("diff", str(blob), str(blob)) == (0, "the same\n", "")

    status, out, _ = run("export", str(blob))
    assert status == 0
    assert "wrote small-int5.tar.zst: " in out
    status, out, _ = run("import", "small-int5.tar.zst", "--root", "there")
    assert status == 0
    assert "there/small-int5: sound: 12 tensors" in out
    assert content(tmp_path / "there" / "small-int5") == content(blob)

    assert run("sweep") == (0, f"{tmp_path}/blobs/store: freed 0 bytes\n", "")


def test_int4_packs_the_mlp_unless_told_otherwise(run):
    assert json.loads(run("pack", "small", "--codec", "int4", "--json")[1])["codecs"]["int4"] == 4
    told = run("pack", "small", "--codec", "int4", "--targets", "all", "--json", "--force")[1]
    assert json.loads(told)["codecs"]["int4"] == 7
    told = run("pack", "small", "--codec", "int5", "--group", "64", "--json")[1]
    assert json.loads(told)["codecs"]["int5"] == 6


def test_programs_get_json_and_nothing_else(run, tmp_path):
    made = json.loads(run("pack", "small", "--codec", "int5", "--json")[1])
    blob = made["folder"]
    assert made["tensors"] == 12
    assert json.loads(run("verify", blob, "--json")[1]) == {
        "blobs": [{"blob": blob, "sound": True, "faults": []}]
    }
    shipped = json.loads(run("export", blob, "--out", "a", "--json")[1])
    assert shipped["file"] == "a"
    arrived = json.loads(run("import", "a", "--root", "there", "--json")[1])
    assert arrived["roots"] == [str(tmp_path / "there" / "small-int5")]
    assert json.loads(run("diff", blob, blob, "--json")[1]) == {"changes": []}
    assert json.loads(run("sweep", "--json")[1]) == {"freed": 0}


def test_damage_is_told_by_tensor_and_file_and_the_status_says_so(run, tmp_path):
    blob = tmp_path / "blobs" / "small-int5"
    run("pack", "small", "--codec", "int5")
    damage(blob)
    config = (blob / "config.json").read_bytes()
    place(blob, config.replace(b"256", b"257"), "config.json")
    status, out, _ = run("verify", str(blob))
    assert status == 1
    assert out.startswith(f"{blob}: not to be used\n")
    assert "\n  config.json: sha256 differs" in out
    assert out.count("\n  model.") == 1
    found = json.loads(run("verify", str(blob), "--json")[1])["blobs"][0]
    assert not found["sound"]
    assert {"where", "detail"} == found["faults"][0].keys()
    status, _, err = run("export", str(blob), "--out", "a")
    assert status == 1
    assert "hint: look at all: preheat bake verify" in err


def test_what_cannot_be_done_is_said_in_words_with_the_next_step(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for argv, said in (
        (["diff", "empty", "empty"], "cannot be read"),
        (["export", "empty"], "cannot be read"),
        (["import", "nothing"], "nothing: No such file or directory"),
        (["pack", "empty", "--codec", "int5"], "config.json: cannot be read"),
        (["sweep", "--store", "nowhere"], "no store\nhint: pack a blob first"),
        (["sweep", "--store", "empty"], "empty: no store: there is no lock of ours in it"),
        (["pack", "small", "--codec", "int5", "--store", "small"], "small: no store: there is"),
        (["pack", "small", "--codec", "int5", "--group", "0"], "multiple of 32, got 0"),
        (["pack", "small", "--codec", "q6_k", "--group", "32"], "takes no group"),
        (["pack", "small", "--codec", "int5", "--group", "31"], "multiple of 32"),
    ):
        status, _, err = run(*argv)
        assert status == 1, argv
        assert said in err
        assert "Traceback" not in err


def test_a_folder_that_is_no_blob_does_not_keep_others_from_being_proven(run, tmp_path):
    run("pack", "small", "--codec", "raw", "--out", "blob")
    (tmp_path / "empty").mkdir()
    status, out, err = run("verify", "empty", "blob", "nowhere")
    assert (status, err) == (1, "")
    said = "manifest.json: cannot be read: No such file or directory; is this the folder of a blob?"
    first, why, second, third, again = out.splitlines()
    assert [first, third] == ["empty: not to be used", "nowhere: not to be used"]
    assert why == again == f"  {said}"
    assert second.startswith("blob: sound: ")
    status, out, _ = run("verify", "empty", "blob", "--json")
    assert status == 1
    where, detail = said.split(": ", 1)
    assert json.loads(out)["blobs"] == [
        {"blob": "empty", "sound": False, "faults": [{"where": where, "detail": detail}]},
        {"blob": "blob", "sound": True, "faults": []},
    ]


WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from bake.__main__ import main
sys.exit(main())
"""


def without(package, *argv):
    command = [sys.executable, "-c", WITHOUT, package, *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_needs_no_weights_runs_without_numpy(tmp_path):
    assert "cache-verify" in without("numpy", "--help").stdout
    assert "int5 128" in without("numpy", "pack", "--help").stdout
    for argv, said in (
        (["cache-import", "nothing"], "nothing: No such file or directory"),
        (["sign", str(tmp_path), "--key", "nothing"], "nothing"),
        (["cache-verify", "seq8", "--model", "tiny", "--target", "cpu"], ""),
    ):
        done = without("numpy", *argv)
        assert done.returncode == 1, done.stderr
        assert said in done.stderr
        assert "not installed" not in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["numpy", "numba", "blake3", "safetensors"])
def test_what_is_not_installed_is_named_with_what_brings_it(tmp_path, package):
    folder_of(tmp_path / "small")
    out = ["--out", str(tmp_path / "blob"), "--store", str(tmp_path / "store")]
    done = without(package, "pack", str(tmp_path / "small"), "--codec", "int5", *out)
    hint = "pip install 'preheat[blob]'"
    assert done.returncode == 1
    assert done.stderr.endswith(f"preheat: {package} is not installed\nhint: {hint}\n")
    done = without("backports", "cache-import", "x")
    assert done.stderr.endswith("is not installed\nhint: pip install 'preheat[bake]'\n")


@pytest.mark.parametrize(
    "argv",
    [
        ["pack", "small"],
        ["pack", "small", "--codec", "int6"],
        ["pack", "small", "--codec", "int5", "--targets", "some"],
        ["pack", "small", "--codec", "int5", "--group", "many"],
        ["verify"],
        ["import", "x", "--max-bytes", "many"],
        ["import", "x", "--max-bytes", "0"],
        ["import", "x", "--max-bytes", "-5"],
    ],
)
def test_what_is_asked_for_wrongly_is_a_matter_of_usage(run, argv):
    with pytest.raises(SystemExit, match="2"):
        run(*argv)


def test_notes_tell_what_the_recipe_could_not_do(run, tmp_path):
    tensors = model() | {"model.layers.0.mlp.odd.weight": ("BF16", bfloats(8, 96))}
    folder_of(tmp_path / "odd", tensors)
    out = run("pack", "odd", "--codec", "q6_k")[1]
    assert "note: model.layers.0.mlp.odd.weight: 96 columns are no multiple of 256: q8_0\n" in out


def test_an_archive_larger_than_agreed_on_is_refused_and_can_be_agreed_on(run):
    run("pack", "small", "--codec", "int5", "--out", "blob")
    run("export", "blob", "--out", "a")
    status, _, err = run("import", "a", "--root", "there", "--max-bytes", "5000")
    assert status == 1
    assert "unpacks to more than 5000 bytes\nhint: say --max-bytes" in err
    assert run("import", "a", "--root", "there", "--max-bytes", "500000")[0] == 0


def test_the_store_gives_back_what_no_blob_uses(run, tmp_path):
    run("pack", "small", "--codec", "int5")
    for path in (tmp_path / "blobs" / "small-int5").iterdir():
        path.unlink()
    status, out, _ = run("sweep")
    assert status == 0
    assert "freed 0 bytes" not in out
    assert set(content(tmp_path / "blobs" / "store")) == {"lock"}


def test_names_of_any_bytes_are_printed_where_a_terminal_takes_few(run, tmp_path):
    run("pack", "small", "--codec", "raw", "--out", "blob")
    (tmp_path / "blob" / os.fsdecode(b"\xff\x1b[2J")).write_bytes(b"")
    argv = [sys.executable, "-m", "bake", "verify", str(tmp_path / "blob")]
    done = subprocess.run(
        argv, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"\\udcff\\x1b[2J: is not in the manifest" in done.stdout
    assert done.stderr == b""
    assert names(tmp_path / "blob")
