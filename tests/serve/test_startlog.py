import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.startlog import PHASES, StartLog, causes
from tests import fake_engine

W = "(Worker pid=6178) INFO 11-21 04:07:46 "


def observed(*lines: str) -> StartLog:
    log = StartLog(0)
    for second, line in enumerate(lines, start=1):
        log.observe(line, second)
    return log


def test_each_phase_gets_the_time_since_the_last_one_ended() -> None:
    log = observed(
        W + "[cpu_model_runner.py:68] Starting to load model /dev/tiny-random...",
        W + "[weight_utils.py:1108] Filesystem type for checkpoints: EXT4.",
        W + "[base_loader.py:82] Initializing model took 0.258868 seconds",
        W + "[default_loader.py:501] Loading weights took 0.09 seconds",
        W + "[monitor.py:91] [backbone] Initial profiling/warmup run took 0.14 s",
        "(EngineCore pid=1) INFO 11-21 04:07:55 [core.py:402] init engine (profile) took 6.53 s",
    )
    expected = {"worker": 1, "model init": 2, "weights": 1, "warm-up": 1, "kv cache": 1}
    assert log.seconds() == expected
    assert list(log.seconds()) == [phase for phase in PHASES if phase in expected]


def test_a_drafter_adds_to_the_phases_of_the_model() -> None:
    took = W + "[default_loader.py:501] Loading weights took 0.09 seconds"
    assert observed(took, W + "[x.py:1] Loading drafter model...", took).seconds() == {"weights": 3}


def test_the_current_phase_is_the_one_after_the_last_that_ended() -> None:
    log = StartLog(0)
    assert log.current == "interpreter"
    log.end("interpreter", 1)
    assert log.current == "imports"
    log.end("first token", 2)
    assert log.current == "first token"


def test_graphs_are_told_apart_by_where_they_came_from() -> None:
    log = observed(
        W + "[decorators.py:319] [backbone] Directly load AOT compilation from path /c/a/model",
        W + "[decorators.py:319] Directly load AOT compilation from path /c/b/model",
        W + "[decorators.py:700] [eagle_head] saved AOT compiled function to /c/d/model",
        W + "[decorators.py:99] Compiling model again due to a load failure from /c/e, reason: x y",
    )
    assert (log.loaded, log.compiled) == (["/c/a/model", "/c/b/model"], ["/c/d/model"])
    assert log.refused == ["x y"]


def test_patches_are_told_once_and_those_that_were_not_applied_are_not() -> None:
    log = observed(
        "preheat: patch conv_state applied: with drafts, the CPU backend …",
        W + "[patches.py:240] preheat: patch conv_state applied: with drafts, the CPU backend …",
        W + "[patches.py:240] preheat: patch decode_kernel applied: without drafts, …",
        W + "[patches.py:237] preheat: patch kernel_scan not applied, tried with vllm 1: x applied",
    )
    assert log.patches == {"conv_state", "decode_kernel"}


def test_the_fake_engine_speaks_the_wording_that_is_read_here() -> None:
    log = observed(*fake_engine.START)
    assert set(log.seconds()) == set(PHASES) - {"interpreter", "graph capture", "first token"}


@given(st.lists(st.text(max_size=60), max_size=20))
def test_any_lines_leave_the_sum_of_phases_within_the_time_that_passed(lines: list[str]) -> None:
    log = observed(*lines)
    assert sum(log.seconds().values()) <= len(lines)
    assert log.current in PHASES
    assert len(causes(lines)) <= 6


E = "(EngineCore pid=12) ERROR 11-21 03:55:30 [core.py:1] "


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (fake_engine.TRACEBACK, ["ValueError: No available memory for the cache blocks."]),
        (
            [E + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"],
            ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"],
        ),
        (
            ["usage: api_server.py [-h]", "api_server.py: error: unrecognized arguments: --bad"],
            ["api_server.py: error: unrecognized arguments: --bad"],
        ),
        (
            [
                "(APIServer pid=9) pydantic_core.ValidationError: 1 validation error for Config",
                "(APIServer pid=9)   Value error, max_num_seqs is too small [type=value_error]",
            ],
            [
                "pydantic_core.ValidationError: 1 validation error for Config",
                "  Value error, max_num_seqs is too small [type=value_error]",
            ],
        ),
        # Only the death of another is told: better than nothing.
        (
            ["RuntimeError: Engine core initialization failed. See root cause above."],
            ["RuntimeError: Engine core initialization failed. See root cause above."],
        ),
        # No exception at all: the last words, less what is harmless.
        (
            [
                "(Worker pid=1) WARNING 11-21 04:07:46 [a.py:1] RuntimeError: this is a warning",
                "(Worker pid=1) INFO 11-21 04:07:46 [a.py:1] fine",
                "Segmentation fault (core dumped)",
            ],
            ["Segmentation fault (core dumped)"],
        ),
        # What an interpreter says of finalizers at exit is noise after the fact.
        (
            [
                "ValueError: the cause",
                "Exception ignored in: <function Handler.__del__ at 0x7f>",
                "Traceback (most recent call last):",
                '  File "x.py", line 1, in __del__',
                "AssertionError: not the cause",
            ],
            ["ValueError: the cause"],
        ),
        ([], []),
    ],
)
def test_the_cause_is_found_in_what_the_engine_said(lines: list[str], expected: list[str]) -> None:
    assert causes(lines) == expected


def test_a_cause_that_is_repeated_by_every_worker_is_told_once_and_first_comes_first() -> None:
    lines = [f"(Worker pid={pid}) ValueError: same" for pid in range(9)] + ["KeyError: later"]
    assert causes(lines) == ["ValueError: same", "KeyError: later"]
    assert len(causes([f"ValueError: {number}" for number in range(99)])) == 6


def test_what_the_loader_says_of_its_phases_is_kept() -> None:
    log = StartLog(0.0)
    said = 'INFO 11-21 [weights.py:1] preheat: weights loaded: {"seconds": {"decode": 0.5}}'
    log.observe(f"(EngineCore pid=12) {said}", 1.0)
    log.observe("preheat: weights loaded: {no json}", 2.0)
    assert log.weights == [{"seconds": {"decode": 0.5}}]
