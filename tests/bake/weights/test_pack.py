"""Whole packs: equal ones, killed ones, two at once, on full disks; and what cannot be packed."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bake import tree
from bake.errors import BakeError, Busy
from bake.weights.pack import pack
from bake.weights.shard import shard
from blob.blob import Blob
from blob.errors import BlobError
from blob.manifest import is_blob, read
from blob.recipe import Recipe
from blob.reconstruct import stream
from blob.store import Store
from blob.verify import verify
from tests.bake.weights.folders import folder_of, model
from tests.blob.blobs import bfloats, content, names

INT5 = Recipe("int5")
OTHER = Recipe("q6_k")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("model") / "tiny", shards=2)


def packed(checkpoint, out, wanted=INT5, store=None, **options):
    return pack(checkpoint, wanted, out, Store(store or out.parent / "store"), **options)


def sound(folder):
    assert verify(folder, lambda *_: None) == []
    return True


def refusal(checkpoint, out, wanted=INT5):
    """What is said when it cannot be packed; empty when it was."""
    try:
        packed(checkpoint, out, wanted, force=True)
    except (BakeError, BlobError) as error:
        return str(error)
    return ""


def beside(folder):
    """What stands where blobs do, less locks and the store, which stay."""
    return [n for n in names(folder) if not n.endswith(".lock") and n != "store"]


def command(checkpoint, out, codec="int5", *more):
    store = str(out.parent / "store")
    argv = ["pack", str(checkpoint), "--codec", codec, "--out", str(out), "--store", store, *more]
    return [sys.executable, "-m", "bake", *argv]


def test_a_checkpoint_becomes_a_whole_blob(checkpoint, tmp_path):
    made = packed(checkpoint, tmp_path / "blob")
    assert sound(tmp_path / "blob")
    assert made.codecs == {"int5": 6, "raw": 6}
    assert made.notes == ()
    stood = read(tmp_path / "blob")
    assert made.fingerprint == stood.fingerprint
    assert {tensor.name: tuple(tensor.shape) for tensor in stood.tensors} == {
        name: array.shape for name, (_, array) in model().items()
    }
    assert [file.path for file in stood.files] == ["config.json", "tokenizer.json"]
    assert sorted(stood.source) == [
        "config.json", "model-0-of-2.safetensors", "model-1-of-2.safetensors"
    ]  # fmt: skip
    assert beside(tmp_path) == ["blob"]


def test_what_no_recipe_changes_comes_back_to_the_bit(checkpoint, tmp_path):
    for codec in ("raw", "zipnn"):
        packed(checkpoint, tmp_path / codec, Recipe(codec))
        back = {one.name: one.array.tobytes() for one in stream(Blob.open(tmp_path / codec))}
        assert back == {name: array.tobytes() for name, (_, array) in model().items()}
    assert read(tmp_path / "raw").fingerprint == read(tmp_path / "zipnn").fingerprint


@pytest.mark.parametrize("codec", ["int4", "int5", "q8_0", "q4_k", "q5_k", "q6_k", "zipnn", "raw"])
def test_the_same_checkpoint_makes_the_same_bytes_whoever_packs_it_and_where(
    checkpoint, tmp_path, codec
):
    made = packed(checkpoint, tmp_path / "a" / "blob", Recipe(codec))
    shutil.copytree(checkpoint, tmp_path / "copy")
    again = packed(tmp_path / "copy", tmp_path / "b" / "other", Recipe(codec))
    assert made.fingerprint == again.fingerprint
    assert content(tmp_path / "a" / "blob") == content(tmp_path / "b" / "other")


def test_one_core_makes_the_same_bytes_in_another_process(checkpoint, tmp_path):
    packed(checkpoint, tmp_path / "a" / "blob")
    (tmp_path / "b").mkdir()
    core = str(min(os.sched_getaffinity(0)))
    pinned = ["taskset", "-c", core, *command(checkpoint, tmp_path / "b" / "blob")]
    subprocess.run(pinned, check=True, capture_output=True)
    assert content(tmp_path / "a" / "blob") == content(tmp_path / "b" / "blob")


def test_blobs_of_one_model_share_what_no_recipe_changed(checkpoint, tmp_path):
    for name, recipe in (("a", INT5), ("b", OTHER)):
        packed(checkpoint, tmp_path / name, recipe, tmp_path / "store")
    a, b = (read(tmp_path / name) for name in "ab")
    raw = {tensor.shard for tensor in a.tensors if tensor.codec == "raw"}
    assert raw == {tensor.shard for tensor in b.tensors if tensor.codec == "raw"}
    for name in ("config.json", "tokenizer.json", *(f"{digest}.safetensors" for digest in raw)):
        assert (tmp_path / "a" / name).stat().st_ino == (tmp_path / "b" / name).stat().st_ino


def test_a_damaged_blob_is_mended_by_packing_it_again(checkpoint, tmp_path):
    """Its files are the store's: what is packed next must not be given the damaged ones."""
    packed(checkpoint, tmp_path / "blob")
    for listed in read(tmp_path / "blob").shards:
        path = tmp_path / "blob" / listed.path
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(raw)
    assert verify(tmp_path / "blob", lambda *_: None)
    packed(checkpoint, tmp_path / "blob", force=True)
    assert sound(tmp_path / "blob")


def test_what_a_recipe_could_not_do_is_noted(tmp_path):
    tensors = model() | {
        "model.layers.0.mlp.odd.weight": ("BF16", bfloats(64, 96)),
        "model.layers.0.mlp.odder.weight": ("F16", np.ones((64, 33), np.float16)),
        "model.layers.0.mlp.few.weight": ("F32", np.ones((3, 256), np.float32)),
    }
    folder = folder_of(tmp_path / "c", tensors)
    odd, odder, few = (f"model.layers.0.mlp.{name}.weight" for name in ("odd", "odder", "few"))
    expected = {
        "q6_k": {odd: ("q8_0", "BF16"), odder: ("raw", "F16"), few: ("q6_k", "BF16")},
        "int5": {odd: ("raw", "BF16"), odder: ("raw", "F16"), few: ("int5", "BF16")},
        "int4": {odd: ("int4", "BF16"), odder: ("raw", "F16"), few: ("raw", "F32")},
    }
    for codec, wanted in expected.items():
        made = packed(folder, tmp_path / codec, Recipe(codec))
        got = {tensor.name: (tensor.codec, tensor.dtype) for tensor in read(made.folder).tensors}
        assert {name: got[name] for name in wanted} == wanted
        noted = {note.split(": ")[0] for note in made.notes}
        assert noted == {name for name, (used, _) in wanted.items() if used != codec}
        assert sound(made.folder)


@pytest.mark.parametrize(("bits", "said"), [(0x7FC0, "nan"), (0xFF80, "-inf")])
def test_what_is_no_number_is_refused_by_name_and_place_and_nothing_is_left(tmp_path, bits, said):
    tensors = model()
    tensors["model.layers.1.mlp.up_proj.weight"][1][17, 3] = bits
    folder = folder_of(tmp_path / "c", tensors)
    with pytest.raises(BlobError, match=rf"layers\.1\.mlp\.up_proj\.weight: {said} at \[17, 3\]: "):
        packed(folder, tmp_path / "out" / "blob")
    assert beside(tmp_path / "out") == []
    packed(folder, tmp_path / "out" / "blob", Recipe("zipnn"))


def test_a_recipe_that_nothing_could_follow_is_refused(tmp_path):
    only = folder_of(tmp_path / "c", {"model.norm.weight": ("BF16", bfloats(8))})
    with pytest.raises(BakeError, match=r"no tensor that int5 could hold\nhint: see --targets"):
        packed(only, tmp_path / "blob")
    with pytest.raises(BlobError, match="unknown codec 'int6'"):
        packed(only, tmp_path / "blob", Recipe("int6"))
    with pytest.raises(BlobError, match="codec q6_k takes no group"):
        packed(only, tmp_path / "blob", Recipe("q6_k", 32))


def test_a_blob_that_stands_there_is_replaced_only_by_force(checkpoint, tmp_path):
    packed(checkpoint, tmp_path / "blob")
    before = content(tmp_path / "blob")
    with pytest.raises(BakeError, match=r"there is a blob already\nhint: say --force"):
        packed(checkpoint, tmp_path / "blob", OTHER)
    assert content(tmp_path / "blob") == before
    packed(checkpoint, tmp_path / "blob", OTHER, force=True)
    assert sound(tmp_path / "blob")
    assert content(tmp_path / "blob") != before
    assert beside(tmp_path) == ["blob"]


@pytest.mark.parametrize("name", ["blob", ".blob.preheat.part", ".blob.preheat.old"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_somebody_elses_is_never_removed(checkpoint, tmp_path, name, force):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_bytes(b"x")
    with pytest.raises(BakeError, match=r"exists(,)? and (is no blob|nothing of ours made it)"):
        packed(checkpoint, tmp_path / "blob", force=force)
    assert content(tmp_path / name) == {"precious": b"x"}


def test_a_link_where_a_blob_should_go_is_not_followed(checkpoint, tmp_path):
    packed(checkpoint, tmp_path / "real")
    before = content(tmp_path / "real")
    (tmp_path / "blob").symlink_to("real")
    with pytest.raises(BakeError, match="exists and is no blob"):
        packed(checkpoint, tmp_path / "blob", force=True)
    assert content(tmp_path / "real") == before


@pytest.mark.parametrize(
    "store", ["blob", "blob/store", ".", ".blob.preheat.part", ".blob.preheat.old"]
)
def test_a_blob_is_made_neither_in_a_store_nor_around_it(checkpoint, tmp_path, store):
    Store(tmp_path / store).put(b"abc")
    (tmp_path / ".blob.preheat.lock").touch()
    before = content(tmp_path)
    with pytest.raises(BakeError, match="blob: is not apart from the store"):
        packed(checkpoint, tmp_path / "blob", store=tmp_path / store, force=True)
    with pytest.raises(BakeError, match="blob: is not apart from the store"):
        shard(None, 2, "raw", tmp_path / "blob", tmp_path / store, None)
    assert content(tmp_path) == before


def test_a_blob_in_the_way_is_told_before_the_checkpoint_is_read(tmp_path):
    folder = folder_of(tmp_path / "model")
    packed(folder, tmp_path / "blob")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BakeError, match="there is a blob already"):
        packed(folder, tmp_path / "blob")


@pytest.mark.parametrize(
    ("codec", "group", "said"),
    [
        ("int5", 0, "multiple of 32, got 0"),
        ("int4", -32, "multiple of 32, got -32"),
        ("int4", 48, "multiple of 32, got 48"),
        ("int5", 96, "no tensor that int5 could hold"),
        ("int5", 2**80, "no tensor that int5 could hold"),
        ("q6_k", 0, "takes no group"),
    ],
)
def test_a_group_that_cannot_be_is_refused_in_words(checkpoint, tmp_path, codec, group, said):
    with pytest.raises((BakeError, BlobError), match=said):
        packed(checkpoint, tmp_path / "blob", Recipe(codec, group))
    assert beside(tmp_path) == []


def test_a_file_in_the_way_is_told(checkpoint, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BakeError, match="cannot be written: "):
        packed(checkpoint, tmp_path / "file" / "blob", store=tmp_path / "store")
    with pytest.raises(BlobError, match="no store: "):
        packed(checkpoint, tmp_path / "blob", store=tmp_path / "file")
    assert beside(tmp_path) == ["file"]


def test_a_blob_that_another_process_makes_is_left_to_it_and_its_number_is_told(
    checkpoint, tmp_path
):
    script = (
        "import sys; from pathlib import Path; from bake import tree\n"
        "with tree.locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "blob"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        with pytest.raises(Busy, match=f"process {other.pid} is making it"):
            packed(checkpoint, tmp_path / "blob")
        other.kill()
    assert packed(checkpoint, tmp_path / "blob")


def test_packs_at_once_on_one_folder_end_with_one_whole_blob(checkpoint, tmp_path):
    running = [
        subprocess.Popen(command(checkpoint, tmp_path / "blob"), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [one.communicate()[1] for one in running]
    statuses = sorted(one.returncode for one in running)
    assert statuses[0] == 0, said
    assert set(statuses[1:]) <= {1}, said
    failed = [text for one, text in zip(running, said, strict=True) if one.returncode]
    assert all("is making it" in text or "there is a blob already" in text for text in failed)
    assert "Traceback" not in "".join(said)
    assert sound(tmp_path / "blob")
    assert beside(tmp_path) == ["blob"]


def test_packs_at_once_on_one_store_are_whole_and_share_their_files(checkpoint, tmp_path):
    outs = [tmp_path / name for name in "ab"]
    running = [subprocess.Popen(command(checkpoint, out), stdout=subprocess.PIPE) for out in outs]
    assert [one.communicate() and one.returncode for one in running] == [0, 0]
    assert content(outs[0]) == content(outs[1])
    assert all(sound(out) for out in outs)
    for name in names(outs[0]):
        inodes = {(out / name).stat().st_ino for out in outs}
        assert len(inodes) == (len(outs) if name == "manifest.json" else 1)
    assert not [name for name in content(tmp_path / "store") if ".arriving" in name]


# One number for each call into the system that a pack makes and an audit hook can see.
WATCHED = {"open", "os.mkdir", "os.rename", "os.link", "os.chmod", "os.remove", "os.rmdir"}


def killed_at(step, checkpoint, out):
    """Pack by force in a child that is killed, as by ``kill -9``, at its ``step``-th call.

    False when it ended before.
    """
    child = os.fork()
    if child == 0:
        left = step

        def hook(event, _arguments):
            nonlocal left
            if event in WATCHED:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            packed(checkpoint, out, force=True)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("before", [None, OTHER], ids=["nothing there", "a blob there"])
def test_a_pack_killed_at_any_step_leaves_no_blob_that_only_looks_whole(
    checkpoint, tmp_path, before
):
    packed(checkpoint, tmp_path / "wanted")
    wanted, step = content(tmp_path / "wanted"), 0
    for step in range(0, 1000, 3):
        place = tmp_path / "place"
        tree.remove(place)
        place.mkdir()
        out = place / "blob"
        was = before and packed(checkpoint, out, before) and content(out)
        killed = killed_at(step, checkpoint, out)
        if is_blob(out):
            assert sound(out)
            assert content(out) in (wanted, was)
        assert not is_blob(out) or out.is_dir()
        assert packed(checkpoint, out, force=True)
        assert content(out) == wanted
        assert beside(place) == ["blob"]
        if not killed:
            break
    assert step > 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pack_killed_at_any_time_leaves_no_blob_that_only_looks_whole(tmp_path):
    big = folder_of(tmp_path / "model", model(layers=6, rows=512, cols=2048))
    out = tmp_path / "place" / "blob"
    out.parent.mkdir()
    began = time.monotonic()
    subprocess.run(command(big, out), check=True, capture_output=True)
    took, wanted = time.monotonic() - began, content(out)
    for part in range(1, 13):
        tree.remove(out)
        running = subprocess.Popen(command(big, out), stdout=subprocess.PIPE)
        time.sleep(took * part / 12)
        running.kill()
        running.communicate()
        if is_blob(out):
            assert content(out) == wanted
        done = subprocess.run(
            command(big, out, "int5", "--force"), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert content(out) == wanted
        assert beside(out.parent) == ["blob"]


@pytest.fixture
def disk(tmp_path):
    """Mounts a real file system of some kilobytes; another size is a new one."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(kilobytes):
        subprocess.run(["umount", place], capture_output=True, check=False)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=755", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        return place

    yield mounted
    subprocess.run(["umount", place], capture_output=True, check=False)


@pytest.mark.parametrize("before", [None, OTHER], ids=["nothing there", "a blob there"])
def test_a_full_disk_at_any_point_is_told_and_changes_nothing(checkpoint, tmp_path, disk, before):
    refused = 0
    for kilobytes in range(4, 400, 16):
        place = disk(kilobytes)
        out, was = place / "blob", None
        if before:
            if refusal(checkpoint, out, before):
                continue
            was = content(out)
        if said := refusal(checkpoint, out):
            refused += 1
            assert "No space left on device" in said
            assert beside(place) == (["blob"] if was else [])
            assert not was or content(out) == was
            assert not [name for name in content(place) if "arriving" in name or "part" in name]
        elif sound(out) and refused:
            break
    assert refused > (0 if before else 3)
    assert is_blob(out)


def test_a_store_on_a_full_disk_is_told_and_a_folder_on_one_gets_copies(checkpoint, tmp_path, disk):
    with pytest.raises(BlobError, match="No space left on device"):
        packed(checkpoint, tmp_path / "blob", store=disk(40) / "store")
    assert not (tmp_path / "blob").exists()
    with pytest.raises(BlobError, match="No space left on device"):
        packed(checkpoint, disk(40) / "blob", store=tmp_path / "store")
    assert beside(tmp_path / "disk") == []
    packed(checkpoint, disk(1000) / "blob", store=tmp_path / "store")
    assert sound(tmp_path / "disk" / "blob")


def test_a_read_only_disk_is_told(checkpoint, tmp_path, disk):
    place = disk(1000)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    with pytest.raises(BakeError, match=r"Read-only file system\nhint: make room, or choose"):
        packed(checkpoint, place / "blob", store=tmp_path / "store")
    with pytest.raises(BlobError, match="Read-only file system"):
        packed(checkpoint, tmp_path / "blob", store=place / "store")
    assert beside(tmp_path) == ["disk"]


def test_a_limit_on_file_sizes_is_told(checkpoint, tmp_path):
    script = ["bash", "-c", 'ulimit -f 16; exec "$@"', "-", *command(checkpoint, tmp_path / "blob")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert beside(tmp_path) == []
    assert not [name for name in content(tmp_path / "store") if ".arriving" in name]


def test_who_interrupts_leaves_nothing(checkpoint, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(checkpoint, INT5, tmp_path / "blob", Store(tmp_path / "store"), interrupted)
    assert beside(tmp_path) == []
