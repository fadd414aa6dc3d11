import sys

import pytest

from scripts import starts
from scripts.starts import Run, busy_share, running, started


def test_lines_are_read_with_their_time_and_the_process_is_gone_at_the_end() -> None:
    said = "init engine (profile, create kv cache, warmup model) took 6.53 s"
    code = f"import time; print('engine | {said}', flush=True); time.sleep(600)"
    with running([sys.executable, "-c", code], {}) as run:
        while not run.lines:
            pass
        assert run.process.poll() is None
    assert run.process.poll() is not None
    assert started(run)["engine_init_seconds"] == 6.53
    assert list(started(run)["phases"]) == ["kv cache"]


def test_a_machine_that_is_never_idle_is_not_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "busy_share", lambda _: 0.5)
    monkeypatch.setattr(starts, "DEADLINE_SECONDS", -1)
    with pytest.raises(starts.NotMeasured, match="50% of its cores"):
        starts.wait_until_idle()


def test_the_busy_share_is_one() -> None:
    assert 0 <= busy_share(0.05) <= 1


def test_a_run_finds_the_last_of_what_was_said() -> None:
    run = Run(None, 0.0, [(1.0, "gateway on http://h:1"), (2.0, "gateway on http://h:2")])
    found = run.find(starts.LISTENING)
    assert found is not None
    assert found[1] == "2"
