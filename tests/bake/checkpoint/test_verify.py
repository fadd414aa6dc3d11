"""What a check of a checkpoint finds: one fault at a time, each named, none hiding another."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bake.__main__ import main
from bake.checkpoint import verify as module
from bake.checkpoint.verify import EXPONENTS, STRETCH_BYTES, STRETCHES, read_digests, verify
from bake.errors import BakeError
from tests.bake.weights.folders import INDEX, folder_of, model, saved
from tests.blob.blobs import bfloats

SPARED = ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
TINY = Path(__file__).parents[3] / "weights" / "tiny"
FIXTURES = Path(__file__).parent / "families" / "fixtures"
NAMES = ["shards", "index", "duplicates", "shapes", "tokenizer", "finite", "digests"]


def outcomes(report):
    return {check.name: check.outcome for check in report.checks}


def detail(report, name):
    return next(check.detail for check in report.checks if check.name == name)


def failed(report):
    return [check.name for check in report.checks if check.outcome == "failed"]


@pytest.fixture
def tiny(tmp_path):
    """The model that ships, to be harmed."""
    return shutil.copytree(TINY, tmp_path / "tiny")


def changed(folder, **values):
    path = folder / "config.json"
    told = json.loads(path.read_text())
    inner = told.get("text_config", told)
    inner.update(values)
    path.write_text(json.dumps(told))


def test_the_model_that_ships_is_sound_and_everything_is_asked_of_it():
    report = verify(TINY, full=True)
    assert report.sound
    assert [check.name for check in report.checks] == NAMES
    asked = {name for name, outcome in outcomes(report).items() if outcome == "ok"}
    assert asked == {"shards", "duplicates", "shapes", "tokenizer", "finite"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen35", "gemma3"])
def test_gguf_is_asked_the_same(family):
    report = verify(FIXTURES / f"{family}.gguf", full=True)
    assert not failed(report)
    assert outcomes(report)["shapes"] == "ok"
    assert outcomes(report)["tokenizer"] == "ok"


def test_a_missing_shard_is_named(tmp_path):
    folder = folder_of(tmp_path, shards=3)
    (folder / "model-1-of-3.safetensors").unlink()
    report = verify(folder)
    assert failed(report) == ["shards", "index"]
    assert "model-1-of-3.safetensors is missing" in detail(report, "shards")


def test_a_truncated_shard_is_named_and_the_others_are_still_read(tmp_path):
    folder = folder_of(tmp_path, shards=2)
    path = folder / "model-0-of-2.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    report = verify(folder)
    assert "model-0-of-2.safetensors" in detail(report, "shards")
    assert outcomes(report)["finite"] == "ok"


def test_an_index_that_says_another_file_is_told(tmp_path):
    folder = folder_of(tmp_path, shards=2)
    told = json.loads((folder / INDEX).read_text())
    name = next(iter(told["weight_map"]))
    told["weight_map"][name] = "model-1-of-2.safetensors"
    told["weight_map"].pop("model.step")
    (folder / INDEX).write_text(json.dumps(told))
    report = verify(folder)
    assert failed(report) == ["index"]
    assert f"{name} is in model-0-of-2.safetensors, the index says" in detail(report, "index")
    assert "model.step is not in the index" in detail(report, "index")


def test_a_tensor_in_two_shards_is_named(tmp_path):
    folder = folder_of(tmp_path)
    name = "model.norm.weight"
    (folder / "more.safetensors").write_bytes(saved({name: model()[name]}))
    report = verify(folder)
    assert failed(report) == ["duplicates"]
    assert name in detail(report, "duplicates")


def test_shapes_that_the_config_does_not_mean_are_all_told(tiny):
    changed(tiny, intermediate_size=1)
    report = verify(tiny)
    assert failed(report) == ["shapes"]
    assert "expected [1, " in detail(report, "shapes")
    assert "more" in detail(report, "shapes")


def test_what_vllm_passes_over_is_no_fault(tiny):
    spare = {name: ("F32", np.zeros(2, np.float32)) for name in SPARED}
    (tiny / "more.safetensors").write_bytes(saved(spare))
    assert not failed(verify(tiny))
    (tiny / "more.safetensors").write_bytes(saved({"model.other.weight": spare[SPARED[0]]}))
    assert "model.other.weight is of no part of the model" in detail(verify(tiny), "shapes")


@pytest.mark.parametrize(
    ("method", "last", "sound"), [("gptq", -0.0, True), ("gptq", 1e-4, False), (None, 0.0, False)]
)
def test_biases_that_a_model_has_not_are_zeros_of_gptqs_tools_or_a_fault(tiny, method, last, sound):
    if method:
        settings = {"quant_method": method, "bits": 4, "group_size": 128, "desc_act": False}
        changed(tiny, quantization_config=settings)
    added = np.array([0, last], np.float16)
    (tiny / "more.safetensors").write_bytes(saved({"model.a.bias": ("F16", added)}))
    report = verify(tiny)
    assert failed(report) == ([] if sound else ["shapes"])
    assert sound or "model.a.bias is of no part of the model" in detail(report, "shapes")


def test_an_embedding_of_one_number_is_a_fault(tmp_path):
    number = {"model.embed_tokens.weight": ("F32", np.array(1, np.float32))}
    report = verify(folder_of(tmp_path, number, config={"model_type": "none"}))
    assert failed(report) == ["tokenizer"]
    assert "model.embed_tokens.weight is one number" in detail(report, "tokenizer")


def test_layers_that_are_missing_or_too_many_are_told(tiny):
    inner = json.loads((tiny / "config.json").read_text())
    layers = inner.get("text_config", inner)["num_hidden_layers"]
    changed(tiny, num_hidden_layers=layers - 1, layer_types=["linear_attention"] * (layers - 1))
    assert "is of no part of the model" in detail(verify(tiny), "shapes")


def test_an_unknown_family_is_told_and_no_fault(tmp_path):
    report = verify(folder_of(tmp_path, config={"model_type": "mamba9"}))
    assert outcomes(report)["shapes"] == "skipped"
    assert "mamba9" in detail(report, "shapes")


def test_a_tokenizer_with_more_tokens_than_rows_is_a_fault(tiny):
    path = tiny / "tokenizer.json"
    told = json.loads(path.read_text())
    told["added_tokens"].append({**told["added_tokens"][-1], "id": 10**6, "content": "<new>"})
    path.write_text(json.dumps(told))
    report = verify(tiny)
    assert failed(report) == ["tokenizer"]
    assert "the highest id is 1000000" in detail(report, "tokenizer")


NO_TOKENIZERS = [
    b"",
    b"{}",
    b"[1]",
    b'{"model": []}',
    b'{"model": {"vocab": {"a": "b"}}}',
    b'{"model": {"vocab": {"a": [1]}}}',
    b'{"model": {"vocab": {"a": true}}}',
    b'{"model": {"vocab": {"a": -1}}}',
    b'{"model": {"vocab": {"a": 1' + b"0" * 5000 + b"}}}",
    b'{"model": {"vocab": {}, "merges": 1}}',
    b'{"model": {"vocab": {}}, "added_tokens": [{"id": "1"}]}',
    b'{"model": {"vocab": {}}, "x": ' + b"[" * 100_000,
    b"\xff",
]


@pytest.mark.parametrize("raw", NO_TOKENIZERS, ids=lambda raw: raw[:50])
def test_a_tokenizer_that_is_none_is_a_fault(tiny, raw):
    (tiny / "tokenizer.json").write_bytes(raw)
    assert failed(verify(tiny)) == ["tokenizer"]


LARGE = STRETCHES * STRETCH_BYTES * 2
WRONG = {"BF16": 0x7FC0, "F16": 0xFC00, "F32": 0x7F800001, "F64": 0x7FF0000000000000}
BITS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64}


@pytest.mark.parametrize("dtype", WRONG)
@pytest.mark.parametrize("place", [0, -1, 12345])
def test_every_number_is_read_when_asked(tmp_path, dtype, place):
    bits = np.zeros(LARGE // np.dtype(BITS[dtype]).itemsize, BITS[dtype])
    numbers = bits.view({"BF16": np.uint16, "F16": np.float16}.get(dtype, bits.dtype))
    folder = folder_of(tmp_path, {"x": (dtype, numbers)}, config={"model_type": "none"})
    assert outcomes(verify(folder, full=True))["finite"] == "ok"
    bits[place] = WRONG[dtype]
    folder_of(tmp_path, {"x": (dtype, numbers)}, config={"model_type": "none"})
    report = verify(folder, full=True)
    assert failed(report) == ["finite"]
    assert detail(report, "finite").startswith("x: 1 numbers not finite")


@pytest.mark.parametrize("place", [0, -1])
def test_a_sample_sees_both_ends(tmp_path, place):
    bits = np.zeros(LARGE, np.uint16)
    bits[place] = 0x7F80
    folder = folder_of(tmp_path, {"x": ("BF16", bits)}, config={"model_type": "none"})
    assert failed(verify(folder)) == ["finite"]


def test_digests_are_asked_of_every_file(tmp_path, capsys):
    folder = folder_of(tmp_path / "c", {"x": ("BF16", bfloats(4, 4))}, config={"model_type": "no"})
    weights = folder / "model.safetensors"
    right = hashlib.sha256(weights.read_bytes()).hexdigest()
    listed = tmp_path / "sums"
    listed.write_text(f"{right}  model.safetensors\n")
    assert main(["verify-checkpoint", str(folder), "--digests", str(listed)]) == 0
    listed.write_text(f"{'0' * 64} *./model.safetensors\n\n{right}  gone\n")
    assert main(["verify-checkpoint", str(folder), "--digests", str(listed)]) == 1
    said = capsys.readouterr().out
    assert "model.safetensors: expected 000000000000…" in said
    assert "gone: cannot be read" in said
    assert verify(folder, digests={"config.json": "0"}).sound is False


@pytest.mark.parametrize("line", ["abc  x", "0" * 64, "g" * 64 + "  x"])
def test_a_list_of_digests_that_is_none_is_refused(tmp_path, line):
    (tmp_path / "sums").write_text(line)
    with pytest.raises(BakeError, match="line 1"):
        read_digests(tmp_path / "sums")


def test_the_verb_has_a_table_and_json_and_an_exit_status(tiny, capsys):
    assert main(["verify-checkpoint", str(tiny)]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    changed(tiny, hidden_size=7)
    assert main(["verify-checkpoint", str(tiny), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] is False
    assert [check["name"] for check in told["checks"]] == NAMES
    assert main(["verify-checkpoint", str(tiny / "nowhere")]) == 1
    assert "no such file" in capsys.readouterr().err


CODES = {
    # dtype: codes that are no numbers, and the largest that are.
    "F8_E4M3": ((0x7F, 0xFF), (0x7E, 0xFE)),
    "F8_E5M2": ((0x7C, 0x7D, 0xFF), (0x7B, 0xFB)),
    "F8_E8M0": ((0xFF,), (0xFE, 0x00)),
}


@pytest.mark.parametrize("dtype", CODES)
def test_codes_of_eight_bits_are_asked_for_nan(tmp_path, dtype):
    wrong, right = CODES[dtype]
    config = {"model_type": "none"}
    codes = np.zeros((4, 256), np.uint8)
    codes.reshape(-1)[: len(right)] = right
    scale = {"x.weight_scale": ("F32", np.array(1, np.float32))}
    folder = folder_of(tmp_path, {"x.weight": (dtype, codes), **scale}, config=config)
    assert outcomes(verify(folder, full=True))["finite"] == "ok"
    for code in wrong:
        codes[3, 255] = code
        folder_of(tmp_path, {"x.weight": (dtype, codes), **scale}, config=config)
        report = verify(folder, full=True)
        assert "finite" in failed(report)
        assert "x.weight: 1 numbers not finite" in detail(report, "finite")


@pytest.mark.torch
@pytest.mark.parametrize("dtype", [dtype for dtype in EXPONENTS if dtype.startswith("F8")])
def test_what_is_not_finite_in_eight_bits_is_what_torch_says(dtype):
    import torch

    name = f"float{dtype[1:].lower()}"
    name += {"float8_e4m3": "fn", "float8_e8m0": "fnu"}.get(name, "")
    codes, (kind, mask, wrong) = np.arange(256, dtype=np.uint8), EXPONENTS[dtype]
    numbers = torch.from_numpy(codes).view(getattr(torch, name)).float().numpy()
    got = (codes & kind(mask)) == kind(wrong)
    np.testing.assert_array_equal(got, ~np.isfinite(numbers))


def test_a_list_of_digests_that_is_a_pipe_or_endless_is_refused(tmp_path, capsys, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        assert main(["verify-checkpoint", str(TINY), "--digests", str(path)]) == 1
        assert "cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(module, "DIGESTS_BYTES", 10)
    (tmp_path / "sums").write_text("\n" * 11)
    with pytest.raises(BakeError, match="larger than 10 bytes"):
        read_digests(tmp_path / "sums")


def test_names_in_digests_that_no_file_has_are_faults(tmp_path):
    folder = folder_of(tmp_path / "c", config={"model_type": "no"})
    (tmp_path / "c" / "loop").symlink_to("loop")
    (tmp_path / "c" / "pipe").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "c" / "pipe")
    names = ("loop", "pipe", "a\0b", "x" * 300, ".")
    report = verify(folder, digests=dict.fromkeys(names, "0" * 64))
    told = detail(report, "digests")
    assert failed(report) == ["digests"]
    assert told.count("cannot be read") == len(names)


def test_text_of_a_stranger_does_not_reach_the_terminal_raw(tmp_path, capsys):
    config = {"model_type": "\x1b[31mred"}
    main(["verify-checkpoint", str(folder_of(tmp_path, config=config))])
    assert "\x1b" not in capsys.readouterr().out
