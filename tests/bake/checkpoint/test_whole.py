"""Checkpoints that are not what their config says: one message, and nothing is made."""

import json

import numpy as np
import pytest

from bake import __main__ as command
from bake.checkpoint.verify import verify
from bake.errors import Malformed
from bake.quantize import Recipe, peer
from serve.settings import REPOSITORY
from tests.bake.quantize.folders import changed, child

COUNTS = REPOSITORY / "experiments" / "vocabularies" / "tiny.json"
O_PROJ = "model.layers.3.self_attn.o_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"
VERBS = {
    "awq": ["quantize"],
    "rtn": ["quantize", "--scheme", "rtn-w4a16"],
    "prune": ["prune-vocab", "--size", "8192", "--counts", str(COUNTS)],
}
MISSING = (
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.linear_attn.A_log",
    "model.layers.0.linear_attn.norm.weight",
    "model.layers.3.self_attn.q_proj.weight",
    "model.layers.3.self_attn.q_norm.weight",
    UP,
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.2.post_attention_layernorm.weight",
    "model.norm.weight",
    "mtp.fc.weight",
    EMBEDDING,
)
SHAPES = {
    O_PROJ: ((-1,), "expected [256, 256], got [65536]"),
    EMBEDDING: ((-1,), "expected [16384, 256], got [4194304]"),
    "model.norm.weight": ((2, -1), "expected [256], got [2, 128]"),
}
# In a config with a word on pictures the check knows nothing, as verify-checkpoint does not.
NOT_KNOWN = {"vision_config": {}}
MAIN = "from bake.__main__ import main; print('exit', main(sys.argv[1:]))"


def without(arrays, name):
    del arrays[name]


def shaped(arrays, name, shape):
    kind, array = arrays[name]
    arrays[name] = kind, array.reshape(shape)


def halved(arrays, name):
    kind, array = arrays[name]
    arrays[name] = kind, array[: len(array) // 2]


def refused(verb, source, capsys):
    out = source.parent / "out"
    name, *words = VERBS[verb]
    assert command.main([name, str(source), str(out), *words]) == 1
    said = capsys.readouterr()
    assert "wrote" not in said.out
    assert "Traceback" not in said.err
    assert not out.exists()
    assert not list(out.parent.glob(".out*.part"))
    told, _, hint = said.err.strip().partition("\n")
    assert "\n" not in hint
    return told, hint


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", MISSING)
def test_a_tensor_that_is_missing_is_named(name, verb, tmp_path, capsys):
    source = changed(tmp_path / "source", lambda arrays: without(arrays, name))
    told, hint = refused(verb, source, capsys)
    assert f"{source / 'model.safetensors'}: not what config.json says: {name} is missing" in told
    assert "fetch all of its files" in hint


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_of_another_shape_is_named_with_both(name, verb, tmp_path, capsys):
    shape, both = SHAPES[name]
    source = changed(tmp_path / "source", lambda arrays: shaped(arrays, name, shape))
    told, _ = refused(verb, source, capsys)
    assert f"{source / 'model.safetensors'}: not what config.json says: {name}: {both}" in told


@pytest.mark.parametrize("verb", VERBS)
def test_a_norm_of_half_its_size_is_named(verb, tmp_path, capsys):
    source = changed(tmp_path / "source", lambda arrays: halved(arrays, "model.norm.weight"))
    assert "model.norm.weight: expected [256], got [128]" in refused(verb, source, capsys)[0]


@pytest.mark.parametrize("verb", VERBS)
def test_of_several_files_the_one_that_is_wrong_is_named(verb, tmp_path, capsys):
    source = changed(tmp_path / "source", lambda arrays: [shaped(arrays, O_PROJ, -1)])
    other = changed(tmp_path / "other", lambda arrays: [without(arrays, n) for n in [*arrays][1:]])
    first = next(iter(json_header(other)))
    rest = changed(tmp_path / "rest", lambda a: [without(a, first), shaped(a, O_PROJ, -1)])
    (source / "model.safetensors").unlink()
    names = [f"model-0000{at}-of-00002.safetensors" for at in (1, 2)]
    for folder, name in zip((other, rest), names, strict=True):
        (folder / "model.safetensors").rename(source / name)
    told, _ = refused(verb, source, capsys)
    assert f"{source}: not what config.json says: {O_PROJ}: " in told
    assert f"got [65536] ({names[1]})" in told


def json_header(folder):
    raw = (folder / "model.safetensors").read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("config", [{}, {"model_type": "qwen3_5_text"}])
def test_a_config_that_says_no_architecture_is_refused(config, verb, tmp_path, capsys):
    source = changed(tmp_path / "source", lambda _: None)
    (source / "config.json").write_text(json.dumps(config))
    told, _ = refused(verb, source, capsys)
    assert f"{source / 'config.json'}: no 'architectures': not a checkpoint" in told


@pytest.mark.parametrize("verb", ["rtn", "prune"])
def test_more_tensors_do_no_harm_and_an_unknown_family_is_passed(verb, tmp_path, capsys):
    def more(arrays):
        arrays["model.layers.0.rotary_emb.inv_freq"] = "F32", np.ones(4, np.float32)

    name, *words = VERBS[verb]
    known = changed(tmp_path / "known", more)
    assert command.main([name, str(known), str(tmp_path / "a"), *words]) == 0
    unknown = changed(
        tmp_path / "unknown",
        lambda arrays: without(arrays, "model.norm.weight"),
        model_type="mamba9",
    )
    shapes = {check.name: check.outcome for check in verify(unknown).checks}["shapes"]
    assert shapes == "skipped"
    assert command.main([name, str(unknown), str(tmp_path / "b"), *words]) == 0


def test_the_other_maker_is_not_asked_to_make_up_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv(peer.VARIABLE, "/bin/false")
    source = changed(tmp_path / "source", lambda arrays: without(arrays, UP))
    with pytest.raises(Malformed, match=r"up_proj\.weight is missing"):
        peer.quantize(source, tmp_path / "w4", Recipe("rtn-w4a16"), tmp_path / "none")
    assert not (tmp_path / "w4").exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: without(a, "model.layers.0.linear_attn.A_log"), "A_log is missing"),
        (lambda a: without(a, UP), f"{UP} is missing"),
        (lambda a: shaped(a, O_PROJ, -1), f"{O_PROJ}: expected (256, 256) by its config"),
        (lambda a: shaped(a, EMBEDDING, -1), f"{EMBEDDING}: expected rows of 256 by its config"),
    ],
)
def test_what_the_search_meets_in_a_family_that_is_not_checked_is_one_message(
    change, said, tmp_path
):
    source = changed(tmp_path / "source", change, **NOT_KNOWN)
    words = ["quantize", source, tmp_path / "out", "--samples", "1", "--sequence", "16"]
    code = f"import sys; sys.stderr = sys.stdout; {MAIN}"
    told = child(code, *words)
    assert said in told
    assert told.endswith("exit 1\n")
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
