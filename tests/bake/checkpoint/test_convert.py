"""Conversions: what comes out, what an interrupted one leaves, and what is never touched."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors import safe_open

from bake.checkpoint.convert import RECORD, convert, plan
from bake.checkpoint.settings import without_settings
from bake.errors import BakeError, Busy, Malformed, Unsupported
from blob.codecs.bfloat16 import from_float32
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
        resumed.append(len(list((tmp_path / "d.part").glob("*.safetensors"))))
    assert resumed == sorted(resumed)
    assert resumed[-1] > 0
    done = run(source, dst, 10**6)
    assert done.stdout.split()[0] == str(resumed[-1]), done.stderr
    assert held(dst) == held(tmp_path / "whole")
    assert sorted(p.name for p in dst.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    assert not (tmp_path / "d.part").exists()


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
    (tmp_path / "d.part").mkdir()
    (tmp_path / "d.part" / "thesis.tex").write_text("x")
    with pytest.raises(BakeError, match="nothing of ours"):
        convert(source, tmp_path / "d")
    assert (tmp_path / "d.part" / "thesis.tex").exists()


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
