import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from bake import tree
from bake.__main__ import main
from serve import identity, manifest
from tests.bake.archives import archive, member
from tests.serve.checkpoints import checkpoint
from tests.serve.roots import FILES, fill

IDENTITY = {
    "schema": 1,
    "variant": {"name": "baseline", "digest": "0"},
    "model": {"name": "tiny", "path": "/tiny", "config_sha256": "0", "weight_bytes": 1},
    "target": "cpu",
    "versions": {},
    "argv": [],
    "env": {},
    "device": {"kind": "cpu", "name": "x", "presented": "x"},
}


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that is not the caller's, and in it a sound root of ``baseline``."""
    for name in list(os.environ):
        if name.startswith(("PREHEAT_", "VLLM_")) or name in ("VARIANT", "MODEL", "TARGET", "PORT"):
            monkeypatch.delenv(name)
    roots = tmp_path / "baked"
    monkeypatch.setenv("PREHEAT_BAKED_ROOT", str(roots))
    monkeypatch.setenv("MODEL", str(checkpoint(tmp_path / "tiny", "a")))
    monkeypatch.setenv("TARGET", "cpu")
    monkeypatch.chdir(tmp_path)
    described = identity.dump(identity.parse(json.dumps(IDENTITY).encode()))
    root = fill(roots / "cpu" / "tiny" / "baseline", FILES | {identity.FILE: described})
    manifest.write(root)
    tree.seal(root)
    return roots


def said(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0
) -> tuple[str, str]:
    assert main([*map(str, arguments)]) == status
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_sound_root_is_said_to_be(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "cache-verify", "baseline")
    size = sum(path.stat().st_size for path in roots.rglob("*") if path.is_file())
    size -= len(manifest.read(roots / "cpu/tiny/baseline"))
    assert out == f"{roots}/cpu/tiny/baseline: sound: {len(FILES)} files, {size} bytes\n"


def test_all_that_is_wrong_with_a_root_is_told_and_exits_1(
    roots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = roots / "cpu/tiny/baseline"
    (root / "inductor").chmod(0o755)
    for number in range(5):
        (root / "inductor" / str(number)).write_bytes(b"")
    out, _ = said(capsys, "cache-verify", "baseline", "seq8", status=1)
    assert out.splitlines() == [
        f"{root}: not to be used",
        *(f"  inductor/{number}: is not in the manifest" for number in range(5)),
        f"{roots}/cpu/tiny/seq8: not to be used",
        "  there is no such root",
    ]
    out, _ = said(capsys, "cache-verify", "baseline", "--json", status=1)
    (told,) = json.loads(out)["roots"]
    assert told["root"] == str(root)
    assert not told["sound"]
    assert len(told["reasons"]) == 5


def test_export_import_and_verify_for_programs(
    roots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = json.loads(said(capsys, "cache-export", "baseline", "--json")[0])
    assert shipped["file"] == "cache_import.tar.zst"
    assert shipped["roots"] == ["cpu/tiny/baseline"]
    assert shipped["size"] == (tmp_path / "cache_import.tar.zst").stat().st_size
    monkeypatch.setenv("PREHEAT_BAKED_ROOT", str(tmp_path / "there"))
    arrived = json.loads(said(capsys, "cache-import", "cache_import.tar.zst", "--json")[0])
    assert arrived["roots"] == [str(tmp_path / "there/cpu/tiny/baseline")]
    (verified,) = json.loads(said(capsys, "cache-verify", "baseline", "--json")[0])["roots"]
    assert verified["sound"]
    assert verified["files"] == len(FILES)
    assert verified["signed_by"] is None


def test_export_and_import_for_people(
    roots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capsys, "cache-export", "baseline", "--out", "a")
    assert out.startswith("wrote a: 1 roots, ")
    assert "\nsha256 " in out
    _, err = said(capsys, "cache-import", "a", status=1)
    assert err.startswith(f"preheat: {roots}/cpu/tiny/baseline exists\nhint: say --force")
    out, _ = said(capsys, "cache-import", "a", "--force")
    assert out.startswith(f"{roots}/cpu/tiny/baseline: sound, in place\nwho made it was not asked")


def test_a_root_is_signed_and_then_trusted(
    roots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = json.loads(said(capsys, "keygen", "--out", "keys", "--json")[0])
    monkeypatch.setenv("PREHEAT_TRUSTED_KEYS", made["public"])
    out, _ = said(capsys, "cache-verify", "baseline", status=1)
    assert "manifest.sig: missing" in out
    root = roots / "cpu/tiny/baseline"
    key = json.loads(said(capsys, "sign", root, "--key", made["private"], "--json")[0])["key"]
    out, _ = said(capsys, "cache-verify", "baseline")
    assert out.endswith(f", signed by {key}\n")
    _, err = said(capsys, "keygen", "--out", "keys", status=1)
    assert "keys are never overwritten" in err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["cache-verify", "seq9"], 2, "no variant 'seq9'"),
        (["cache-export", "seq8"], 1, "no baked root"),
        (["cache-verify", "baseline", "--target", "cpi"], 2, "did you mean cpu?"),
        (["cache-import", "no-such-file"], 1, "no-such-file: No such file or directory"),
        (["sign", ".", "--key", "no-such-file"], 1, "hint: preheat bake keygen"),
    ],
)
def test_what_is_wrong_is_told_with_a_status_and_no_traceback(
    roots: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    _, err = said(capsys, *arguments, status=status)
    assert err.startswith("preheat: ")
    assert words in err


def test_trusted_keys_that_are_none_are_a_usage_error(
    roots: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREHEAT_TRUSTED_KEYS", "no-such-file")
    assert "PREHEAT_TRUSTED_KEYS=" in said(capsys, "cache-verify", "baseline", status=2)[1]


def test_an_archive_that_is_hostile_is_refused_in_one_line(
    roots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive(tmp_path / "bad", member("../../../etc/cron.d/x", b"x"))
    _, err = said(capsys, "cache-import", "bad", status=1)
    assert err == (
        "preheat: bad: a name that no root can hold: "
        "'../../../etc/cron.d/x' is not a plain path below its root\n"
    )


def test_more_bytes_than_allowed_are_refused(
    roots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "cache-export", "baseline")
    file = "cache_import.tar.zst"
    _, err = said(capsys, "cache-import", file, "--max-bytes", "1000", "--force", status=1)
    assert "unpacks to more than 1000 bytes\nhint: say --max-bytes" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["cache-verify"],
        ["cache-export"],
        ["cache-import"],
        ["cache-import", "a", "--max-bytes", "0"],
        ["cache-import", "a", "--max-bytes", "much"],
        ["keygen"],
        ["sign", "a"],
        ["no-such"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: preheat bake" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["cache-verify", "cache-export", "cache-import", "keygen", "sign"])
def test_every_verb_says_what_it_does(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_a_library_that_is_missing_is_named_with_what_to_install(
    roots: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name in ("bake.archive", "bake.shipping")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.delattr("backports.zstd")
    _, err = said(capsys, "cache-import", "a", status=1)
    assert err == ("preheat: backports.zstd is not installed\nhint: pip install 'preheat[bake]'\n")


def test_a_bar_is_shown_on_a_terminal_and_only_there(roots: Path) -> None:
    command = [sys.executable, "-m", "bake", "cache-export", "baseline"]
    master, slave = pty.openpty()
    try:
        done = subprocess.run(command, stderr=slave, stdout=subprocess.PIPE, check=True)
        shown = os.read(master, 4096)
    finally:
        os.close(slave)
        os.close(master)
    assert b"packing" in shown
    assert done.stdout.startswith(b"wrote cache_import.tar.zst")
    quiet = subprocess.run(command, capture_output=True, check=True)
    assert quiet.stderr == b""
