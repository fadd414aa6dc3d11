"""What an inspection tells, and that it does not depend on where the bytes are."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bake.__main__ import main
from bake.checkpoint.inspect import inspect, inspect_source
from bake.checkpoint.source import Bytes, Seekable, mapped
from bake.errors import BakeError, Malformed, Unsupported
from tests.bake.weights.folders import INDEX, folder_of, model

TINY = Path(__file__).parents[3] / "weights" / "tiny"
HERE = Path(__file__).parent
FIXTURES = HERE / "families" / "fixtures"


def files():
    return [
        FIXTURES / "llama.gguf",
        FIXTURES / "llama.safetensors",
        HERE / "fixtures" / "plain.pth",
        HERE / "fixtures" / "legacy.pth",
    ]


@pytest.fixture(params=[*range(len(files())), "npz"])
def path(request, tmp_path):
    if request.param != "npz":
        return files()[request.param]
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(6.0).reshape(2, 3), b=np.int8(4))
    return tmp_path / "a.npz"


def test_a_file_bytes_and_a_map_tell_the_same(path):
    raw, name = path.read_bytes(), str(path)
    told = inspect_source(Bytes(raw, name))
    with path.open("rb") as file:
        assert inspect_source(Seekable(file, name)) == told
    with mapped(path) as source:
        assert inspect_source(source) == told
    alone = inspect(path)
    assert alone.tensors == told.tensors
    assert alone.metadata == told.metadata
    assert alone.format == told.format


def test_totals_count_every_tensor_once(tmp_path):
    told = inspect(folder_of(tmp_path, shards=3))
    assert sum(total.tensors for total in told.totals.values()) == len(model())
    assert told.elements == sum(array.size for _, array in model().values())
    assert next(iter(told.totals)) == "BF16"
    assert told.family == "LlamaForCausalLM"
    assert told.quantization == ""


def test_a_folder_tells_its_tokenizer_and_a_file_alone_does_not():
    told = inspect(TINY)
    assert told.tokenizer.tokens == 16384
    assert told.tokenizer.highest == 16383
    assert told.tokenizer.template
    assert inspect(TINY / "model.safetensors").tokenizer is None


def test_a_gguf_tells_family_blocks_and_tokenizer():
    told = inspect(FIXTURES / "qwen35.gguf")
    assert told.family == "qwen35"
    assert told.tokenizer.tokens == 320


def test_weights_that_were_passed_over_are_named(tmp_path):
    told = inspect(folder_of(tmp_path, model__gguf=b"x"))
    assert told.notes == ("passed over: model.gguf",)


def test_quantized_folders_are_told_even_where_they_are_not_known(tmp_path):
    config = {"quantization_config": {"quant_method": "hqq"}}
    assert "hqq" in inspect(folder_of(tmp_path, config=config)).quantization


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 60, "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello world, how are you", "begins with"),
        (b"\x1f\x8b\x08", "gzip"),
    ],
)
def test_other_files_are_told_by_what_they_are(tmp_path, raw, what):
    (tmp_path / "x.bin").write_bytes(raw)
    with pytest.raises((Malformed, Unsupported), match=what):
        inspect(tmp_path / "x.bin")


def test_nothing_there_is_an_error_in_words(capsys):
    assert main(["inspect", "/nowhere/at-all"]) == 1
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(BakeError):
        inspect("/nowhere")


def test_the_verb_speaks_to_people_and_to_programs(capsys):
    assert main(["inspect", str(TINY), "--tensors"]) == 0
    said = capsys.readouterr().out
    assert "model.embed_tokens.weight" in said
    assert "16,384 tokens" in said
    assert main(["inspect", str(FIXTURES / "llama.gguf"), "--json", "--tensors"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "gguf"
    assert told["tensors"][0].keys() == {"name", "dtype", "shape", "bytes"}
    assert told["metadata"]["tokenizer.ggml.tokens"]["count"] == told["tokenizer"]["tokens"]


def test_no_engine_no_torch_and_no_compiler_is_loaded_to_inspect():
    code = (
        "import sys; from bake.__main__ import main; "
        f"main(['inspect', {str(TINY)!r}]); main(['inspect', {str(FIXTURES / 'llama.gguf')!r}]); "
        "print([one for one in ('torch', 'numba', 'transformers', 'vllm') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path, capsys):
    folder = folder_of(tmp_path, config={"architectures": ["\x1b[2J"], "model_type": "x"})
    assert main(["inspect", str(folder)]) == 0
    assert "\x1b" not in capsys.readouterr().out


HOSTILE = "w\x1b[31m\x9b2J\u202e"


@pytest.mark.parametrize("verb", ["inspect", "verify-checkpoint"])
def test_names_of_folders_do_not_reach_the_terminal_as_commands(tmp_path, capsys, verb):
    folder = folder_of(tmp_path / HOSTILE)
    assert main([verb, str(folder)]) == 0
    (folder / "model.safetensors").write_bytes(b"x")
    main([verb, str(folder)])
    said = "".join(capsys.readouterr())
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)
    assert "w\\x1b[31m" in said


def test_an_index_cannot_command_the_terminal_through_an_error(tmp_path, capsys):
    folder = folder_of(tmp_path, shards=2)
    path = folder / INDEX
    told = json.loads(path.read_text())
    told["weight_map"]["a"] = f"{HOSTILE}.safetensors"
    path.write_text(json.dumps(told))
    assert main(["inspect", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\nhint: " in said


def test_json_has_no_word_that_is_none(tmp_path, capsys, monkeypatch):
    metadata = {"a": float("nan"), "b": [1.0, float("-inf")], "c": 2}
    found = replace(inspect(TINY), metadata=metadata)
    monkeypatch.setattr("bake.checkpoint.inspect.inspect", lambda _: found)
    assert main(["inspect", str(TINY), "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told["metadata"] == {"a": "nan", "b": [1.0, "-inf"], "c": 2}


@pytest.mark.parametrize("verb", ["inspect", "convert", "verify-checkpoint"])
def test_pipes_and_devices_are_told_as_such(tmp_path, capsys, verb):
    os.mkfifo(tmp_path / "pipe")
    more = [str(tmp_path / "out")] if verb == "convert" else []
    for path, word in ((tmp_path / "pipe", "a pipe"), ("/dev/null", "a device")):
        assert main([verb, str(path), *more]) == 1
        assert f"neither a plain file nor a folder, but {word}" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x", "HTTPS://127.0.0.1:1/x"])
def test_addresses_are_known_however_they_are_written(tmp_path, capsys, address):
    assert main(["inspect", address]) == 1
    assert "download the file" in capsys.readouterr().err
    for words in (["convert", address, str(tmp_path / "out")], ["verify-checkpoint", address]):
        assert main(words) == 1
        assert f"{address}: is an address: only inspect reads those" in capsys.readouterr().err
