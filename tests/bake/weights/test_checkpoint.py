"""Checkpoint folders: what is read of them, and what is refused before anything is made of it."""

import json
import os
import struct

import numpy as np
import pytest

from bake.errors import BakeError
from bake.weights.checkpoint import digests, open_checkpoint
from blob.errors import BlobError
from tests.bake.weights.folders import CONFIG, INDEX, folder_of, model, saved


def refusal(folder):
    with pytest.raises((BakeError, BlobError)) as caught:
        open_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_tensors_are_read_from_any_number_of_shards(tmp_path, shards):
    opened = open_checkpoint(folder_of(tmp_path / "c", shards=shards))
    assert opened.tensors.keys() == model().keys()
    for name, (dtype, array) in model().items():
        assert opened.tensors[name].dtype == dtype
        assert opened.tensors[name].array.shape == array.shape
        assert opened.tensors[name].array.tobytes() == array.tobytes()
    assert len(opened.shards) == shards
    assert len(digests(opened)) == shards + 1


def test_config_tokenizer_and_code_go_along_and_other_weights_do_not(tmp_path):
    more = {
        "chat_template__jinja": b"{{ x }}",
        "vocab__txt": b"a",
        "modeling__py": b"",
        "y__pt": b"",
    }
    folder = folder_of(tmp_path / "c", shards=2, README__md=b"#", model__gguf=b"", **more)
    (folder / ".hidden").write_bytes(b"")
    (folder / "onnx").mkdir()
    opened = open_checkpoint(folder)
    kept = ["chat_template.jinja", "config.json", "modeling.py", "tokenizer.json", "vocab.txt"]
    assert sorted(opened.files) == kept


def test_links_of_a_download_cache_are_followed(tmp_path):
    real = folder_of(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(path)
    opened = open_checkpoint(snapshot)
    assert opened.tensors.keys() == model().keys()
    assert all(not path.is_symlink() for path in opened.files.values())


def test_a_file_that_the_index_does_not_list_is_left_out_as_vllm_leaves_it(tmp_path):
    folder = folder_of(tmp_path / "c", shards=2)
    (folder / "consolidated.safetensors").write_bytes(saved({"tok.weight": model()["model.mask"]}))
    opened = open_checkpoint(folder)
    assert opened.tensors.keys() == model().keys()
    assert "consolidated.safetensors" not in digests(opened)


BROKEN = {
    "no folder": (lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(), "no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: cannot be read"),
    "a config that is none": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "a list for a config": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "a deep config": (lambda f: (f / "config.json").write_text("[" * 10**5), "not JSON"),
    "no architecture": (lambda f: (f / "config.json").write_text("{}"), "no 'architectures'"),
    "a config of bytes": (lambda f: (f / "config.json").write_bytes(b"\xff"), "not JSON"),
    "a pipe for a config": (
        lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")),
        "cannot be read: not a plain file",
    ),
    "no shards": (
        lambda f: (f / "model-0-of-2.safetensors").unlink(),
        "is in the index and not in the folder",
    ),
    "no shard at all": (
        lambda f: [path.unlink() for path in f.glob("*.safetensors")],
        "is in the index and not in the folder (2 missing)",
    ),
    "an empty shard": (lambda f: (f / "model-0-of-2.safetensors").write_bytes(b""), "is empty"),
    "a short shard": (
        lambda f: (f / "model-0-of-2.safetensors").write_bytes(b"1234567"),
        "no safetensors, GGUF",
    ),
    "a truncated shard": (
        lambda f: os.truncate(f / "model-1-of-2.safetensors", 5000),
        "bytes of data by its header",
    ),
    "a huge header": (
        lambda f: (f / "model-0-of-2.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        "no safetensors file",
    ),
    "a folder for a shard": (
        lambda f: (
            (f / "model-0-of-2.safetensors").unlink(),
            (f / "model-0-of-2.safetensors").mkdir(),
        ),
        "cannot be read",
    ),
    "a pipe for a shard": (
        lambda f: (
            (f / "model-0-of-2.safetensors").unlink(),
            os.mkfifo(f / "model-0-of-2.safetensors"),
        ),
        "cannot be read: not a plain file",
    ),
    "a link to nowhere": (
        lambda f: (
            (f / "model-0-of-2.safetensors").unlink(),
            (f / "model-0-of-2.safetensors").symlink_to("nowhere"),
        ),
        "cannot be read",
    ),
    "a tensor in two shards": (
        lambda f: (f / "model-0-of-2.safetensors").write_bytes(saved(model())),
        "stands in model-0-of-2.safetensors too",
    ),
    "an index that is none": (
        lambda f: (f / INDEX).write_text('{"weight_map":[]}'),
        "no 'weight_map'",
    ),
    "an index of numbers": (
        lambda f: (f / INDEX).write_text('{"weight_map":{"a":1}}'),
        "no 'weight_map'",
    ),
    "a path for a name": (
        lambda f: (f / "model-0-of-2.safetensors").write_bytes(
            saved({"../x": ("U8", np.zeros(4, np.uint8))})
        ),
        "like a path",
    ),
    "a type that is not known": (
        lambda f: (f / "model-0-of-2.safetensors").write_bytes(
            saved({"x": ("F1", np.zeros(4, np.uint8))})
        ),
        "is not known",
    ),
    "a blob": (lambda f: (f / "manifest.json").write_text("{}"), "is a blob already"),
    "quantized": (
        lambda f: (f / "config.json").write_text(
            json.dumps({**CONFIG, "quantization_config": {"quant_method": "awq"}})
        ),
        "is quantized already (awq)",
    ),
    "quantized by words": (
        lambda f: (f / "config.json").write_text(
            json.dumps({**CONFIG, "quantization_config": "awq"})
        ),
        "is quantized already (unknown)",
    ),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_is_none_or_broken_is_refused_in_words(tmp_path, name):
    breaks, said = BROKEN[name]
    folder = folder_of(tmp_path / "c", shards=2)
    breaks(folder)
    assert said in refusal(folder)


def test_a_config_that_says_it_is_not_quantized_is_none(tmp_path):
    folder = folder_of(tmp_path / "c", config={**CONFIG, "quantization_config": None})
    assert open_checkpoint(folder).tensors
