import hashlib
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from bake import tree
from bake.checkpoint.convert import convert
from bake.errors import BakeError, Malformed, Unsupported
from bake.quantize import Recipe, make, outputs, quantize
from tests.bake.quantize.folders import TINY, Arrays, changed, child, numbers, tensors

NOWHERE = Path("/nowhere/corpus.jsonl")
RTN = Recipe("rtn-w4a16")
UP = "model.layers.0.mlp.up_proj.weight"
# compressed-tensors' own packer, of what the folder says it was made of.
PACKED_BY_THEM = """
import json, sys, torch
from safetensors.torch import load_file
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
was, made = load_file(sys.argv[1]), load_file(sys.argv[2])
group, same = int(sys.argv[3]), []
for name in [n for n in made if n.endswith("weight_packed")]:
    base = name.removesuffix("weight_packed")
    source = "model.embed_tokens." if base == "lm_head." else base
    weight, scale = was[source + "weight"], made[base + "weight_scale"]
    groups = weight.reshape(*scale.shape, group)
    wanted = (groups.abs().amax(-1).float() / 7.5).to(torch.bfloat16)
    wanted[wanted == 0] = torch.finfo(torch.bfloat16).eps
    q = torch.clamp(torch.round(groups / scale[..., None]), -8, 7).to(torch.int8)
    packed = pack_to_int32(q.reshape(weight.shape), 4)
    shape = made[base + "weight_shape"].tolist() == list(weight.shape)
    same.append(bool(torch.equal(packed, made[name]) and torch.equal(wanted, scale) and shape))
print(json.dumps(same))
"""


def digest(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All linears and the head, in groups of 64."""
    folder = tmp_path_factory.mktemp("made") / "w4"
    recipe = Recipe("rtn-w4a16", "linear", 64, lm_head=True)
    return folder, quantize(TINY, folder, recipe, NOWHERE)


@pytest.mark.torch
def test_bytes_are_those_of_compressed_tensors(made):
    folder, report = made
    weights = [TINY / "model.safetensors", folder / "model.safetensors"]
    same = json.loads(child(PACKED_BY_THEM, *weights, 64))
    # Twelve of the MLPs, four of attention, three times three of GatedDeltaNet, the head.
    assert same == [True] * 26
    assert len(report.errors) == 26


def test_what_was_not_meant_is_as_it_was(made):
    folder, _ = made
    was, now = tensors(TINY), tensors(folder)
    kept = {name for name in was if name in now}
    assert {"mtp.fc.weight", "model.layers.0.linear_attn.in_proj_a.weight"} <= kept
    assert "model.embed_tokens.weight" in kept
    assert not any(name.startswith("mtp.") for name in was.keys() - kept)
    for name in kept:
        np.testing.assert_array_equal(was[name][1], now[name][1])


def test_numbers_read_back_are_within_half_a_step(made, tmp_path):
    folder, report = made
    convert(folder, tmp_path / "plain")
    was, back = numbers(TINY), numbers(tmp_path / "plain")
    for name, told in report.errors.items():
        right = was["model.embed_tokens.weight" if name == "lm_head.weight" else name]
        groups = right.reshape(-1, 64)
        step = np.abs(groups).max(axis=1, keepdims=True) / 7.5
        off = np.abs(back[name].reshape(-1, 64) - groups)
        # Half a step, a step's own rounding to BF16, and that of the product.
        assert np.all(off <= 0.5 * step + np.abs(groups) * 2**-7 + step * 2**-5)
        error = np.linalg.norm(off) / np.linalg.norm(right)
        assert error == pytest.approx(told, rel=1e-3)
        assert error < 0.16


def test_an_untied_head_is_accounted(made):
    folder, report = made
    config = json.loads((folder / "config.json").read_bytes())
    assert config["tie_word_embeddings"] is False
    assert report.head_bytes_before == 0
    assert report.head_bytes_after == 16384 * 256 // 2 + 16384 * 4 * 2 + 16
    there = sum(array.nbytes for _, array in tensors(folder).values())
    assert report.bytes_after == there
    assert report.bytes_before == sum(array.nbytes for _, array in tensors(TINY).values())


def test_a_report_lies_in_the_folder_and_says_no_time(made):
    folder, report = made
    told = json.loads((folder / "quantization.json").read_bytes())
    assert told["recipe"]["group_size"] == 64
    assert told["errors"] == dict(report.errors)
    assert "seconds" not in told
    names = {path.name for path in folder.iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names


def test_threads_and_shards_change_no_number(tmp_path):
    for threads in (1, 2):
        make.quantize(TINY, tmp_path / str(threads), RTN, NOWHERE, threads=threads)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
    make.quantize(TINY, tmp_path / "cut", RTN, NOWHERE, shard_bytes=1_000_000)
    one, many = tensors(tmp_path / "1"), tensors(tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 5
    assert one.keys() == many.keys()
    assert all(np.array_equal(one[name][1], many[name][1]) for name in one)


def test_how_many_rows_are_in_memory_changes_no_bit(tmp_path, monkeypatch):
    quantize(TINY, tmp_path / "whole", Recipe("none", lm_head=True), NOWHERE)
    monkeypatch.setattr(outputs, "AT_ONCE", 100_000)
    quantize(TINY, tmp_path / "pieces", Recipe("none", lm_head=True), NOWHERE)
    weights = [digest(tmp_path / name)["model.safetensors"] for name in ("whole", "pieces")]
    assert weights[0] == weights[1]


def test_progress_ends_at_its_end(tmp_path):
    steps = []
    quantize(TINY, tmp_path / "w4", RTN, NOWHERE, lambda *step: steps.append(step))
    assert steps == sorted(steps)
    assert steps[-1][0] <= steps[-1][1]


def refused(source: Path, folder: Path, recipe: Recipe = RTN, corpus: Path = NOWHERE) -> str:
    with pytest.raises(BakeError) as told:
        quantize(source, folder, recipe, corpus)
    assert not any(folder.parent.glob("*.part"))
    return str(told.value)


def test_what_stands_there_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    assert "exists" in refused(TINY, tmp_path / "mine")
    (tmp_path / "link").symlink_to("nowhere")
    assert "exists" in refused(TINY, tmp_path / "link")


def test_what_a_killed_maker_left_aside_comes_back_and_is_not_replaced(tmp_path):
    old = tree.beside(tmp_path / "out", ".old")
    old.mkdir()
    (old / "mine").write_text("x")
    tree.beside(tmp_path / "out", ".lock").write_text("")
    assert "out is back" in refused(TINY, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_how_the_source_came_to_be_does_not_go_along(tmp_path):
    source = changed(tmp_path / "source", lambda _: None)
    for name in ("conversion.json", "derived.json", "training.json", "data.jsonl", "kept.json"):
        (source / name).write_text("{}")
    quantize(source, tmp_path / "out", RTN, NOWHERE)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "kept.json" in names
    assert not names & {"conversion.json", "derived.json", "training.json", "data.jsonl"}


def test_the_texts_word_on_the_head_goes_first(tmp_path):
    words = {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}
    source = changed(tmp_path / "source", lambda _: None, **words)
    quantize(source, tmp_path / "out", Recipe("none", lm_head=True), NOWHERE)
    assert (tmp_path / "out").is_dir()


def test_weights_that_change_while_they_are_looked_at_are_noticed(tmp_path):
    opened = make._opened(changed(tmp_path / "source", lambda _: None))
    assert opened.read(UP).any()
    os.utime(tmp_path / "source" / "model.safetensors", (1, 1))
    with pytest.raises(BakeError, match=r"model\.safetensors"):
        opened.read(UP)


def test_sources_that_are_none(tmp_path, made):
    out = tmp_path / "out"
    assert "no such folder" in refused(tmp_path / "none", out)
    assert "no such folder" in refused(TINY / "config.json", out)
    assert "is quantized already" in refused(made[0], out)
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty", out)


def test_a_folder_within_the_source_is_refused(tmp_path):
    source = changed(tmp_path / "source", lambda arrays: arrays.pop("mtp.norm.weight"))
    assert "is in the source" in refused(source, source / "out")


def test_a_weight_that_is_no_number_is_named(tmp_path):
    def spoil(arrays: Arrays) -> None:
        kind, array = arrays[UP]
        bits = array.copy()
        bits[3, 5] = 0x7FC0
        arrays[UP] = kind, bits

    with pytest.raises(Malformed, match=r"up_proj.weight: holds what is no number, at \[3, 5\]"):
        quantize(changed(tmp_path / "source", spoil), tmp_path / "out", RTN, NOWHERE)
    assert not (tmp_path / "out").exists()


def test_float32_is_taken_and_stays_where_nothing_is_packed(tmp_path):
    def widen(arrays: Arrays) -> None:
        for name, array in numbers(TINY).items():
            arrays[name] = "F32", array

    quantize(changed(tmp_path / "wide", widen), tmp_path / "w4", RTN, NOWHERE)
    quantize(TINY, tmp_path / "same", RTN, NOWHERE)
    wide, near = tensors(tmp_path / "w4"), tensors(tmp_path / "same")
    assert wide["model.norm.weight"][0] == "F32"
    for part in ("packed", "scale"):
        name = UP.replace("weight", f"weight_{part}")
        np.testing.assert_array_equal(wide[name][1], near[name][1])


def test_awq_of_an_unknown_family_is_refused_by_name(tmp_path):
    source = changed(tmp_path / "source", lambda arrays: None, model_type="mamba9")
    with pytest.raises(Unsupported, match=r"model_type 'mamba9': awq knows llama"):
        quantize(source, tmp_path / "out", Recipe("awq-w4a16"), NOWHERE)
    quantize(source, tmp_path / "out", RTN, NOWHERE)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "no corpus there"),
        ("not json\n", "line 1 is no object with a text"),
        ('{"text": 3}\n', "line 1 is no object with a text"),
        ('{"text": "too short"}\n', "tokens, not 512"),
    ],
)
def test_a_corpus_that_is_none(tmp_path, lines, message):
    corpus = tmp_path / "corpus.jsonl"
    if lines is not None:
        corpus.write_text(lines)
    assert message in refused(TINY, tmp_path / "out", Recipe("awq-w4a16"), corpus)


def test_a_disk_that_is_full_leaves_nothing_in_its_place(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            quantize(TINY, tmp_path / "out", RTN, NOWHERE)
        except BakeError as error:
            os._exit(0 if "cannot be written" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not (tmp_path / "out").exists()
    # The next run clears what the last one left.
    quantize(TINY, tmp_path / "out", RTN, NOWHERE)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
