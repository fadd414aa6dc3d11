import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import manifest
from serve.manifest import Kind, ManifestError, dump, parse, verify
from tests.serve.roots import FILES, baked, fill

DIGEST = "0" * 64


def entry(path: str = "a", **other: object) -> dict[str, object]:
    return {"path": path, "sha256": DIGEST, "size": 1, **other}


def spelled(*files: object, **other: object) -> bytes:
    tree = {"files": list(files), "schema": 1, **other}
    return (json.dumps(tree, sort_keys=True, separators=(",", ":")) + "\n").encode()


def kinds(root: Path) -> dict[str, Kind]:
    return {violation.path: violation.kind for violation in verify(root)}


def test_a_manifest_lists_every_file_but_itself_and_its_signature(tmp_path: Path) -> None:
    root = baked(tmp_path / "r")
    (root / "manifest.sig").write_bytes(b"x")
    made = parse(manifest.read(root))
    assert [entry.path for entry in made.files] == sorted(FILES)
    assert made.total_bytes == sum(map(len, FILES.values()))
    for one in made.files:
        assert one.sha256 == hashlib.sha256(FILES[one.path]).hexdigest()
    assert verify(root) == []


def test_equal_files_make_equal_bytes_whatever_the_order_and_the_threads(tmp_path: Path) -> None:
    first = baked(tmp_path / "a")
    second = fill(tmp_path / "b", dict(reversed(FILES.items())))
    manifest.write(second, threads=1)
    assert manifest.read(first) == manifest.read(second)
    assert manifest.read(first).endswith(b'"schema":1}\n')


def test_a_manifest_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    root = baked(tmp_path / "r", {"a": b"1"})
    (root / "b").write_bytes(b"2")
    assert kinds(root) == {"b": Kind.UNLISTED}
    manifest.write(root)
    assert verify(root) == []
    assert sorted(path.name for path in root.iterdir()) == ["a", "b", "manifest.json"]


def test_folders_without_a_file_are_removed_as_no_copy_would_have_them(tmp_path: Path) -> None:
    root = fill(tmp_path / "r", {"a": b"1"})
    (root / "x" / "y").mkdir(parents=True)
    manifest.write(root)
    assert not (root / "x").exists()
    (root / "z").mkdir()
    assert [str(v) for v in verify(root)] == ["z: is an empty folder"]


def test_a_link_in_a_root_cannot_be_listed(tmp_path: Path) -> None:
    root = fill(tmp_path / "r", {"a": b"1"})
    (root / "b").symlink_to("a")
    with pytest.raises(ManifestError, match=r"r: b: is a link"):
        manifest.write(root)
    assert not (root / "manifest.json").exists()


def test_a_name_that_is_not_utf8_cannot_be_listed_and_is_shown_in_ascii(tmp_path: Path) -> None:
    root = baked(tmp_path / "r", {"a": b"1"})
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\n")).write_bytes(b"")
    (violation,) = verify(root)
    assert violation.path == "\\xff\\n"
    assert violation.kind == Kind.UNLISTED
    with pytest.raises(ManifestError, match="no possible name"):
        manifest.make(root)


# What a hand that is not ours may do to one file of a root.
def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"\0")


def rename(file: Path) -> None:
    file.rename(file.with_name("another"))


def remove(file: Path) -> None:
    file.unlink()


def link(file: Path) -> None:
    file.rename(file.parents[0] / ".hidden")
    file.symlink_to(".hidden")


def link_to_the_same_outside(file: Path) -> None:
    outside = file.parents[0].parent / "outside"
    shutil.move(file, outside)
    file.symlink_to(outside)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def write_for_the_group(file: Path) -> None:
    file.chmod(0o464)


def write_for_all(file: Path) -> None:
    file.chmod(0o646)


TAMPERINGS: dict[Callable[[Path], None], set[Kind]] = {
    flip: {Kind.DIGEST},
    truncate: {Kind.SIZE},
    append: {Kind.SIZE},
    rename: {Kind.MISSING},
    remove: {Kind.MISSING},
    link: {Kind.LINK},
    link_to_the_same_outside: {Kind.LINK},
    pipe: {Kind.SPECIAL},
    folder: {Kind.MISSING, Kind.EMPTY},
    write_for_the_group: {Kind.WRITABLE},
    write_for_all: {Kind.WRITABLE},
}


# Nothing can be flipped in an empty file, nor cut off.
TAMPERED = [
    pytest.param(path, tamper, id=f"{tamper.__name__} {path[:20]}…{path[-5:]}")
    for path, content in FILES.items()
    for tamper in TAMPERINGS
    if content or tamper not in (flip, truncate)
]


@pytest.mark.parametrize(("path", "tamper"), TAMPERED)
def test_tampering_any_file_is_caught_and_the_file_is_named(
    tmp_path: Path, path: str, tamper: Callable[[Path], None]
) -> None:
    root = baked(tmp_path / "r")
    tamper(root / path)
    told = {v.kind for v in verify(root) if v.path == path}
    assert told
    assert told <= TAMPERINGS[tamper]


@pytest.mark.parametrize("tamper", [flip, truncate, append, remove, link, pipe, folder])
def test_tampering_the_manifest_itself_is_caught(
    tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    root = baked(tmp_path / "r")
    (root / "manifest.json").chmod(0o644)
    tamper(root / "manifest.json")
    assert verify(root)


@settings(max_examples=60)
@given(data=st.data())
def test_any_change_of_any_byte_of_any_file_is_caught(data: st.DataObject) -> None:
    files = data.draw(
        st.dictionaries(st.text("abé.", min_size=1, max_size=4), st.binary(), min_size=1)
    )
    files = {name: content for name, content in files.items() if name not in (".", "..")}
    files["always"] = b"x"
    victim = data.draw(st.sampled_from(sorted(files)))
    other = data.draw(st.binary().filter(lambda content: content != files[victim]))
    with tempfile.TemporaryDirectory() as place:
        root = baked(Path(place) / "r", files)
        assert verify(root) == []
        (root / victim).write_bytes(other)
        assert victim in kinds(root)


@pytest.mark.parametrize("path", ["new", "vllm/new", "deep/er/new", "manifest.json.bak", ".x"])
def test_an_added_file_is_caught(tmp_path: Path, path: str) -> None:
    root = baked(tmp_path / "r")
    fill(root, {path: b""})
    assert kinds(root) == {path: Kind.UNLISTED}


def test_a_folder_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    root = baked(tmp_path / "r")
    (root / "factors").rename(tmp_path / "away")
    (root / "factors").symlink_to(tmp_path / "away")
    assert kinds(root) == {"factors": Kind.LINK, "factors/backbone.json": Kind.MISSING}


def test_a_folder_that_others_can_write_is_named_with_what_to_type(tmp_path: Path) -> None:
    root = baked(tmp_path / "r")
    (root / "vllm").chmod(0o777)
    root.chmod(0o775)
    fixes = [str(violation) for violation in verify(root)]
    assert fixes == [
        f".: can be written by group {root.stat().st_gid}: chmod go-w {root}",
        f"vllm: can be written by everybody: chmod go-w {root / 'vllm'}",
    ]


def test_a_thousand_nested_folders_are_no_fault_of_ours(tmp_path: Path) -> None:
    root = baked(tmp_path / "r", {"a": b"1"})
    here = os.open(root, os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    try:
        assert {v.kind for v in verify(root)} == {Kind.EMPTY}
    finally:
        # pytest would remove it by recursion.
        subprocess.run(["rm", "-r", root / "d"], check=True)


def test_a_root_that_is_not_there_is_a_violation(tmp_path: Path) -> None:
    assert kinds(tmp_path / "r") == {"manifest.json": Kind.MANIFEST}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("path", "mode"), [("identity.json", 0o400), ("factors", 0o700)])
def test_what_cannot_be_read_is_named(path: str, mode: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        root = baked(Path(place) / "r")
        (root / path).chmod(mode)
        if not (child := os.fork()):
            os.setuid(65534)
            os._exit(
                0 if (path, Kind.UNREADABLE) in {(v.path, v.kind) for v in verify(root)} else 1
            )
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_all_that_is_wrong_is_told_sorted_by_path(tmp_path: Path) -> None:
    root = baked(tmp_path / "r")
    remove(root / "identity.json")
    flip(root / "factors/backbone.json")
    (root / "zzz").write_bytes(b"")
    told = [str(violation) for violation in verify(root)]
    was = hashlib.sha256(FILES["factors/backbone.json"]).hexdigest()[:12]
    now = hashlib.sha256((root / "factors/backbone.json").read_bytes()).hexdigest()[:12]
    assert told == [
        f"factors/backbone.json: sha256 differs (expected {was}…, got {now}…)",
        "identity.json: is missing",
        "zzz: is not in the manifest",
    ]


HOSTILE = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff",
    "a list": b"[]\n",
    "NaN": b'{"files":[],"schema":NaN}\n',
    "another schema": spelled().replace(b"1}", b"2}"),
    "schema true": spelled().replace(b"1}", b"true}"),
    "no schema": b'{"files":[]}\n',
    "an unknown key": spelled(more=1),
    "an unknown key of a file": spelled(entry(mode=0o777)),
    "a key twice": b'{"files":[],"files":[],"schema":1}\n',
    "a key of a file twice": spelled(entry()).replace(b'"size":1', b'"size":2,"size":1'),
    "spaces": spelled(entry()).replace(b":", b": "),
    "no newline": spelled(entry())[:-1],
    "two newlines": spelled(entry()) + b"\n",
    "a path twice": spelled(entry(), entry()),
    "out of order": spelled(entry("b"), entry("a")),
    "file and folder": spelled(entry("a"), entry("a/b")),
    "absolute": spelled(entry("/etc/passwd")),
    "above": spelled(entry("../a")),
    "above, later": spelled(entry("a/../../b")),
    "a dot": spelled(entry("./a")),
    "two slashes": spelled(entry("a//b")),
    "a folder": spelled(entry("a/")),
    "no name": spelled(entry("")),
    "a zero byte": spelled(entry("a\0")),
    "a newline": spelled(entry("a\nb")),
    "an escape": spelled(entry("\x1b[2J")),
    "a backslash": spelled(entry("a\\b")),
    "half a surrogate": spelled(entry("\ud800")),
    "itself": spelled(entry("manifest.json")),
    "its signature": spelled(entry("manifest.sig")),
    "a long name": spelled(entry("x" * 256)),
    "a long path": spelled(entry("x/" * 600 + "x")),
    "a negative size": spelled(entry(size=-1)),
    "a huge size": spelled(entry(size=2**63)),
    "a size of many digits": spelled(entry()).replace(b'"size":1', b'"size":' + b"9" * 10_000),
    "a size as text": spelled(entry(size="1")),
    "a size with a point": spelled(entry(size=1.0)),
    "a short digest": spelled(entry(sha256="0" * 63)),
    "a digest in capitals": spelled(entry(sha256="A" * 64)),
    "a digest and a newline": spelled(entry(sha256="0" * 64 + "\n")),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(ManifestError, match=r"^manifest\.json: "):
        parse(raw)


def test_a_manifest_that_is_too_large_or_lists_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MAX_BYTES", 100)
    with pytest.raises(ManifestError, match="at most 100"):
        parse(b" " * 101)
    (tmp_path / "manifest.json").write_bytes(b" " * 101)
    with pytest.raises(ManifestError, match="larger than 100 bytes"):
        manifest.read(tmp_path)


NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    max_leaves=10,
)


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_random_bytes_and_random_json_are_refused_cleanly(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        parse(raw)


SOUND = spelled(entry("a"), entry("b/c", size=2**36), entry("d"))


@given(st.integers(0, len(SOUND) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_gives_another_manifest_of_that_very_spelling(
    at: int, byte: int
) -> None:
    raw = SOUND[:at] + bytes([byte]) + SOUND[at + 1 :]
    try:
        parsed = parse(raw)
    except ManifestError:
        return
    assert dump(parsed) == raw


@given(st.lists(st.tuples(NAMES, st.integers(-1, 2**40)), max_size=5))
def test_what_parses_is_spelled_the_same_again(files: list[tuple[str, int]]) -> None:
    raw = spelled(*(entry(path, size=size) for path, size in files))
    try:
        parsed = parse(raw)
    except ManifestError:
        return
    assert dump(parsed) == raw
    assert [(one.path, one.size) for one in parsed.files] == files
