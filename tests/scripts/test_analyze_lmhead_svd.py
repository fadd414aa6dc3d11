"""The preview's arithmetic on matrices whose answer is known, and the command on small folders."""

import json

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402 - torch is not everywhere

from scripts.analyze_lmhead_svd import main, verdict  # noqa: E402
from scripts.head.preview import costs, directions, energy, recall  # noqa: E402

pytestmark = pytest.mark.torch


def test_directions_are_the_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(300, 16)
    values, axes = directions(matrix)
    torch.testing.assert_close(values.float(), torch.linalg.svdvals(matrix), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(axes.t() @ axes, torch.eye(16), rtol=0, atol=1e-5)


def test_energy_is_one_at_the_true_rank():
    torch.manual_seed(0)
    values, _ = directions(torch.randn(200, 3) @ torch.randn(3, 12))
    assert energy(values, 3) == pytest.approx(1)
    assert energy(values, 2) < 0.99


def test_a_preview_of_full_rank_finds_all_and_one_of_none_does_not():
    torch.manual_seed(0)
    head, states = torch.randn(500, 12), torch.randn(70, 12)
    _, axes = directions(head)
    assert recall(head, axes, states, [5, 20])["top1"] == {"5": 1.0, "20": 1.0}
    assert recall(head, axes, states, [5])["top5"] == {"5": 1.0}
    assert recall(head, axes[:, :1], states, [5])["top1"]["5"] < 0.5


def test_costs_count_the_preview_its_projection_and_the_candidates():
    cost = costs(1000, 64, 8, 10, 2)
    assert cost["bytes_full"] == 1000 * 64 * 2
    assert cost["bytes_read"] == (1000 * 8 + 64 * 8 + 10 * 64) * 2
    assert cost["flops_full"] == 2 * 1000 * 64


def test_a_rank_that_reads_more_is_no_saving():
    row = {"rank": 8, "bytes_read": 11, "bytes_full": 10}
    row |= {"head": {"top1": {"5": 1.0}}, "states": {"top1": {"5": 1.0}}}
    assert verdict([row], 5).startswith("no rank")
    assert verdict([row | {"bytes_read": 5}], 5).startswith("rank 8 (head)")


def test_any_folder_has_a_spectrum_a_record_and_a_picture(tmp_path, capsys):
    torch.manual_seed(0)
    model = {"lm_head.weight": torch.randn(90, 32), "model.embed_tokens.weight": torch.ones(9, 9)}
    save_file(model, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    assert (
        main(
            [str(tmp_path), "--ranks", "4,16", "--candidates", "5,32", "--json", "--out", str(out)]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["vocabulary"], told["hidden"], told["tensor"]) == (90, 32, "lm_head.weight")
    assert told["verdict"].startswith("spectrum only")
    assert sorted(p.suffix for p in out.iterdir()) == [".json", ".svg"]


def test_a_folder_without_a_head_and_a_rank_too_large_are_told(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    save_file({"x": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert main([str(tmp_path)]) == 1
    save_file({"lm_head.weight": torch.ones(9, 4)}, tmp_path / "model.safetensors")
    assert main([str(tmp_path), "--ranks", "5"]) == 2
    assert main([str(tmp_path), "--ranks", "2", "--candidates", "10"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4
    assert "--candidates: expected 1 to 9" in told[3]
    assert "expected 1 to 4" in told[2]


def test_a_quantized_head_is_refused_and_its_embedding_not_taken_for_it(tmp_path, capsys):
    packed = {"lm_head.weight_packed": torch.ones(9, 4, dtype=torch.int32)}
    save_file(packed | {"model.embed_tokens.weight": torch.ones(9, 4)}, tmp_path / "a.safetensors")
    assert main([str(tmp_path), "--no-record"]) == 1
    assert "the head is quantized (lm_head.weight_packed)" in capsys.readouterr().err


def test_too_few_tokens_are_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--tokens", "1"])
    assert stopped.value.code == 2
    assert "expected a number from 512" in capsys.readouterr().err


def test_what_was_given_is_what_the_record_says(tmp_path, capsys):
    save_file({"lm_head.weight": torch.randn(140, 20)}, tmp_path / "model.safetensors")
    assert main([str(tmp_path), "--ranks", "4", "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert json.loads(path.read_text())["command"][2:] == [
        "scripts.analyze_lmhead_svd",
        *(str(tmp_path), "--ranks", "4", "--out", str(tmp_path / "out")),
    ]
