import json
from pathlib import Path

import numpy as np
import pytest

from scripts import measure_conversion
from scripts.vocabularies import vocabularies

FIXTURES = Path(__file__).parents[1] / "bake" / "checkpoint" / "families" / "fixtures"


@pytest.mark.torch
def test_a_model_is_converted_compared_and_recorded(tmp_path, monkeypatch, capsys):
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(measure_conversion, "MEASUREMENTS", tmp_path / "records")
    monkeypatch.setattr(measure_conversion, "REPOSITORY", measure_conversion.REPOSITORY)
    monkeypatch.setattr(measure_conversion, "add", lambda record, folder: kept(record, tmp_path))
    asked = [str(FIXTURES / "qwen3.gguf"), "--prompts", "2", "--texts", "9"]
    assert measure_conversion.main([*asked, "--folder", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "record.json").read_text())
    ours = told["summary"]["peers"]["ours F32, transformers"]
    assert ours["most"] < 1e-4
    assert ours["same_first"] == ours["prompts"] == 2
    assert told["summary"]["texts_tokenized_otherwise"] == 0
    assert len(told["samples"]) == 2 * 3
    assert "9 texts of" in capsys.readouterr().out


def kept(record, folder):
    path = folder / "record.json"
    path.write_text(record.model_dump_json())
    return measure_conversion.REPOSITORY / "record.json"


def test_a_peer_that_fails_is_said(tmp_path, capsys):
    wrong = tmp_path / "x.gguf"
    wrong.write_bytes(b"GGUF")
    with pytest.raises(measure_conversion.NotMeasured, match="plain"):
        measure_conversion.run("plain", str(wrong), str(tmp_path / "y.gguf"))


def test_figures_of_two_distributions():
    basis = np.log(np.array([0.5, 0.4999, 0.0001]))
    ours = np.log(np.array([0.25, 0.7499, 0.0001]))
    told = measure_conversion.figures(ours, basis)
    assert told["most"] == pytest.approx(np.log(2))
    assert not told["same_first"]
    assert told["divergence"] == pytest.approx(0.5 * np.log(2) + 0.4999 * np.log(0.4999 / 0.7499))
    assert measure_conversion.figures(basis, basis)["divergence"] == 0


def test_a_distribution_sums_to_one():
    off = np.log(np.array([[0.5, 0.25, 0.2]]))
    assert np.exp(measure_conversion.summed(off)).sum() == pytest.approx(1)


def test_texts_are_as_many_as_asked():
    assert len(measure_conversion.texts(40)) == 40
    assert len(set(measure_conversion.LINES)) == len(measure_conversion.LINES)


def test_a_vocabulary_that_cannot_be_read_is_named(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "ggml-vocab-odd.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "ggml-vocab-odd.gguf.out").write_text("")
    assert vocabularies(tmp_path) == [
        {"name": "odd", "refused": "tokenizer.ggml.model 'bert' is not converted"}
    ]


def test_a_vocabulary_is_compared_with_what_is_wanted_of_it(tmp_path):
    path = tmp_path / "ggml-vocab-small.gguf"
    path.write_bytes((FIXTURES / "qwen2.gguf").read_bytes())
    mark = "\n__ggml_vocab_test__\n"
    (tmp_path / "ggml-vocab-small.gguf.inp").write_text(f"ab{mark}b{mark}")
    (tmp_path / "ggml-vocab-small.gguf.out").write_text(" 64 65\n 64\n")
    assert vocabularies(tmp_path) == [{"name": "small", "texts": 2, "otherwise": ["'b'"]}]
