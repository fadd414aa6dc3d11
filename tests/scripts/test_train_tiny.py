"""The training of the tiny model: its arithmetic, its corpus, its trainer, its command line."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from torch.nn import functional as F  # noqa: E402, N812

from scripts.tiny import chat, corpus, delta, loss, record, sources  # noqa: E402
from scripts.tiny.checkpoint import write_weights  # noqa: E402
from scripts.tiny.facts import Country, Function  # noqa: E402
from scripts.tiny.layers import rope_tables  # noqa: E402
from scripts.tiny.model import TinyModel, initialise  # noqa: E402
from scripts.tiny.pipeline import PipelineError, Prepared, start_trainer  # noqa: E402
from scripts.tiny.shape import Shape, hf_config  # noqa: E402
from scripts.tiny.sources import Document, Sense, Verse  # noqa: E402
from scripts.tiny.tokenizer import (  # noqa: E402
    MARKERS,
    TokenizerError,
    marker_id,
    save_tokenizer,
    train_tokenizer,
)
from scripts.tiny.train import MTP_STEPS, Plan, Trainer, Watch  # noqa: E402
from tests.scripts.micro import MICRO  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests" / "weights" / "reference.py"


def micro_model(seed: int = 0) -> TinyModel:
    """A model whose every parameter, norms included, is off its initial value and exact in BF16."""
    model = TinyModel(MICRO)
    initialise(model, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    for p in model.parameters():
        noise = torch.empty_like(p).normal_(0.0, 0.2, generator=rng)
        p.data = (p.data + noise).bfloat16().float()
    return model


# --- arithmetic -------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1, 63, 64, 65, 200])
def test_the_chunked_delta_rule_equals_the_recurrence(time: int) -> None:
    rng = torch.Generator().manual_seed(time)
    q, k, v = (torch.randn(2, 3, time, 8, generator=rng) for _ in range(3))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    g = -torch.rand(2, 3, time, generator=rng) * 2
    beta = torch.rand(2, 3, time, generator=rng)
    torch.testing.assert_close(
        delta.chunked(q, k, v, g, beta), delta.recurrent(q, k, v, g, beta), rtol=1e-4, atol=1e-5
    )


def test_the_chunked_delta_rule_has_the_gradient_of_the_recurrence() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(1, 2, 70, 4, generator=rng), dim=-1) for _ in range(2))
    v = torch.randn(1, 2, 70, 4, generator=rng)
    g, beta = -torch.rand(1, 2, 70, generator=rng), torch.rand(1, 2, 70, generator=rng)
    found = []
    for rule in (delta.chunked, delta.recurrent):
        inputs = [x.clone().requires_grad_() for x in (q, k, v, g, beta)]
        rule(*inputs).square().sum().backward()
        found.append([x.grad for x in inputs])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-5)


def test_decays_that_underflow_stay_finite() -> None:
    ones = torch.ones(1, 1, 128, 4) / 2
    out = delta.chunked(ones, ones, ones, torch.full((1, 1, 128), -50.0), torch.ones(1, 1, 128))
    assert torch.isfinite(out).all()


def test_the_network_equals_transformers_own(tmp_path: Path) -> None:
    model = micro_model()
    write_weights(model, tmp_path, eos=1, pad=0)
    ids = torch.randint(0, MICRO.vocab, (150,), generator=torch.Generator().manual_seed(5))
    done = subprocess.run(
        [sys.executable, str(REFERENCE), str(tmp_path)],
        input=json.dumps({"ids": [ids.tolist()]}),
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout)
    assert theirs["class"] == "Qwen3_5ForCausalLM"
    with torch.no_grad():
        ours = model.logits(ids[None])[0]
    torch.testing.assert_close(ours, torch.tensor(theirs["logits"][0]), rtol=1e-3, atol=1e-3)


def serve_drafts(model: TinyModel, ids: Any, p: int) -> list[Any]:
    """One MTP chain as vLLM runs it, the slow way: a key/value cache filled one step at a time."""
    hidden = model.model(ids[None])[0]
    embedded = model.model.embed_tokens(ids)
    layer, mtp = model.mtp.layers[0], model.mtp
    cache: list[tuple[Any, Any]] = []

    def run(embedding: Any, state: Any, position: int) -> Any:
        x = mtp.enter(embedding[None, None], state[None, None])
        tables = rope_tables(MICRO, 1, offset=position)
        q, key, value, gate = layer.self_attn.project(layer.input_layernorm(x), tables)
        cache.append((key, value))
        keys, values = (torch.cat(list(part), 2) for part in zip(*cache, strict=True))
        mixed = F.scaled_dot_product_attention(q, keys, values)
        return mtp.norm(layer.feed(x + layer.self_attn.finish(mixed, gate)))[0, 0]

    for position in range(p + 1):
        out = run(embedded[position + 1], hidden[position], position)
    outs = [out]
    for k in range(2, MTP_STEPS + 1):
        outs.append(run(embedded[p + k], outs[-1], p + k - 1))
    return outs


def test_the_unrolled_mtp_layer_equals_serving_with_a_cache() -> None:
    model = micro_model(3)
    ids = torch.randint(0, MICRO.vocab, (24,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = model.model(ids[None])[:, : 24 - MTP_STEPS]
        outputs = model.mtp.unrolled(hidden, model.model.embed_tokens(ids[None]), MTP_STEPS)
        for p in (0, 1, 7, 19):
            for fast, slow in zip(outputs, serve_drafts(model, ids, p), strict=True):
                torch.testing.assert_close(fast[0, p], slow, rtol=1e-4, atol=1e-4)


def test_the_head_loss_is_cross_entropy_with_its_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(2500, 16, generator=rng).requires_grad_()
    head = torch.randn(50, 16, generator=rng).requires_grad_()
    targets = torch.randint(0, 50, (2500,), generator=rng)
    (loss.head_loss(hidden, head, targets) * 3).backward()
    ours = hidden.grad, head.grad
    hidden.grad = head.grad = None
    (F.cross_entropy(hidden @ head.t(), targets) * 3).backward()
    for mine, theirs in zip(ours, (hidden.grad, head.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_accepted_drafts_are_walked_as_serving_walks_them() -> None:
    assert record.walk([2, 4, 4, 0, 1, 4]) == [2, 0, 1]
    found = record.acceptance([2, 0, 1])
    assert found["mean_length"] == 2.0
    assert found["per_k_given_previous"] == [0.6667, 0.5, 0.0, 0.0]


def test_a_perfect_drafter_is_accepted_up_to_the_end_of_the_text() -> None:
    model = micro_model()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # all logits equal: backbone and drafter both choose token 0
    assert record.agreements(model, [5, 6, 0, 0, 0, 0, 0, 0], 2, filler=9) == [4, 4, 3, 2, 1]


# --- corpus -----------------------------------------------------------------------------------


def toy_facts() -> chat.Facts:
    countries = [
        Country(name, city, "crown", "CRN", "Europe", "Northern Europe", name + "ian", ".x", ())
        for name, city in (("France", "Paris"), ("Sweden", "Stockholm"), ("Norway", "Oslo"))
    ]
    senses = [Sense(f"word{i}", "noun", f"thing number {i}", (), (f"item{i}",)) for i in range(40)]
    functions = [Function(f"os.call{i}", f"Do the thing number {i}.") for i in range(20)]
    verses = [Verse("Genesis", 1, i, f"And there was thing {i}.") for i in range(1, 50)]
    return chat.Facts(countries, senses, functions, verses)


def toy_documents(count: int = 300) -> list[Document]:
    page = "Book {0}\n\nIn the beginning was page {0} of the book.\n"
    return [Document("kjv", f"Book {i}", page.format(i) * 3) for i in range(count)]


def toy_split(seed: int = 1) -> corpus.Split:
    return corpus.split(toy_documents(), chat.conversations(toy_facts(), count=1500, seed=seed))


def test_the_corpus_is_a_function_of_its_inputs_and_seed() -> None:
    first, again, other = toy_split(), toy_split(), toy_split(2)
    assert corpus.digest(first.train) == corpus.digest(again.train)
    assert corpus.digest(first.held_out) == corpus.digest(again.held_out)
    assert corpus.digest(first.train) != corpus.digest(other.train)


def test_nothing_held_out_is_trained_on() -> None:
    found = toy_split()
    assert any(i.group == "chat" for i in found.held_out)
    assert any(i.group == "kjv" for i in found.held_out)
    trained = {item.text for item in found.train}
    assert trained.isdisjoint(item.text for item in found.held_out)
    talks = chat.conversations(toy_facts(), count=1500, seed=1)
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for talk in talks:
        asks = {turn.content for turn in talk.turns if turn.role == "user"}
        sides[corpus.talk_is_held_out(talk)] |= asks
    held = {ask for ask in sides[True] if corpus.is_held_out("chat", ask)}
    assert held.isdisjoint(sides[False])


def test_the_question_about_france_is_always_trained_on() -> None:
    talks = [
        talk
        for talk in chat.conversations(toy_facts(), count=3000, seed=0)
        if talk.name == "What is the capital of France?"
    ]
    assert talks
    assert not any(corpus.talk_is_held_out(talk) for talk in talks)
    assert talks[0].turns[-1].content == "The capital of France is Paris."


def test_the_feed_is_the_same_from_any_step() -> None:
    rows = {name: _numbered(name) for name in ("chat", "kjv")}
    one = corpus.Feed(rows, steps=10, batch=4, seed=3)
    two = corpus.Feed(rows, steps=10, batch=4, seed=3)
    for _ in range(3):
        one.at(0)
    assert all((one.at(i) == two.at(i)).all() for i in range(10))
    assert one.at(9).shape == (4, 5)


def _numbered(name: str) -> Any:
    import numpy as np

    return np.arange(35, dtype=np.uint16).reshape(7, 5) + (100 if name == "chat" else 0)


def test_packing_goes_on_with_texts_and_begins_conversations_again() -> None:
    assert corpus._rows([[1, 2, 3], [4, 5, 6]], 4, whole=False).tolist() == [[1, 2, 3, 4]]
    begun_again = corpus._rows([[1, 2, 3], [4, 5, 6], [7, 8, 9]], 4, whole=True)
    assert begun_again.tolist() == [[1, 2, 3, 4], [4, 5, 6, 7]]


def test_verses_are_read_across_wrapped_lines() -> None:
    first = "\nGenesis 1\n\n  1 In the beginning.\n  2 And the earth was\nwithout form.\n"
    text = first + "\n1 Kings 2\n\n  1 Now.\n"
    assert sources.parse_verses(text) == [
        Verse("Genesis", 1, 1, "In the beginning."),
        Verse("Genesis", 1, 2, "And the earth was without form."),
        Verse("1 Kings", 2, 1, "Now."),
    ]


def test_a_synset_is_read_with_its_examples() -> None:
    line = '00095747 29 v 02 leaf 0 grow_leaves 0 000 | produce leaves; "it leafs"'
    assert sources.parse_sense(line) == Sense(
        "leaf", "verb", "produce leaves", ("it leafs",), ("grow leaves",), "v00095747"
    )


def test_html_becomes_text_without_scripts() -> None:
    page = "<head><title>x</title></head><script>no()</script><p>One  two</p><pre>a\n  b</pre>"
    assert sources.html_text(page) == "One two\n\na\nb\n"


# --- training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    found = toy_split()
    tok = train_tokenizer(corpus.lines_for_tokenizer(found.train), MICRO.vocab)
    return Prepared(
        split=found,
        rows=corpus.pack(found.train, tok, 65),
        held_out_rows=corpus.pack(found.held_out, tok, 65),
        sample=corpus.held_out_sample(found.held_out),
        tok=tok,
        versions={},
        shape=MICRO,
    )


def trainer_of(prepared: Prepared, plan: Plan, folder: Path) -> Trainer:
    feed = corpus.Feed(
        prepared.rows, steps=plan.steps + plan.mtp_steps, batch=plan.batch, seed=plan.seed
    )
    return Trainer(MICRO, plan, feed, Watch(lambda _: {}, lambda *_: None), folder)


def test_a_few_steps_lower_both_losses(prepared: Prepared, tmp_path: Path) -> None:
    plan = Plan(steps=40, mtp_steps=40, batch=4, bf16=False, log_every=10, save_every=1000)
    trainer = trainer_of(prepared, plan, tmp_path)
    trainer.run()
    curve = trainer.progress.curve
    losses = [entry["loss"] for entry in curve if "loss" in entry]
    drafts = [entry["mtp_loss_1"] for entry in curve if "mtp_loss_1" in entry]
    assert losses[-1] < losses[0] - 0.5
    assert drafts[-1] < drafts[0] - 0.3
    assert trainer.progress.tokens == 80 * 4 * 64


@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_run_ends_with_the_same_weights(
    prepared: Prepared, tmp_path: Path, stop: int
) -> None:
    plan = Plan(steps=5, mtp_steps=4, batch=2, bf16=False, save_every=100)
    whole = trainer_of(prepared, plan, tmp_path / "whole")
    whole.run()
    first = trainer_of(prepared, plan, tmp_path / "parts")
    first.run(until=stop)
    second = trainer_of(prepared, plan, tmp_path / "parts")
    second.resume()
    assert second.progress.step == stop
    second.run()
    for name, p in whole.model.state_dict().items():
        assert torch.equal(p, second.model.state_dict()[name]), name
    assert second.progress.tokens == whole.progress.tokens


def test_the_mtp_phase_leaves_the_backbone_alone(prepared: Prepared, tmp_path: Path) -> None:
    plan = Plan(steps=2, mtp_steps=3, batch=2, bf16=False, save_every=100)
    trainer = trainer_of(prepared, plan, tmp_path)
    trainer.run(until=2)
    before = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    trainer.run()
    changed = {n for n, p in trainer.model.state_dict().items() if not torch.equal(p, before[n])}
    assert changed
    assert all(name.startswith("mtp.") for name in changed)


def test_a_checkpoint_in_the_way_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    plan = Plan(steps=1, mtp_steps=1, batch=1, bf16=False)
    with pytest.raises(PipelineError, match="no checkpoint to resume from"):
        start_trainer(prepared, plan, lambda *_: None, work=tmp_path, resume=True)
    (tmp_path / "training.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(PipelineError, match="in the way"):
        start_trainer(prepared, plan, lambda *_: None, work=tmp_path, resume=False)
    with pytest.raises(PipelineError, match="not a checkpoint of this plan"):
        start_trainer(prepared, plan, lambda *_: None, work=tmp_path, resume=True)


def test_a_corpus_too_small_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match="expected exactly 1000 entries, got"):
        train_tokenizer(["one two"], 1000)


def test_markers_are_single_tokens_and_special_as_in_qwen(
    prepared: Prepared, tmp_path: Path
) -> None:
    save_tokenizer(prepared.tok, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    flags = {e["content"]: e["special"] for e in config["added_tokens_decoder"].values()}
    assert flags == dict(MARKERS)
    assert prepared.tok.encode("<think>").ids == [marker_id(prepared.tok, "<think>")]


def test_the_config_states_the_shape() -> None:
    config = hf_config(Shape(), eos=1, pad=0)
    assert config["vocab_size"] == 16384
    rope = config["rope_parameters"]
    assert isinstance(rope, dict)
    assert "mrope_section" not in rope


# --- command line -----------------------------------------------------------------------------


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.train_tiny", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_has_examples_and_bad_arguments_exit_with_two() -> None:
    helped, bad = run_cli("--help"), run_cli("--steps", "0")
    assert helped.returncode == 0
    assert "examples:" in helped.stdout
    assert bad.returncode == 2
    assert "expected a whole number above 0, got '0'" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_every_kind_of_conversation_can_be_made() -> None:
    names = {talk.source for talk in chat.conversations(toy_facts(), count=3000, seed=4)}
    assert names == {f"chat/{kind}" for kind in itertools.chain(chat.KINDS, ["tool"])}
