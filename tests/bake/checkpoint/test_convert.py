"""Conversions: what comes out, what an interrupted one leaves, and what is never touched."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bake import tree
from bake.checkpoint import resume, standing
from bake.checkpoint.convert import RECORD, convert, plan
from bake.checkpoint.settings import without_settings
from bake.checkpoint.source import Bytes
from bake.errors import BakeError, Busy, Malformed, Unsupported
from blob.codecs.bfloat16 import from_float32
from tests.bake.checkpoint.pickles import archive, mapping, view
from tests.bake.weights.folders import CONFIG, folder_of, model
from tests.blob.blobs import bfloats

FIXTURES = Path(__file__).parent / "families" / "fixtures"


def held(folder):
    """Every tensor's dtype and bytes, over all files of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as opened:
            dtypes = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        raw = dict(safetensors.deserialize(path.read_bytes()))
        found |= {name: (dtypes[name], bytes(raw[name]["data"])) for name in dtypes}
    return found


def as_bfloats(dtype, array):
    if dtype in ("BF16", "I64", "BOOL"):
        return array.tobytes()
    return from_float32(array.astype(np.float32)).tobytes()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_plain_folder_becomes_bf16_and_whole_numbers_stay(tmp_path, shards):
    source = folder_of(tmp_path / "s", shards=shards)
    made = convert(source, tmp_path / "d")
    there = held(tmp_path / "d")
    assert there.keys() == model().keys()
    for name, (dtype, array) in model().items():
        assert there[name][0] == (dtype if dtype in ("I64", "BOOL") else "BF16")
        assert there[name][1] == as_bfloats(dtype, array)
    assert made.tensors == len(there)
    assert json.loads((tmp_path / "d/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tmp_path / "d/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_f32_loses_nothing(tmp_path):
    source = folder_of(tmp_path / "s")
    convert(source, tmp_path / "d", "F32")
    rope = model()["model.rope"][1]
    assert held(tmp_path / "d")["model.rope"] == ("F32", rope.tobytes())


@pytest.mark.parametrize("most", [1, 40_000, 10**9])
@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_do_not_depend_on_threads_nor_on_how_they_are_split(tmp_path, most, threads):
    source = folder_of(tmp_path / "s")
    convert(source, tmp_path / "whole", threads=2)
    convert(source, tmp_path / "d", threads=threads, shard_bytes=most)
    assert held(tmp_path / "d") == held(tmp_path / "whole")
    if most == 1:
        index = json.loads((tmp_path / "d/model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == model().keys()


def test_the_config_forgets_how_it_was_quantized(tmp_path):
    settings = {"quant_method": "fp8"}
    inner = {"dtype": "float16", "quantization_config": settings}
    config = {**CONFIG, "dtype": "float16", "text_config": inner}
    config["quantization_config"] = settings
    assert without_settings(config) == {
        **CONFIG,
        "dtype": "float16",
        "text_config": {"dtype": "float16"},
    }
    convert(
        folder_of(tmp_path / "s", config={**CONFIG, "text_config": {"dtype": "float16"}}),
        tmp_path / "d",
    )
    told = json.loads((tmp_path / "d/config.json").read_text())
    assert told["torch_dtype"] == "bfloat16"
    assert told["text_config"] == {"dtype": "bfloat16"}


def test_a_file_without_a_config_says_what_is_missing(tmp_path):
    source = folder_of(tmp_path / "s")
    config = (source / "config.json").rename(tmp_path / "c.json")
    with pytest.raises(Unsupported, match=r"no config.json.*\n.*--config"):
        convert(source / "model.safetensors", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    convert(source / "model.safetensors", tmp_path / "d", config=config)
    assert held(tmp_path / "d").keys() == model().keys()


def test_what_is_there_is_replaced_only_if_a_conversion_made_it(tmp_path):
    source = folder_of(tmp_path / "s")
    mine = tmp_path / "d"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(BakeError, match="no conversion made it"):
            convert(source, mine, force=force)
    assert (mine / "thesis.tex").read_text() == "x"
    convert(source, tmp_path / "e")
    with pytest.raises(BakeError, match="--force"):
        convert(source, tmp_path / "e")
    convert(source, tmp_path / "e", "F32", force=True)
    assert held(tmp_path / "e")["model.norm.weight"][0] == "F32"


def test_the_source_is_never_written_over(tmp_path):
    source = folder_of(tmp_path / "s")
    convert(source, tmp_path / "d")
    for dst in (tmp_path / "d", tmp_path / "d/inner", tmp_path):
        with pytest.raises(BakeError, match="source"):
            convert(tmp_path / "d", dst, force=True)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    source = folder_of(tmp_path / "s")
    raw = (source / "model.safetensors").read_bytes()
    (source / "more.safetensors").write_bytes(raw)
    with pytest.raises(Malformed, match="stands in"):
        plan(source)


def test_two_at_once_do_it_once(tmp_path):
    source = folder_of(tmp_path / "s")
    seen = []

    def other(_done, _total):
        if not seen:
            with pytest.raises(Busy) as caught:
                convert(source, tmp_path / "d")
            seen.append(caught.value)

    convert(source, tmp_path / "d", progress=other)
    assert seen


KILLED = """
import os, signal, sys
from pathlib import Path
from bake.checkpoint.convert import convert
left = int(sys.argv[3])
def progress(done, total):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
made = convert(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress, shard_bytes=40_000)
print(made.resumed, made.files)
"""


def run(source, dst, after):
    argv = [sys.executable, "-c", KILLED, str(source), str(dst), str(after)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_killed_run_leaves_no_folder_and_the_next_goes_on(tmp_path):
    source, dst = folder_of(tmp_path / "s"), tmp_path / "d"
    convert(source, tmp_path / "whole", shard_bytes=40_000)
    resumed = []
    for after in (0, 3, 6, 9):
        died = run(source, dst, after)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert not dst.exists()
        resumed.append(len(list((tmp_path / ".d.preheat.part").glob("*.safetensors"))))
    assert resumed == sorted(resumed)
    assert resumed[-1] > 0
    done = run(source, dst, 10**6)
    assert done.stdout.split()[0] == str(resumed[-1]), done.stderr
    assert held(dst) == held(tmp_path / "whole")
    assert sorted(p.name for p in dst.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    assert not (tmp_path / ".d.preheat.part").exists()


def test_another_source_does_not_take_over_what_is_there(tmp_path):
    source, dst = folder_of(tmp_path / "s"), tmp_path / "d"
    assert run(source, dst, 9).returncode == -signal.SIGKILL
    other = folder_of(tmp_path / "o", model(seed=99))
    done = run(other, dst, 10**6)
    assert done.stdout.split()[0] == "0", done.stderr
    convert(other, tmp_path / "whole")
    assert held(dst) == held(tmp_path / "whole")


def test_a_disk_that_fills_is_told_and_what_is_done_is_kept(tmp_path):
    last = {"z.weight": ("BF16", bfloats(400, 256))}
    source, dst = folder_of(tmp_path / "s", {**model(), **last}), tmp_path / "d"
    limited = "import resource, signal\nresource.setrlimit(resource.RLIMIT_FSIZE, (90_000,) * 2)\n"
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    argv = ["bake", "convert", str(source), str(dst), "--shard-bytes", "40000"]
    code = f"{limited}import sys\nfrom bake.__main__ import main\nsys.exit(main({argv[1:]!r}))"
    full = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert "cannot be written" in full.stderr
    assert "Traceback" not in full.stderr
    assert not dst.exists()
    done = run(source, dst, 10**6)
    assert int(done.stdout.split()[0]) > 0, done.stderr


def test_a_part_that_nobody_of_ours_left_is_not_removed(tmp_path):
    source = folder_of(tmp_path / "s")
    (tmp_path / ".d.preheat.part").mkdir()
    (tmp_path / ".d.preheat.part" / "thesis.tex").write_text("x")
    with pytest.raises(BakeError, match="nothing of ours"):
        convert(source, tmp_path / "d")
    assert (tmp_path / ".d.preheat.part" / "thesis.tex").exists()


def test_pytorch_and_numpy_files_convert_too(tmp_path):
    source = folder_of(tmp_path / "s", {})
    (source / "model.safetensors").unlink()
    arrays = {"a.weight": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6), "b": np.arange(3)}
    np.savez(source / "model.npz", **arrays)
    convert(source, tmp_path / "d", "F32")
    there = held(tmp_path / "d")
    assert there["a.weight"] == ("F32", arrays["a.weight"].tobytes())
    assert there["b"] == ("I64", arrays["b"].tobytes())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen35", "gemma3"])
def test_a_gguf_becomes_a_folder_with_config_and_tokenizer(tmp_path, family):
    made = convert(FIXTURES / f"{family}.gguf", tmp_path / "d")
    names = {path.name for path in made.folder.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", RECORD} <= names
    with safe_open(FIXTURES / f"{family}.safetensors", "np") as opened:
        assert held(made.folder).keys() == set(opened.keys())


def test_split_gguf_is_refused_with_the_way_out(tmp_path):
    for number in (1, 2):
        raw = (FIXTURES / "llama.gguf").read_bytes()
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(raw)
    with pytest.raises(BakeError, match=r"holds 2 GGUF files.*\n.*--merge"):
        convert(tmp_path, tmp_path.parent / "d")


def test_the_folder_is_for_others_to_read_and_says_what_it_was_made_of(tmp_path):
    os.umask(0o022)
    convert(folder_of(tmp_path / "s"), tmp_path / "d")
    told = json.loads((tmp_path / "d" / RECORD).read_text())
    assert told["dtype"] == "BF16"
    assert told["source"]["format"] == "safetensors"
    for path in (tmp_path / "d").iterdir():
        assert path.stat().st_mode & 0o444 == 0o444


def test_folders_whose_names_others_might_give_are_left_alone(tmp_path):
    """A backup of the folder that is made, work of another tool, a lock of a package manager."""
    source, dst = folder_of(tmp_path / "s"), tmp_path / "m"
    convert(source, dst)
    dst.rename(tmp_path / "m.old")
    (tmp_path / "m.part").mkdir()
    (tmp_path / "m.lock").write_text("precious")
    convert(source, dst)
    convert(tmp_path / "m.old", dst, "F32", force=True)
    assert held(tmp_path / "m.old").keys() == held(dst).keys()
    assert (tmp_path / "m.part").is_dir()
    assert (tmp_path / "m.lock").read_text() == "precious"


@pytest.mark.parametrize("end", [".part", ".old"])
def test_a_source_where_the_maker_works_is_refused(tmp_path, end):
    source = folder_of(tree.beside(tmp_path / "m", end))
    linked = folder_of(tmp_path / "linked")
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(source / "model.safetensors")
    for src in (source, source / "model.safetensors", linked):
        with pytest.raises(BakeError, match="would remove the source"):
            convert(src, tmp_path / "m")
    assert held(source).keys() == model().keys()


def test_a_source_that_leads_into_what_is_replaced_is_refused(tmp_path):
    convert(folder_of(tmp_path / "s"), tmp_path / "m")
    linked = folder_of(tmp_path / "linked")
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(tmp_path / "m" / "model.safetensors")
    with pytest.raises(BakeError, match="holds the source"):
        convert(linked, tmp_path / "m", force=True)
    assert held(tmp_path / "m").keys() == model().keys()


def rewritten(source):
    """The file's bytes, not its size nor its times: as ``cp -p`` over it."""
    path = source / "model.safetensors"
    told = path.stat()
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\1\2\3\4\5\6\7\0")
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


def reset(source):
    """What the config says of the numbers; the headers of what is written stay the same."""
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "checkpoint_format": "gptq_v2"}))


@pytest.mark.parametrize("change", [rewritten, reset])
def test_what_decides_the_numbers_decides_what_is_taken_over(tmp_path, change):
    source, dst = folder_of(tmp_path / "s"), tmp_path / "d"
    assert run(source, dst, 9).returncode == -signal.SIGKILL
    change(source)
    done = run(source, dst, 10**6)
    assert done.stdout.split()[0] == "0", done.stderr
    convert(source, tmp_path / "whole")
    assert held(dst) == held(tmp_path / "whole")


def test_other_code_does_not_take_over_what_is_there(tmp_path, monkeypatch):
    source, dst = folder_of(tmp_path / "s"), tmp_path / "d"
    assert run(source, dst, 9).returncode == -signal.SIGKILL
    monkeypatch.setattr(resume, "code", lambda: "another")
    assert convert(source, dst, shard_bytes=40_000).resumed == 0


def cut(source):
    os.truncate(source / "model.safetensors", 4096)


@pytest.mark.parametrize("change", [rewritten, cut])
@pytest.mark.parametrize("last", [False, True])
def test_a_source_that_changes_meanwhile_is_told_and_nothing_is_made(tmp_path, change, last):
    source, changed = folder_of(tmp_path / "s"), []

    def progress(done, total):
        if not changed and (done == total or not last):
            changed.append(change(source))

    with pytest.raises(BakeError, match="changed while it was read"):
        convert(source, tmp_path / "d", progress=progress)
    assert changed
    assert not (tmp_path / "d").exists()


@pytest.fixture
def llama(tmp_path):
    """A folder of a family that is known."""
    return convert(FIXTURES / "llama.gguf", tmp_path / "llama", "F32").folder


def altered(folder, change):
    path = folder / "model.safetensors"
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    change(arrays)
    save_file(arrays, path)


def test_what_a_known_family_lacks_is_told_and_what_it_has_beside_is_no_harm(tmp_path, llama):
    altered(llama, lambda arrays: arrays.update(spare=np.zeros(3, np.float32)))
    assert "spare" in held(convert(llama, tmp_path / "more").folder)
    name = "model.layers.0.mlp.up_proj.weight"
    altered(llama, lambda arrays: arrays.update({name: arrays[name][:-1]}))
    with pytest.raises(Malformed, match=rf"{name}: expected \[.*, got \["):
        convert(llama, tmp_path / "d")
    altered(llama, lambda arrays: arrays.pop(name))
    with pytest.raises(Malformed, match=rf"not what config.json says: {name} is missing"):
        convert(llama, tmp_path / "d")

    def none(arrays):
        arrays.clear()
        arrays["spare"] = np.zeros(3, np.float32)

    altered(llama, none)
    with pytest.raises(Malformed, match=r"(?s)(is missing.*){5}; and [0-9]+ more"):
        convert(llama, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_config_without_a_number_is_not_taken_for_damage(tmp_path, llama):
    config = json.loads((llama / "config.json").read_text())
    del config["hidden_size"]
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(BakeError, match="hidden_size") as caught:
        convert(llama, tmp_path / "d")
    assert "damaged" not in str(caught.value)


def test_half_a_checkpoint_and_none_at_all_are_refused(tmp_path):
    source = folder_of(tmp_path / "s")
    half = (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    for src in (source, half):
        with pytest.raises(BakeError, match="1 of 2 shards"):
            convert(src, tmp_path / "d")
    with pytest.raises(Malformed, match="holds no tensor"):
        convert(folder_of(tmp_path / "empty", {}), tmp_path / "d")


def test_nothing_of_this_machine_becomes_a_part_of_the_model(tmp_path):
    (tmp_path / "secret").write_text("x")
    source = folder_of(tmp_path / "s")
    (source / "notes.txt").symlink_to(tmp_path / "secret")
    (source / "env.txt").symlink_to("/proc/self/environ")
    convert(source, tmp_path / "d")
    assert not {"notes.txt", "env.txt"} & {path.name for path in (tmp_path / "d").iterdir()}
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(BakeError, match=r"tokenizer.json is a link that leads out"):
        convert(source, tmp_path / "e")


def itself(folder):
    (folder / "m").symlink_to("m")
    return folder / "m"


def test_names_that_no_file_can_have_are_told(tmp_path):
    source, looped = folder_of(tmp_path / "s"), itself(tmp_path)
    for src, dst, told in (
        (looped, tmp_path / "d", "m: "),
        (source, looped, "m: "),
        (source, tmp_path / ("d" * 300), "choose a shorter name"),
        (source, tmp_path / ("d" * 250), "choose a shorter name"),
        (source, source / "config.json" / "d", "choose another folder"),
        (source, Path("/proc/d"), "choose another folder"),
        (Path("http://127.0.0.1:1/m"), tmp_path / "d", "is an address"),
    ):
        with pytest.raises(BakeError) as caught:
            convert(src, dst)
        assert told in str(caught.value)
        assert "make room" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "may write to"),
        (errno.EROFS, "may write to"),
        (errno.ENOSPC, "make room"),
        (errno.EEXIST, "another folder"),
    ],
)
def test_the_next_step_is_of_what_went_wrong(number, hint):
    told = standing.unwritten(OSError(number, os.strerror(number), "d"), Path("e"))
    assert str(told).startswith(f"d: cannot be written: {os.strerror(number)}")
    assert hint in told.hint


def test_the_record_has_the_digest_of_each_source(tmp_path):
    source = folder_of(tmp_path / "s", shards=3)
    convert(source, tmp_path / "d")
    told = json.loads((tmp_path / "d" / RECORD).read_text())["source"]["files"]
    assert told == {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in source.glob("*.safetensors")
    }


def test_the_record_tells_of_tensors_that_are_no_part_of_the_model(tmp_path):
    source = folder_of(tmp_path / "s")
    (source / "model.safetensors").unlink()
    moments = mapping("model", mapping("a", view()), "ema", mapping("b", view()))
    (source / "model.pth").write_bytes(archive(moments).view)
    convert(source, tmp_path / "d")
    assert json.loads((tmp_path / "d" / RECORD).read_text())["source"]["other_tensors"] == 1


def test_a_run_that_fails_does_not_wait_for_digests(tmp_path, monkeypatch):
    source, stopped = folder_of(tmp_path / "s"), []

    def slow(_source, stop):
        while not stop():
            time.sleep(0.001)
        stopped.append(True)
        return ""

    def fails(_done, _total):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bytes, "sha256", slow)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "d", progress=fails)
    assert stopped


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_dies_at_the_very_end_leaves_what_the_next_takes_over(
    tmp_path, monkeypatch, before
):
    source, dst, put = folder_of(tmp_path / "s"), tmp_path / "d", tree.put_in_place

    def dies(root):
        if not before:
            put(root)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tree, "put_in_place", dies)
        with pytest.raises(KeyboardInterrupt):
            convert(source, dst, shard_bytes=40_000)
    assert dst.exists() is not before
    made = convert(source, dst, shard_bytes=40_000, force=True)
    assert made.resumed == (made.files if before else 0)
    assert not (dst / resume.STAMP).exists()
    assert held(dst).keys() == model().keys()
