"""What variants make of the model that ships, by the real steps; not by AWQ's search."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from bake import current, tree
from bake import derive as deriving
from bake.current import Inputs, is_current, makers, wanted
from bake.derive import derive
from bake.errors import BakeError, Busy
from serve.derivation import Derivation
from serve.errors import ConfigError
from serve.model import ModelSource, load_model
from serve.origin import RECORD
from serve.settings import REPOSITORY
from serve.variant import Variant

TINY = REPOSITORY / "weights" / "tiny"
HEAD = {"lm_head": "w4a16"}


@contextmanager
def step(_what):
    yield lambda _done, _total: None


def make(one, **options):
    return derive(one, step, lambda _line: None, **options)


def variant(**levers: object) -> Variant:
    upper = {name.upper(): value for name, value in levers.items()}
    return Variant.model_validate({"NAME": "v", "SUMMARY": "s", **upper})


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    path = tmp_path / "model"
    shutil.copytree(TINY, path)
    own = {"PRUNED_VOCAB_SIZE": 8192, "REDISTILLED_HEAD": True}
    return ModelSource.model_validate({"NAME": "tiny", "PATH": path, **own})


@pytest.fixture
def of(source, tmp_path):
    def made(inputs: Inputs | None = None, **levers: object):
        return wanted(variant(**levers), source, tmp_path / "derived", inputs)

    return made


def test_a_variant_that_serves_a_model_as_it_is_wants_nothing_made(of):
    assert of(max_num_seqs=8) is None


def test_it_is_made_once_and_can_be_served(of):
    one = of(**HEAD)
    assert not is_current(one)
    first, again = make(one), make(one)
    assert (first.new, again.new) == (True, False)
    assert first.folder == again.folder == one.folder
    assert first.bytes == again.bytes == load_model(served(one)).weight_bytes
    assert not tree.beside(one.folder, ".part").exists()
    told = json.loads((one.folder / RECORD).read_text())
    assert told["recipe"]["lm_head"] == "w4a16"
    assert "model/model.safetensors" in told["inputs"]


def test_the_same_again_is_the_same_bytes(of):
    one = of(**HEAD)
    make(one)
    first = {p.name: p.read_bytes() for p in one.folder.iterdir() if p.name != RECORD}
    assert make(one, force=True).new
    assert {p.name: p.read_bytes() for p in one.folder.iterdir() if p.name != RECORD} == first


def test_another_checkpoint_under_the_same_name_is_noticed(of, source):
    one = of(**HEAD)
    make(one)
    weights = source.path / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert not is_current(one)
    assert make(one).new


def test_a_new_time_alone_is_no_change(of, source):
    one = of(**HEAD)
    make(one)
    os.utime(source.path / "config.json", (1, 1))
    assert is_current(one)
    assert not make(one).new


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"schema": 1, "inputs": []}', '{"schema": 2}'])
def test_a_record_that_says_nothing_makes_it_anew(of, told):
    one = of(**HEAD)
    make(one)
    (one.folder / RECORD).write_text(told)
    assert not is_current(one)
    assert make(one).new


@pytest.mark.parametrize(
    ("levers", "what", "next_step"),
    [
        ({"weights": "awq-w4a16"}, "corpus", "scripts.build_calibration_corpus"),
        ({"vocab_size": 8192}, "counts", "scripts.analyze_vocab tiny"),
        (
            {
                "speculative_method": "mtp",
                "num_speculative_tokens": 1,
                "mtp_head": "redistilled",
            },
            "head",
            "scripts.redistill_mtp tiny",
        ),
    ],
)
def test_what_a_step_needs_and_is_not_there_is_named_before_anything_is_made(
    of, tmp_path, levers, what, next_step
):
    nowhere = tmp_path / "nowhere"
    one = of(Inputs(nowhere, nowhere, nowhere / "corpus.jsonl"), **levers)
    with pytest.raises(ConfigError, match=rf"is not there.*\({what}\)") as refused:
        make(one)
    assert next_step in refused.value.hint
    assert not one.folder.parent.exists()


def test_a_model_that_is_not_there_is_named(of, source):
    shutil.rmtree(source.path)
    with pytest.raises(ConfigError, match="no folder"):
        make(of(**HEAD))


def test_a_step_that_fails_leaves_what_stood_there(of, monkeypatch):
    one = of(**HEAD)
    make(one)
    before = (one.folder / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(deriving, "_quantize", full)
    with pytest.raises(BakeError, match="No space left") as refused:
        make(one, force=True)
    assert "make room" in refused.value.hint
    assert (one.folder / "model.safetensors").read_bytes() == before
    # The lock alone stays, as its removal would let two in.
    assert {p.name for p in one.folder.parent.iterdir()} == {
        one.folder.name,
        tree.beside(one.folder, ".lock").name,
    }


def test_where_it_cannot_be_made_is_told_in_words(source, tmp_path):
    (tmp_path / "file").write_text("")
    one = wanted(variant(**HEAD), source, tmp_path / "file")
    with pytest.raises(BakeError, match=r"file/.*: Not a directory") as refused:
        make(one)
    assert "PREHEAT_DERIVED_ROOT" in refused.value.hint


def test_two_do_not_make_it_at_once(of):
    one = of(**HEAD)
    with tree.locked(one.folder), pytest.raises(Busy):
        make(one)


def test_steps_stack_and_quantizing_comes_last(of):
    one = of(vocab_size=65536, weights="rtn-w4a16", lm_head="w4a16")
    assert one.folder.name == "v8192_rtn-w4a16-mlp_lmhead-w4a16_g32"
    done = make(one)
    assert list(done.reports) == ["pruning to 8192 tokens", "quantizing (rtn-w4a16)"]
    config = json.loads((one.folder / "config.json").read_text())
    assert config["vocab_size"] == 8192
    assert config["tie_word_embeddings"] is False
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    model = load_model(served(one))
    assert model.has_mtp
    assert model.vocab_map == one.folder.resolve() / "vocab_map.json"


@pytest.mark.parametrize("cut", [True, False])
def test_a_file_of_it_that_is_cut_or_gone_is_made_again(of, cut):
    one = of(**HEAD)
    make(one)
    weights = one.folder / "model.safetensors"
    if cut:
        os.truncate(weights, weights.stat().st_size - 1)
    else:
        weights.unlink()
    assert not is_current(one)
    assert make(one).new
    assert is_current(one)


def test_what_other_code_made_is_made_anew(of, monkeypatch):
    one = of(**HEAD)
    make(one)
    told = makers(one.recipe)
    assert list(told) == ["quantize"]
    monkeypatch.setattr(current, "makers", lambda _: {"quantize": "0" * 64})
    assert not is_current(one)


def test_each_step_has_sources_of_its_own():
    told = makers(Derivation("redistilled", 512, "awq-w4a16"))
    assert len(set(told.values())) == 3


@pytest.mark.parametrize("name", ["__init__.py", "verbs.py"])
def test_words_of_a_room_make_nothing_stale(monkeypatch, tmp_path, name):
    room = tmp_path / "vocabulary"
    room.mkdir()
    (room / "pruning.py").write_text("")
    monkeypatch.setattr(current, "__file__", str(tmp_path / "current.py"))
    recipe = Derivation("", 512, "")
    before = makers(recipe)
    (room / name).write_text('"""Other words."""')
    assert makers(recipe) == before
    (room / "pruning.py").write_text("1")
    assert makers(recipe) != before


def test_what_was_found_the_same_is_not_read_again(of, source, monkeypatch):
    one = of(**HEAD)
    make(one)
    for path in source.path.iterdir():
        os.utime(path, (1, 1))
    assert is_current(one)

    def read_again(path, *_):
        raise AssertionError(path)

    monkeypatch.setattr(current, "_same_bytes", read_again)
    assert is_current(one)


def test_another_who_makes_it_meanwhile_is_no_reason_to_make_it(of):
    one = of(**HEAD)
    make(one)
    with tree.locked(one.folder):
        assert is_current(one)


def test_data_and_history_of_the_source_neither_go_along_nor_make_it_stale(of, source):
    (source.path / "conversion.json").write_text("{}")
    one = of(vocab_size=65536, lm_head="w4a16")
    make(one)
    names = {path.name for path in one.folder.iterdir()}
    assert not names & {"conversion.json", "heldout.jsonl", "training.json", "README.md"}
    assert {"tokenizer.json", "chat_template.jinja", RECORD} <= names
    (source.path / "heldout.jsonl").write_text("")
    (source.path / "README.md").write_text("")
    assert is_current(one)


def test_a_step_is_removed_once_the_next_has_read_it(of, monkeypatch):
    one = of(vocab_size=65536, lm_head="w4a16")
    there = []
    quantize = deriving._quantize

    def quantized(src, dst, *rest):
        made = quantize(src, dst, *rest)
        there.append(src)
        return made

    def placed(root, made=None):
        if root == one.folder:
            there.append(there[0].exists())
        put(root, made)

    put = tree.put_in_place
    monkeypatch.setattr(deriving, "_quantize", quantized)
    monkeypatch.setattr(tree, "put_in_place", placed)
    make(one)
    assert there[1:] == [False]


def test_what_cannot_be_served_takes_nothings_place(of, monkeypatch):
    one = of(**HEAD)
    make(one)
    before = (one.folder / "model.safetensors").read_bytes()

    def broken(src, dst, *_):
        shutil.copytree(src, dst)
        os.truncate(dst / "model.safetensors", 100)

    monkeypatch.setattr(deriving, "_quantize", broken)
    with pytest.raises(ConfigError):
        make(one, force=True)
    assert (one.folder / "model.safetensors").read_bytes() == before
    assert not tree.beside(one.folder, ".part").exists()


def served(one):
    return one.source.model_copy(update={"path": one.folder})
