import contextlib
import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.errors import ConfigError
from serve.model import Model, ModelSource, find_model, load_model, tensor_names
from tests.serve.checkpoints import checkpoint, shard, tensor


def loaded(folder: Path) -> Model:
    return load_model(find_model(str(folder), folder / "no-experiments"))


def test_a_sound_checkpoint_is_read_from_its_headers(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", "model.a", "mtp.b")
    model = loaded(folder)
    assert model.name == "m"
    assert model.path == folder
    assert model.architecture == "Qwen3_5ForCausalLM"
    assert model.has_mtp
    assert model.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert not loaded(checkpoint(tmp_path / "n", "model.a")).has_mtp


@pytest.mark.parametrize(
    ("said", "int4"),
    [
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, True),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, False),
        ({"quant_method": "gptq", "bits": 4}, True),
        (None, False),
        ("odd", False),
    ],
)
def test_int4_weights_are_known_by_the_config(tmp_path: Path, said: object, int4: bool) -> None:
    folder = checkpoint(tmp_path / "m", "model.a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    assert loaded(folder).int4 is int4


def test_a_link_is_followed_so_that_one_checkpoint_has_one_path(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "real", "a")
    (tmp_path / "link").symlink_to(folder)
    assert loaded(tmp_path / "link").path == folder


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", "cannot be read: No such file"),
        ("tokenizer.json", "no tokenizer.json: the engine could not read text"),
        ("model.safetensors", "no *.safetensors: not a checkpoint that vLLM can load"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, file: str, said: str) -> None:
    folder = checkpoint(tmp_path, "a")
    (folder / file).unlink()
    with pytest.raises(ConfigError) as refused:
        loaded(folder)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b"{}", "no 'architectures'"),
        (b'{"architectures": []}', "no 'architectures'"),
        (b'{"architectures": "x"}', "no 'architectures'"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_config_is_refused(tmp_path: Path, config: bytes, said: str) -> None:
    (checkpoint(tmp_path, "a") / "config.json").write_bytes(config)
    with pytest.raises(ConfigError, match=said):
        loaded(tmp_path)


GOOD = shard({"a": tensor(0, 4)}, 4)
BROKEN = {
    "empty": b"",
    "short prefix": b"\x02\x00\x00",
    "no header": struct.pack("<Q", 2),
    "header length of zero": struct.pack("<Q", 0) + b"{}",
    "header longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "header length of all ones": b"\xff" * 8 + b"{}",
    "truncated tensors": GOOD[:-1],
    "bytes after the tensors": GOOD + b"x",
    "truncated header": GOOD[:-10],
    "header is no JSON": shard(b"{nonsense"),
    "header is a list": shard([1]),
    "header is deep": shard(b"[" * 100_000),
    "header is not UTF-8": shard(b'{"\xff": 1}'),
    "tensor is no object": shard({"a": 1}),
    "tensor is text": shard({"a": "data_offsets"}),
    "no offsets": shard({"a": {}}),
    "one offset": shard({"a": {"data_offsets": [0]}}),
    "text offset": shard({"a": {"data_offsets": "04"}}, 4),
    "text offsets": shard({"a": {"data_offsets": ["0", "4"]}}, 4),
    "broken offset": shard({"a": {"data_offsets": [0, 4.5]}}, 4),
    "endless offset": shard(b'{"a": {"data_offsets": [0, Infinity]}}'),
    "no number": shard(b'{"a": {"data_offsets": [0, NaN]}}'),
    "huge number": shard(b'{"a": {"data_offsets": [0, 1e999]}}'),
    "many digits": shard(b'{"a": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}"),
    "negative offset": shard({"a": {"data_offsets": [0, -1]}}, 4),
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_shard_is_refused_by_name(tmp_path: Path, raw: bytes) -> None:
    checkpoint(tmp_path, model=raw)
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path)
    assert str(refused.value).startswith(str(tmp_path / "model.safetensors"))


def test_a_truncated_shard_says_expected_and_got(tmp_path: Path) -> None:
    checkpoint(tmp_path, model=GOOD[:-1])
    with pytest.raises(ConfigError, match=f"expected {len(GOOD)} bytes .*, got {len(GOOD) - 1}"):
        loaded(tmp_path)


def test_a_shard_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    # What a download cache looks like after someone cleared its blobs.
    folder = checkpoint(tmp_path, "a")
    (folder / "more.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"more\.safetensors: cannot be read: No such file"):
        loaded(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "data_offsets", "__metadata__"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=64),
        JSON.map(shard),
        st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=40)).map(
            lambda parts: struct.pack("<Q", parts[0]) + parts[1]
        ),
        st.integers(0, len(GOOD)).map(lambda size: GOOD[:size]),
    )
)
def test_any_file_is_a_shard_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(raw)
    with contextlib.suppress(ConfigError):
        assert all(isinstance(name, str) for name in tensor_names(path))


def indexed(folder: Path, listing: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))


def test_a_tensor_of_the_index_that_no_shard_holds_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "a")
    indexed(folder, {"weight_map": {"a": "model.safetensors"}})
    assert loaded(folder).weight_bytes
    indexed(folder, {"weight_map": {"a": "x", "b": "model-2.safetensors", "c": "x"}})
    with pytest.raises(ConfigError, match=r"2 tensors of .* first b \(model-2\.safetensors\)"):
        loaded(folder)
    indexed(folder, {"weight_map": []})
    with pytest.raises(ConfigError, match="no 'weight_map'"):
        loaded(folder)


def test_a_named_model_is_found_beside_experiments_and_tells_how_to_get_it(tmp_path: Path) -> None:
    models = tmp_path / "experiments" / "models"
    models.mkdir(parents=True)
    (models / "big.env").write_text("PATH=weights/big\nGET=hf download big\n")
    source = find_model("big", models.parent)
    assert source.path == tmp_path / "weights" / "big"
    with pytest.raises(ConfigError, match="hint: fetch it: hf download big"):
        load_model(source)
    with pytest.raises(ConfigError, match=r"no model 'bib' \(did you mean big\?\)"):
        find_model("bib", models.parent)


PINS = {
    "PACKAGE": "a==1",
    "PACKAGE_BYTES": "1",
    "PACKAGE_SHA256": "0" * 64,
    "MEMBER": "a/b.gguf",
    "MEMBER_SHA256": "0" * 64,
}


@pytest.mark.parametrize("missing", PINS)
def test_a_package_is_pinned_whole_or_not_at_all(missing: str) -> None:
    fields = {"NAME": "m", "PATH": "weights/m", **PINS}
    assert ModelSource.model_validate(fields).package == "a==1"
    del fields[missing]
    with pytest.raises(ValidationError, match="go together"):
        ModelSource.model_validate(fields)


@pytest.mark.parametrize("digest", ["0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_a_digest_is_64_hex_digits(digest: str) -> None:
    fields = {"NAME": "m", "PATH": "weights/m", **PINS, "PACKAGE_SHA256": digest}
    with pytest.raises(ValidationError, match="PACKAGE_SHA256"):
        ModelSource.model_validate(fields)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("~nobody-here/x", "home directory"),
        ("x" * 5000, "too long"),
        ("/" + "x" * 5000, "too long"),
    ],
)
def test_a_path_that_the_system_refuses_is_a_config_error(
    tmp_path: Path, name: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        load_model(find_model(name, tmp_path))


def test_a_home_that_is_not_known_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(ConfigError, match="home directory"):
        find_model("~/model", tmp_path)
