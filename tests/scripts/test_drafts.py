"""What is said of drafts: acceptance with intervals, the K that is picked, where texts part."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from scripts.mtp import accepted, levers, parity, prompts
from scripts.mtp.asking import Ask, Said
from scripts.mtp.held_out import HELD_OUT, read_asks
from scripts.resum import differences
from scripts.tiny.corpus import Item
from serve.command import fit
from serve.config import read_pairs
from serve.model import find_model
from serve.plan import make_plan
from serve.settings import read_settings
from serve.variant import load_variant

METRICS = """# TYPE vllm:spec_decode_num_drafts counter
vllm:spec_decode_num_drafts_total{engine="0"} %d
# TYPE vllm:spec_decode_num_draft_tokens counter
vllm:spec_decode_num_draft_tokens_total{engine="0"} %d
# TYPE vllm:spec_decode_num_accepted_tokens counter
vllm:spec_decode_num_accepted_tokens_total{engine="0"} %d
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} %d
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} %d
"""


def sample(steps: int, *at: int) -> dict[str, object]:
    return {
        "steps": steps,
        "drafted": steps * len(at),
        "accepted": sum(at),
        "accepted_at": list(at),
        "completion_tokens": steps + sum(at),
    }


def said(*tokens: int, prompt: tuple[int, ...] = (9,)) -> Said:
    return Said(prompt, tokens, "", "stop", 0.1)


# --- acceptance -------------------------------------------------------------------------------


def test_what_one_prompt_added_is_the_difference_of_two_readings():
    before = accepted.counters(METRICS % (10, 20, 12, 8, 4))
    after = accepted.counters(METRICS % (14, 28, 17, 11, 6))
    assert accepted.grown(before, after) == {
        "steps": 4,
        "drafted": 8,
        "accepted": 5,
        "accepted_at": [3, 2],
    }


def test_positions_are_ordered_as_numbers():
    after = {"drafts": 1.0, **{f"at {n}": float(n) for n in range(12)}}
    assert accepted.grown({}, after)["accepted_at"] == list(range(12))


def test_totals_are_over_steps_and_not_over_prompts():
    told = accepted.totals([sample(10, 10, 5), sample(30, 0, 0)], draws=100)
    assert told["mean_acceptance_length"] == 1 + 15 / 40
    assert told["acceptance_rate_at"] == [0.25, 0.125]
    assert told["given_previous_at"] == [0.25, 0.5]
    low, high = told["mean_acceptance_length_interval"]
    assert low == 1.0
    assert high == 2.5


def test_equal_prompts_have_an_interval_of_no_width():
    told = accepted.totals([sample(10, 8, 4)] * 5, draws=100)
    assert told["acceptance_rate_at_interval"] == [[0.8, 0.8], [0.4, 0.4]]


def test_prompts_without_a_step_say_nothing():
    assert accepted.totals([sample(0, 0, 0)])["mean_acceptance_length"] is None
    assert accepted.totals([sample(0, 0), sample(2, 1)], draws=10)["prompts"] == 1


def test_a_difference_is_paired():
    """Prompts differ much, and each gains the same: no spread."""
    before, after = [sample(10, 1), sample(10, 8)], [sample(10, 2), sample(10, 9)]
    told = accepted.difference(before, after, draws=200)
    assert told["mean_acceptance_length"] == pytest.approx(0.1)
    assert told["mean_acceptance_length_interval"] == [0.1, 0.1]


# --- levers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 4])
def test_a_variant_with_other_drafts_is_a_variant(tmp_path, k):
    chosen = levers.choose("seq8-best", "tiny", "cpu")
    settings = levers.place(tmp_path, chosen, levers.with_drafts(chosen, k))
    read = read_settings(settings)
    variant = load_variant("seq8-best", read.experiments)
    assert (variant.num_speculative_tokens or 0) == k
    assert variant.cudagraph_capture_sizes == tuple(n * (k + 1) for n in (1, 2, 4, 8))
    assert variant.max_num_seqs == chosen.variant.max_num_seqs
    model = read_pairs(read.experiments / "models" / "tiny.env")
    assert Path(model["PATH"]) == chosen.model.path


def test_all_that_is_said_of_a_model_is_said_again_less_where_it_lies(tmp_path):
    chosen = levers.choose("seq8-best", "tiny", "cpu")
    own = chosen.source.model_copy(update={"language_model_only": True, "get": "make download"})
    elsewhere = replace(chosen.model, path=tmp_path / "derived")
    levers.place(tmp_path, replace(chosen, source=own, model=elsewhere), {})
    again = find_model("tiny", tmp_path / "experiments")
    assert again == own.model_copy(update={"path": tmp_path / "derived"})
    assert (again.redistilled_head, again.pruned_vocab_size) == (True, 8192)


def test_without_drafts_there_is_nothing_to_choose_them_from(tmp_path):
    chosen = levers.choose("seq8-best", "tiny", "cpu")
    part = chosen.variant.model_copy(update={"draft_vocab_size": 32768})
    for k, size in ((0, None), (2, 4096)):
        narrow = replace(chosen, variant=part)
        asked = {"DRAFT_VOCAB_SIZE": "32768", **levers.with_drafts(narrow, k)}
        settings = read_settings(levers.place(tmp_path / str(k), narrow, asked))
        plan = make_plan(settings, Path("/python"), Path("/socket"))
        usable, dropped = fit(plan.variant, plan.model, plan.target)
        assert usable.draft_vocab_size == size
        assert "DRAFT_VOCAB_SIZE" not in {one.lever for one in dropped}


# --- prompts ----------------------------------------------------------------------------------


def items() -> list[Item]:
    talks = [Item("chat/capital", f"q{n}", f"text {n}", f"prompt {n}") for n in range(50)]
    texts = [
        Item(group, f"d{n}", "".join(f"{group} {n} line {i}\n" for i in range(60)))
        for group in ("kjv", "wordnet")
        for n in range(10)
    ]
    return talks + texts


def test_prompts_are_chosen_once_each_and_never_held_out():
    found = prompts.chosen(items(), ["prompt 1", "prompt 2"], 40, 0)
    texts = [one.prompt for one in found]
    assert len(set(texts)) == len(texts) == 40
    assert not {"prompt 1", "prompt 2"} & set(texts)
    assert sum(one.source.startswith("chat/") for one in found) == 28
    assert {one.source for one in found} >= {"kjv", "wordnet"}
    assert found == prompts.chosen(items(), ["prompt 1", "prompt 2"], 40, 0)
    assert found != prompts.chosen(items(), ["prompt 1", "prompt 2"], 40, 1)


def test_prompts_come_back_as_they_were_written(tmp_path):
    found = prompts.chosen(items(), [], 10, 0)
    prompts.write(found, tmp_path / "p.jsonl")
    assert prompts.read(tmp_path / "p.jsonl") == found


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        ("", "no prompt in it"),
        ("{\n", "line 1: not JSON"),
        ("[]\n", "line 1: expected a JSON object, got list"),
        ('{"prompt": "a"}\n{"source": "x"}\n', "line 2: neither a prompt nor a text"),
    ],
)
def test_a_file_that_is_no_prompts_is_told(tmp_path, text, said_of_it):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(prompts.PromptError, match=said_of_it):
        prompts.read(path)


def test_a_limit_is_spread_over_all_sources():
    some = read_asks(HELD_OUT, 8, 20)
    assert len(some) == 20
    every = {ask.source.partition("/")[0] for ask in read_asks(HELD_OUT, 8)}
    assert len({ask.source.partition("/")[0] for ask in some}) >= len(every) - 1


# --- where texts part -------------------------------------------------------------------------


def test_the_first_difference_tells_what_was_given():
    found = parity.first_difference(3, said(1, 2, 3), said(1, 5, 3))
    assert found == parity.Difference(3, 1, (9, 1), 2, 5)
    assert parity.first_difference(0, said(1, 2), said(1, 2)) is None


def test_one_that_ends_sooner_is_a_difference():
    found = parity.first_difference(0, said(1, 2), said(1))
    assert (found.place, found.mine, found.other) == (1, 2, None)
    kept = parity.weighed(found, Ask("kjv", "", 1), None)
    assert not kept["near_tie"]
    assert parity.verdict([kept]) == parity.DIFFERENT


def test_a_tie_within_rounding_is_told_from_a_real_difference():
    found = parity.first_difference(0, said(1), said(2))
    near = parity.weighed(found, Ask("kjv", "", 1), {1: -0.7, 2: -0.825})
    far = parity.weighed(found, Ask("kjv", "", 1), {1: -0.1, 2: -3.0})
    assert near["gap"] == 0.125
    assert parity.verdict([]) == parity.IDENTICAL
    assert parity.verdict([near]) == parity.NEAR
    assert parity.verdict([near, far]) == parity.DIFFERENT


def test_float32_bears_no_tie():
    def one(dtype: str) -> bool:
        return parity.agreed({"x": {"dtype": dtype, "verdict": parity.NEAR, "found": []}})

    assert one("bfloat16")
    assert not one("float32")


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ((0, 0.125, 0.5), 2**-3),
        ((0, 0.25, 1.0), 2**-3),
        ((0, 0.25, 0.3125), 2**-4),
        ((0, 0.03125, 2.0), 2**-5),
        ((0, 0.123), 2**-8),
    ],
)
def test_the_last_place_of_logits_is_read_from_log_probabilities(gaps, expected):
    assert parity.unit(-3.17 - gap for gap in gaps) == expected


def test_small_logits_bear_smaller_ties():
    """0.24 nats are no tie where logits are given to a sixty-fourth."""
    found = parity.first_difference(0, said(1), said(2))
    both = {1: -0.7, 2: -0.7 - 15 / 64}
    told = parity.weighed(found, Ask("kjv", "", 1), both, [-0.7, -0.7 - 15 / 64])
    assert told["unit"] == 1 / 64
    assert not told["near_tie"]


def ties(prompts: int, dtype: str = "bfloat16") -> dict[str, object]:
    found = [{"prompt": n, "near_tie": True} for n in range(prompts)]
    return {"dtype": dtype, "prompts": 48, "found": found, "verdict": parity.verdict(found)}


def test_drafts_may_not_part_more_prompts_than_the_floor_explains():
    def told(drafts: int, floor: int) -> dict[str, object]:
        return {"bfloat16 alone": ties(drafts), "bfloat16 floor": ties(floor)}

    assert parity.agreed(told(3, 1))
    assert not parity.agreed(told(48, 1))
    assert parity.chance(1, 0, 48) == 0.5
    assert parity.words(told(48, 1)) == "drafts CHANGE what is said"
    assert parity.words(told(0, 2)) == "drafts change nothing"
    assert "bfloat16 alone 2 of 48, bfloat16 floor 1 of 48" in parity.words(told(2, 1))


def test_after_a_tie_the_rest_is_compared(monkeypatch):
    from scripts import eval_parity

    def one(tail: tuple[int, ...]) -> list[dict]:
        monkeypatch.setattr(eval_parity, "served_name", lambda running: "m")
        monkeypatch.setattr(eval_parity, "likeliest", lambda running, given: [])
        monkeypatch.setattr(
            eval_parity,
            "logprobs_after",
            lambda running, given, both: {both[0]: -0.7, both[1]: -0.7 - 0.125 * (len(given) ** 2)},
        )
        monkeypatch.setattr(
            eval_parity, "complete", lambda running, model, ask, prompt: said(7, 7, prompt=(9, 2))
        )
        mine, other = said(1, 5, 5), said(2, *tail)
        return list(eval_parity.followed(None, 0, mine, other, Ask("kjv", "", 3)))

    # One token given: one unit apart, a tie. Then what follows the other token is the same …
    assert [(f["place"], f["near_tie"]) for f in one((7, 7))] == [(0, True)]
    # … or not, and four units apart.
    assert [(f["place"], f["near_tie"]) for f in one((8, 7))] == [(0, True), (0, False)]


@pytest.mark.parametrize(
    "died",
    [
        "AssertionError: CPU GDN attention requires BF16.",
        """NotImplementedError: "cpu_gemm_wna16" not implemented for 'Float'""",
    ],
)
def test_an_engine_without_float32_is_told_and_left_out(died, monkeypatch):
    from scripts import eval_parity
    from scripts.served import NotServed

    def drafting(chosen, dtype, *rest):
        if dtype == "float32":
            raise NotServed(died)
        return {}, {"variant": "seq8-best"}

    monkeypatch.setattr(eval_parity, "passes_with_drafts", drafting)
    answers = [said(5, 6), said(7)]
    same = eval_parity.judged(None, "bfloat16", answers, answers, [Ask("kjv", "", 2)] * 2)
    monkeypatch.setattr(eval_parity, "compared", lambda *rest: {"bfloat16 alone": same})
    words = ["seq8-best", "--soak-k", "0"]
    parsed = eval_parity.parser().parse_args(words)
    record = eval_parity.measured(parsed, None, [], ["typed"])
    assert record.command == ["typed"]
    assert list(record.summary["left_out"]) == ["float32"]
    assert record.summary["agreed"]
    assert "float32 left out" in eval_parity.report(record.summary)
    (kept,) = record.samples
    assert kept["mine_sha256"] == kept["other_sha256"] == parity.digests(answers)
    assert len(set(kept["mine_sha256"].split())) == 2
    assert list(differences(record)) == []
    parsed = eval_parity.parser().parse_args([*words, "--dtypes", "float32"])
    with pytest.raises(NotServed):
        eval_parity.measured(parsed, None, [], [])


def test_mixed_lengths_and_stops_are_the_same_each_time():
    asks = read_asks(HELD_OUT, 64, 8)
    some = parity.mixed(asks)
    assert [ask.max_tokens for ask in some] == [1, 16, 48, 96] * 2
    assert {bool(ask.stop) for ask in some} == {True, False}
    assert some == parity.mixed(asks)


def test_commands_tell_of_bad_words_in_one_line(capsys, tmp_path):
    from scripts import measure_acceptance, sweep_k

    empty = tmp_path / "none.jsonl"
    empty.write_text("")
    assert sweep_k.main(["seq8-best", "--prompts", str(empty)]) == 2
    assert measure_acceptance.main(["seq8-best", "--prompts", str(empty)]) == 2
    assert capsys.readouterr().err.count("no prompt in it") == 2
    assert measure_acceptance.main(["seq8", "--model", "tiny", "--target", "cpu"]) == 2
    assert "drafts nothing" in capsys.readouterr().err


def test_a_summary_pairs_the_heads():
    from scripts.measure_acceptance import report, summary

    rows = [
        {"head": head, "group": "kjv", "tokens_sha256": "a", **sample(10, at)}
        for head, at in (("own", 4), ("own", 5), ("new", 6), ("new", 7))
    ]
    told = summary(rows)
    assert told["new_less_own"]["mean_acceptance_length"] == pytest.approx(0.2)
    assert told["same_text"] == 2
    assert "new less own: +0.200" in report(told)
    assert json.dumps(told)


def test_heads_that_drafted_nothing_are_told():
    from scripts.measure_acceptance import report, summary

    rows = [
        {"head": head, "group": "kjv", "tokens_sha256": "a", **sample(0)} for head in ("own", "new")
    ]
    told = report(summary(rows))
    assert told.count("drafted nothing") == 2
    assert "same text: 1 of 1 prompts" in told
