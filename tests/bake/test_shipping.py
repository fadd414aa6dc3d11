"""Whole imports and exports: on a full disk, killed at any step, two at once."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bake import tree
from bake.archive import Limits
from bake.errors import BakeError, Busy
from bake.shipping import Terms, export, receive
from bake.shipping import names as held
from bake.signing import keygen, sign
from serve import manifest
from serve.signature import trusted_keys
from tests.bake.archives import NAME, archive, member, of_root, unpacked
from tests.serve.roots import FILES, baked

OTHER = {"identity.json": b'{"other":1}\n', "vllm/x": b"y" * 5000}
FORCE = Terms(force=True)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """PREHEAT_BAKED_ROOT with one sealed root."""
    root = baked(tmp_path / "here" / NAME)
    tree.seal(root)
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """PREHEAT_BAKED_ROOT of another machine, empty."""
    return tmp_path / "there"


def packed(here: Path, *names: str) -> Path:
    return export(here, names or [NAME], here.parent / "cache_import.tar.zst").file


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def names(folder: Path) -> list[str]:
    """What lies where roots do, less the locks, which stay."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_root_arrives_as_it_was_sealed_and_checked(here: Path, there: Path) -> None:
    arrived = receive(packed(here), there, Terms())
    (root,) = arrived.roots
    assert root == there / NAME
    assert content(root) == content(here / NAME)
    assert manifest.verify(root) == []
    assert {stat.S_IMODE(p.stat().st_mode) for p in root.rglob("*") if p.is_file()} == {0o444}
    assert {stat.S_IMODE(p.stat().st_mode) for p in root.rglob("*") if p.is_dir()} == {0o555}
    assert names(root.parent) == ["v"]
    assert arrived.done == ()


def test_equal_roots_make_equal_archives_on_any_machine(here: Path, there: Path) -> None:
    first = packed(here)
    raw = first.read_bytes()
    receive(first, there, Terms())
    again = export(there, [NAME], there / "again.tar.zst")
    assert again.file.read_bytes() == raw
    assert export(here, [NAME], first).sha256 == again.sha256


def test_many_roots_travel_in_one_archive_whatever_order_they_are_named_in(
    here: Path, there: Path
) -> None:
    more = ["cpu/tiny/v-2", "cpu/big/v", "a10g/tiny/v"]
    for number, name in enumerate(more):
        baked(here / name, {"x": bytes([number])})
    first = export(here, [NAME, *more], here / "1")
    second = export(here, [*reversed(more), NAME, NAME], here / "2")
    assert first.sha256 == second.sha256
    assert first.roots == tuple(sorted([NAME, *more]))
    arrived = receive(first.file, there, Terms())
    assert {str(root.relative_to(there)) for root in arrived.roots} == {NAME, *more}
    assert all(manifest.verify(root) == [] for root in arrived.roots)


def test_a_signature_travels_along(here: Path, there: Path, tmp_path: Path) -> None:
    private, public = keygen(tmp_path / "keys")
    keys = trusted_keys(str(public))
    unsigned = packed(here)
    with pytest.raises(BakeError, match=r"not imported: manifest\.sig: missing"):
        receive(unsigned, there, Terms(keys))
    sign(here / NAME, private)
    (root,) = receive(packed(here), there, Terms(keys)).roots
    assert (root / "manifest.sig").read_bytes() == (here / NAME / "manifest.sig").read_bytes()
    _, other = keygen(tmp_path / "other")
    with pytest.raises(BakeError, match="is not trusted"):
        receive(packed(here), there, Terms(trusted_keys(str(other)), force=True))
    assert manifest.verify(root) == []


def test_a_root_that_was_tampered_with_is_not_exported(here: Path) -> None:
    (here / NAME / "inductor").chmod(0o755)
    (here / NAME / "inductor" / "more").write_bytes(b"")
    with pytest.raises(BakeError, match=r"not exported: inductor/more: is not in the manifest"):
        packed(here)
    assert names(here.parent) == ["here"]


def test_a_root_that_is_not_there_is_not_exported(here: Path) -> None:
    with pytest.raises(BakeError, match=r"no baked root .*/cpu/tiny/w\nhint: bake it first"):
        packed(here, "cpu/tiny/w")


def test_an_archive_is_replaced_whole_or_not_at_all(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "a"
    with pytest.raises(BakeError, match="No such file or directory"):
        export(here, [NAME], out)
    out.parent.mkdir()
    out.write_bytes(b"before")

    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(here, [NAME], out, interrupted)
    assert content(out.parent) == {"a": b"before"}
    export(here, [NAME], out)
    assert unpacked(out.read_bytes()).keys() == {f"{NAME}/{path}" for path in content(here / NAME)}


def test_progress_ends_at_all_of_it(here: Path, there: Path) -> None:
    told: list[tuple[int, int]] = []
    out = export(here, [NAME], here / "a", lambda *both: told.append(both)).file
    assert told[-1][0] == told[-1][1] == sum(map(len, FILES.values()))
    told.clear()
    receive(out, there, Terms(), lambda *both: told.append(both))
    assert told[-1][0] == told[-1][1] == out.stat().st_size


def test_a_root_that_stands_there_is_replaced_only_by_force(here: Path, there: Path) -> None:
    file = packed(here)
    root = baked(there / NAME, OTHER)
    before = content(root)
    with pytest.raises(BakeError, match=r"exists\nhint: say --force"):
        receive(file, there, Terms())
    assert content(root) == before
    receive(file, there, FORCE)
    assert content(root) == content(here / NAME)
    assert names(root.parent) == ["v"]


def tampered(here: Path, path: str, change: Callable[[bytes], bytes]) -> Path:
    changed = [
        member(info.name, change(raw) if info.name == f"{NAME}/{path}" else raw)
        for info, raw in of_root(here / NAME)
    ]
    return archive(here.parent / "tampered", *changed)


@pytest.mark.parametrize("path", [path for path, raw in FILES.items() if raw] + ["manifest.json"])
def test_an_archive_with_a_changed_file_is_refused_and_nothing_is_left(
    here: Path, there: Path, path: str
) -> None:
    file = tampered(here, path, lambda raw: bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(BakeError, match=r"tampered: v: .*\nhint: get it again|manifest\.json: "):
        receive(file, there, Terms())
    assert names((there / NAME).parent) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda all_: all_[1:], "is missing"),
        (lambda all_: [*all_, member(f"{NAME}/zzz")], "zzz: is not in the manifest"),
        (lambda all_: [one for one in all_ if "manifest" not in one[0].name], r"cannot be read"),
        (lambda all_: [], "holds no root"),
        (lambda all_: [member(f"{NAME}/{'x' * 300}"), *all_], "a name that no root can hold"),
        (lambda all_: [member(f"{NAME}/a"), member(f"{NAME}/a/b")], "File exists"),
        (lambda all_: [*all_, member("cpu/tiny/w/x")], r"cannot be read"),
    ],
)
def test_an_archive_that_is_not_whole_leaves_nothing(
    here: Path, there: Path, change: Callable[..., list[object]], said: str
) -> None:
    file = archive(here.parent / "bad", *change(of_root(here / NAME)))  # type: ignore[arg-type]
    with pytest.raises(BakeError, match=said):
        receive(file, there, Terms())
    assert names((there / NAME).parent) == []


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_what_is_no_file_is_named(tmp_path: Path, there: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BakeError, match=f"{name}: "):
        receive(tmp_path / name, there, Terms())


def test_a_link_where_a_root_should_go_is_not_followed(
    here: Path, there: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    (there / NAME).parent.mkdir(parents=True)
    tree.beside(there / NAME, ".part").symlink_to(outside)
    with pytest.raises(BakeError, match="exists, and nothing of ours made it"):
        receive(packed(here), there, Terms())
    # Where a maker has been before, what it left is removed; a link is not.
    tree.beside(there / NAME, ".lock").touch()
    with pytest.raises(BakeError, match="is a link: not removed"):
        receive(packed(here), there, Terms())
    assert content(outside) == {"precious": b"x"}


def test_a_root_that_another_process_makes_is_left_to_it_and_its_number_is_told(
    here: Path, there: Path
) -> None:
    file = packed(here)
    script = (
        "import sys; from pathlib import Path; from bake import tree\n"
        "with tree.locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, there / NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Busy, match=f"process {other.pid} is making it"):
            receive(file, there, Terms())
        other.kill()
    # The kernel let go; the file that is left says nothing.
    assert tree.beside(there / NAME, ".lock").exists()
    assert receive(file, there, Terms()).roots


def test_two_imports_at_once_end_with_one_whole_root(here: Path, there: Path) -> None:
    file = packed(here)
    command = [sys.executable, "-m", "bake", "cache-import", str(file)]
    env = {"PATH": os.environ["PATH"], "PREHEAT_BAKED_ROOT": str(there)}
    running = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for _ in range(4)]
    said = [one.communicate()[1].decode() for one in running]
    statuses = sorted(one.returncode for one in running)
    assert statuses[0] == 0, said
    assert set(statuses[1:]) <= {1}, said
    assert all("is making it" in one or "exists" in one for one in said if one)
    assert manifest.verify(there / NAME) == []
    assert names((there / NAME).parent) == ["v"]


# One number for each call into the system that an import makes and an audit hook can see.
WATCHED = ("open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.scandir")


def killed_at(step: int, file: Path, there: Path) -> bool:
    """Import by force in a child that is killed, as by ``kill -9``, at its ``step``-th call.

    False when it ended before.
    """
    child = os.fork()
    if child == 0:
        left = step

        def hook(event: str, arguments: object) -> None:
            nonlocal left
            if event in WATCHED:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            receive(file, there, FORCE)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("before", [None, OTHER], ids=["nothing there", "a root there"])
def test_an_import_killed_at_any_step_leaves_no_root_that_only_looks_whole(
    here: Path, there: Path, before: dict[str, bytes] | None
) -> None:
    file = packed(here)
    wanted = content(here / NAME)
    root, step, restored = there / NAME, 0, 0
    while True:
        tree.remove(there)
        was = content(baked(root, before)) if before else None
        killed = killed_at(step, file, there)
        if root.exists():
            assert manifest.verify(root) == []
            assert content(root) in (wanted, was)
        if not killed:
            break
        # The next one clears up after it, and brings back what it had moved aside.
        with tree.locked(root):
            restored += any("is back" in line for line in tree.recover(root))
        assert names(root.parent) == (["v"] if root.exists() else [])
        assert root.exists() or not before
        assert receive(file, there, FORCE).roots == (root,)
        assert content(root) == wanted
        step += 1
    assert step > 30
    assert bool(restored) == bool(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_during_an_import_is_told_and_leaves_it_empty(
    tmp_path: Path, small_disk: Path
) -> None:
    baked(tmp_path / "here" / NAME, {"x": os.urandom(2**21)})
    file = packed(tmp_path / "here")
    with pytest.raises(BakeError, match=r"No space left on device\nhint: make room"):
        receive(file, small_disk, Terms())
    assert names((small_disk / NAME).parent) == []


def test_a_full_disk_during_an_export_leaves_what_was_there(
    tmp_path: Path, small_disk: Path
) -> None:
    baked(tmp_path / "here" / NAME, {"x": os.urandom(2**21)})
    (small_disk / "a").write_bytes(b"before")
    with pytest.raises(BakeError, match=r"No space left on device\nhint: make room"):
        export(tmp_path / "here", [NAME], small_disk / "a")
    assert content(small_disk) == {"a": b"before"}


def test_a_read_only_disk_is_told(here: Path, small_disk: Path) -> None:
    file = packed(here)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(BakeError, match=r"Read-only file system\nhint: .*PREHEAT_BAKED_ROOT"):
        receive(file, small_disk, Terms())


def test_a_limit_on_file_sizes_is_told(tmp_path: Path) -> None:
    baked(tmp_path / "here" / NAME, {"x": os.urandom(2**21)})
    file = packed(tmp_path / "here")
    script = f"ulimit -f 1024; exec {sys.executable} -m bake cache-import {file}"
    env = {"PATH": os.environ["PATH"], "PREHEAT_BAKED_ROOT": str(tmp_path / "there")}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "File too large\nhint: raise the limit" in done.stderr
    assert "Traceback" not in done.stderr
    assert names((tmp_path / "there" / NAME).parent) == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("sound")
    baked(folder / NAME, {"a": b"content" * 50, "b/c": b"", "identity.json": b"{}\n"})
    return export(folder, [NAME], folder / "a").file.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_a_mutated_archive_is_refused_cleanly_or_brings_a_sound_root(
    sound: bytes, data: st.DataObject
) -> None:
    # A changed frame is seldom more than a wrong checksum: change what is in it too.
    inside = data.draw(st.booleans())
    raw = bytearray(zstd.decompress(sound) if inside else sound)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        cut = data.draw(st.integers(0, 4))
        raw[at : at + cut] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as place:
        file, there = Path(place) / "a", Path(place) / "there"
        file.write_bytes(zstd.compress(raw) if inside else raw)
        try:
            receive(file, there, Terms(limits=Limits(total_bytes=2**20)))
        except BakeError:
            assert names((there / NAME).parent) == []
        else:
            assert manifest.verify(there / NAME) == []
        assert names(Path(place)) in (["a"], ["a", "there"])


@settings(max_examples=100)
@given(
    tars=st.lists(
        st.tuples(
            st.text("ab./é\\", max_size=12), st.binary(max_size=20), st.sampled_from(b"0125KLxgS\0")
        ),
        max_size=5,
    )
)
def test_members_of_any_name_and_kind_write_nothing_outside(
    tars: list[tuple[str, bytes, int]],
) -> None:
    with tempfile.TemporaryDirectory() as place:
        there = Path(place) / "there"
        file = archive(Path(place) / "a", *(member(n, c, bytes([k])) for n, c, k in tars))
        with pytest.raises(BakeError):
            receive(file, there, Terms())
        assert names(Path(place)) in (["a"], ["a", "there"])
        left = [path for path in there.rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert left == []


def test_an_archive_names_its_roots_and_nothing_is_unpacked(here, there):
    baked(here / "cpu/tiny/w")
    file = packed(here, NAME, "cpu/tiny/w")
    assert held(file, Limits()) == (NAME, "cpu/tiny/w")
    assert names(there) == []


def test_an_archive_that_is_cut_off_names_itself_and_not_its_roots(here):
    file = packed(here)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(BakeError, match="truncated") as refused:
        held(file, Limits())
    assert refused.value.what.startswith(f"{file}: ")
