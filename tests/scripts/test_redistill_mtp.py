"""Re-distilling an MTP head: the frozen base, its features, the loss, training, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from bake.errors import BakeError, Unsupported  # noqa: E402
from bake.heads import swap  # noqa: E402
from bake.progress import silent  # noqa: E402
from scripts import redistill_mtp  # noqa: E402
from scripts.mtp import base, continuations, features, prompts, train  # noqa: E402
from scripts.mtp.continuations import Asking, Continuation  # noqa: E402
from scripts.mtp.loss import Asked, batch_of, losses, step_weights  # noqa: E402
from scripts.mtp.prompts import Prompt  # noqa: E402
from scripts.served import Failed  # noqa: E402
from scripts.tiny.checkpoint import write_weights  # noqa: E402
from scripts.tiny.model import TinyModel, initialise  # noqa: E402
from scripts.tiny.shape import hf_config  # noqa: E402
from tests.scripts.micro import MICRO  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def model() -> TinyModel:
    made = TinyModel(MICRO)
    initialise(made, 0)
    rng = torch.Generator().manual_seed(1)
    for p in made.parameters():
        p.data = (p.data + torch.empty_like(p).normal_(0.0, 0.2, generator=rng)).bfloat16().float()
    return made


@pytest.fixture
def folder(tmp_path: Path, model: TinyModel) -> Path:
    path = tmp_path / "micro"
    path.mkdir()
    write_weights(model, path, eos=1, pad=0)
    (path / "tokenizer.json").write_text("{}")
    return path


def texts(count: int = 12) -> list[Continuation]:
    """Of different lengths, repeating themselves, so that there is something to learn."""
    return [
        Continuation(n, "x", [5, 6, 7][: 1 + n % 3], [7 + n % 2, 8, 9] * (2 + n % 4), n % 4 == 3)
        for n in range(count)
    ]


def made_features(checkpoint: base.Checkpoint, path: Path) -> list[features.Text]:
    return features.compute(checkpoint, texts(), path, "cpu", lambda done, total: None)


# --- the base ---------------------------------------------------------------------------------


def test_a_config_gives_back_the_shape_it_was_made_of():
    config = hf_config(MICRO, eos=1, pad=0)
    assert base.shape_of(config) == MICRO
    assert base.shape_of({"model_type": "qwen3_5", "text_config": config}) == MICRO


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"linear_value_head_dim": 16}, "differ in width"),
        ({"layer_types": ["sliding"]}, "'sliding'"),
        ({"hidden_size": None}, "no 'hidden_size'"),
    ],
)
def test_another_architecture_is_refused(change, said):
    config = hf_config(MICRO, eos=1, pad=0) | change
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(Unsupported, match=said):
        base.shape_of(config)


def test_the_base_is_the_models_own(folder, model, tmp_path):
    checkpoint = base.load(folder)
    assert checkpoint.shape == MICRO
    found = made_features(checkpoint, tmp_path / "features")
    assert len(found) == 12
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(found[5].ids[None])[0]
    both = torch.stack([hidden.flatten(), found[5].hidden.float().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99
    assert found[5].start == 2
    assert found[0].start == 0


def test_features_are_taken_over_and_not_computed_again(folder, tmp_path, monkeypatch):
    checkpoint = base.load(folder)
    first = made_features(checkpoint, tmp_path / "features")
    monkeypatch.setattr(features, "backbone_of", None)
    again = made_features(checkpoint, tmp_path / "features")
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.hidden, other.hidden)
        assert torch.equal(one.goals, other.goals)


def test_a_model_without_a_head_is_refused(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if not k.startswith("mtp.")}
    save_file(kept, path)
    with pytest.raises(BakeError, match=r"mtp\.fc\.weight is missing"):
        base.load(folder)


# --- the loss ---------------------------------------------------------------------------------


def test_weights_are_those_of_the_paper():
    assert [round(w, 2) for w in step_weights(3, 0.6)] == [0.51, 0.31, 0.18]
    assert step_weights(4, 1.0) == [0.25] * 4


def test_padding_changes_no_loss(folder, tmp_path):
    """Side by side, texts have the loss they have alone, weighed by their places."""
    checkpoint = base.load(folder)
    found = made_features(checkpoint, tmp_path / "features")[:4]
    mtp = base.head_of(checkpoint, "cpu")
    embedding, head = checkpoint.head.float(), checkpoint.head.float()

    def of(some: list[features.Text]) -> list[float]:
        with torch.no_grad():
            return [x.item() for x in losses(mtp, embedding, head, batch_of(some, "cpu"), Asked(3))]

    places = [[len(t.ids) - t.start - k for t in found] for k in (1, 2, 3)]
    alone = [of([text]) for text in found]
    for k, together in enumerate(of(found)):
        expected = sum(n * one[k] for n, one in zip(places[k], alone, strict=True))
        assert together == pytest.approx(expected / sum(places[k]), rel=1e-4)


def test_places_taken_in_turns_are_all_places(folder, tmp_path):
    from scripts.mtp.loss import places

    batch = batch_of(made_features(base.load(folder), tmp_path / "features")[:4], "cpu")
    time = batch.ids.shape[1] - 1
    every = places(batch, time, 2, Asked(3))
    turns = [places(batch, time, 2, Asked(3, 4, n)) for n in range(4)]
    assert torch.equal(torch.stack(turns).sum(0), every.long())
    first = int(batch.first[2])
    assert not every[2, :first].any()
    assert every[2, first]


# --- training ---------------------------------------------------------------------------------


PLAN = train.Plan(steps=6, batch=4, log_every=2, unroll=3, every=1)


def trainer(folder: Path, work: Path, identity: str = "a") -> train.Trainer:
    checkpoint = base.load(folder)
    return train.Trainer(checkpoint, made_features(checkpoint, work / "f"), PLAN, work, identity)


def run(one: train.Trainer) -> train.Trainer:
    one.run(lambda entry: None, lambda done, total: None)
    return one


def test_the_loss_falls_and_a_resumed_run_equals_an_uninterrupted_one(folder, tmp_path):
    whole = run(trainer(folder, tmp_path / "a"))
    curve = whole.progress.curve
    assert curve[-1]["kept_loss_1"] < curve[0]["kept_loss_1"]
    cut = trainer(folder, tmp_path / "b")

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        cut.run(lambda entry: None, stop)
    again = trainer(folder, tmp_path / "b")
    again.resume()
    assert again.progress.step == 4
    run(again)
    for name, tensor in whole.mtp.state_dict().items():
        assert torch.equal(tensor, again.mtp.state_dict()[name]), name


def test_the_checkpoint_of_another_run_is_refused(folder, tmp_path):
    run(trainer(folder, tmp_path))
    with pytest.raises(train.OtherRun):
        trainer(folder, tmp_path, "b").resume()


def test_an_epoch_sees_every_text_once():
    some = [features.Text(torch.zeros(n + 4), *[torch.zeros(0)] * 2, 0) for n in range(10)]
    steps = train.order(some, replace(PLAN, steps=6, batch=4))
    assert len(steps) == 6
    assert sorted(i for step in steps[:3] for i in step) == list(range(10))
    assert sorted(i for step in steps[3:] for i in step) == list(range(10))


# --- continuations and the command ------------------------------------------------------------


def test_a_line_that_was_cut_off_is_asked_for_again(tmp_path):
    path = tmp_path / "c.jsonl"
    lines = [json.dumps(vars(one)) for one in texts(3)]
    path.write_text("\n".join([*lines[:2], lines[2][:20]]))
    assert continuations.read(path) == texts(2)


def test_some_are_sampled_and_none_has_a_seed():
    asking = Asking(sampled_in=4)
    bodies = [continuations.body("m", "p", n, asking) for n in range(8)]
    assert [b["temperature"] for b in bodies] == [0, 0, 0, 0.8] * 2
    assert not any("seed" in b for b in bodies)


def said_by(words: list[str], base_folder: Path, given: Path) -> str:
    parsed = redistill_mtp.parser().parse_args(words)
    sources = {"base": base.digests(base_folder)}
    return redistill_mtp.said_by(parsed, prompts.read(given), sources)


def test_text_is_kept_by_what_it_is_of(folder, tmp_path):
    """Another base, variant, length or set of prompts takes over nothing."""
    given, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    given.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    other.write_text('{"prompt": "a"}\n')
    again = tmp_path / "again"
    again.mkdir()
    (again / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    for name in ("config.json", "tokenizer.json"):
        (again / name).write_bytes((folder / name).read_bytes())
    words = [str(folder)]
    names = [
        said_by(words, folder, given),
        said_by(words, folder, other),
        said_by(words, again, given),
        said_by([*words, "--variant", "awq"], folder, given),
        said_by([*words, "--tokens", "9"], folder, given),
    ]
    assert len(set(names)) == len(names)
    assert said_by([*words, "--concurrency", "2"], folder, given) == names[0]


def test_a_head_of_another_base_is_not_replaced(tmp_path):
    out = tmp_path / "head.safetensors"
    redistill_mtp.refuse_another(out, {"a": "1"})
    out.write_bytes(b"")
    out.with_suffix(".json").write_text('{"base": {"a": "1"}}')
    redistill_mtp.refuse_another(out, {"a": "1"})
    with pytest.raises(train.OtherRun, match="of another base"):
        redistill_mtp.refuse_another(out, {"a": "2"})


def test_the_command_makes_a_head_that_can_be_put_in(folder, tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    given = tmp_path / "prompts.jsonl"
    given.write_text("".join(f'{{"prompt": "p{n}"}}\n' for n in range(12)))
    lines = "".join(json.dumps(vars(one)) + "\n" for one in texts())
    out = tmp_path / "heads" / "micro.safetensors"
    words = [str(folder), "--prompts", str(given), "--work", str(work), "--out", str(out)]
    words += ["--steps", "2", "--batch", "4", "--threads", "1", "--json"]
    (work / f"continuations-{said_by(words, folder, given)}.jsonl").write_text(lines)
    assert redistill_mtp.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["data"]["texts"] == 12
    assert swap(folder, tmp_path / "made", out).tensors == 15
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["plan"]["step_weights"] == [0.4596, 0.2757, 0.1654, 0.0993]
    assert redistill_mtp.main([*words, "--seed", "1"]) == 1
    assert "another run" in capsys.readouterr().err


def test_what_is_not_there_is_told_in_words(tmp_path, capsys):
    assert redistill_mtp.main(["nothing"]) == 2
    told = capsys.readouterr().err
    assert "no model 'nothing'" in told
    assert told.count("hint:") == 1
    for wrong in (("--beta", "0"), ("--muon", "nan"), ("--steps", "0"), ("--device", "nowhere")):
        with pytest.raises(SystemExit) as ended:
            redistill_mtp.main(["tiny", *wrong])
        assert ended.value.code == 2
        assert wrong[0] in capsys.readouterr().err.splitlines()[-1]


def test_an_address_that_no_engine_answers_at_is_told_in_a_line(tmp_path):
    for url in ("nonsense", "http://127.0.0.1:1"):
        with pytest.raises(Failed, match="no engine answers there"):
            continuations.gather(url, [Prompt("", "a")], Asking(), tmp_path / "c.jsonl", silent)
