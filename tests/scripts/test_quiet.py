"""What counts as ours when others' share of the machine is taken."""

import os
import subprocess
import sys

import pytest

from scripts import quiet
from scripts.quiet import TICKS, own_ticks, timed, undisturbed
from scripts.starts import NotMeasured

BURN = "import time\nwhile time.process_time() < 0.3: pass"


def test_a_childs_time_is_ours_while_it_lives_and_when_it_is_buried() -> None:
    before = own_ticks(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", BURN + "\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout
        child.stdout.readline()
        assert own_ticks(os.getpid()) - before >= 0.25 * TICKS
        child.communicate(b"\n")
    assert own_ticks(os.getpid()) - before >= 0.25 * TICKS


def test_a_childs_time_is_not_others_time_while_it_lives(monkeypatch) -> None:
    """A gateway and its engine go on living: what they took is not a neighbour's."""
    ticks = iter([[0] * 8, [200, 0, 0, 100, 0, 0, 0, 0]])
    own = iter([0, 190])
    monkeypatch.setattr(quiet, "cpu_times", lambda: next(ticks))
    monkeypatch.setattr(quiet, "own_ticks", lambda pid: next(own))
    with timed() as sample:
        pass
    assert sample.others == round(10 / 300, 4)


def test_a_strangers_time_is_others(monkeypatch) -> None:
    ticks = iter([[0] * 8, [200, 0, 0, 100, 0, 0, 0, 0]])
    monkeypatch.setattr(quiet, "cpu_times", lambda: next(ticks))
    monkeypatch.setattr(quiet, "own_ticks", lambda pid: 0)
    with timed() as sample:
        pass
    assert sample.others == round(200 / 300, 4)


def taker(*others: float):
    return lambda attempt: [{"try": attempt, "others": others[attempt - 1]}, {"others": 0.0}]


def test_samples_beside_others_are_taken_again_and_kept_apart(monkeypatch) -> None:
    monkeypatch.setattr(quiet.time, "sleep", lambda _: None)
    taken, rejected = undisturbed(taker(0.5, 0.2, 0.01), busy_ok=False)
    assert taken[0]["try"] == 3
    assert [one["others"] for one in rejected] == [0.5, 0.0, 0.2, 0.0]
    assert undisturbed(taker(0.5), busy_ok=True)[0][0]["try"] == 1
    with pytest.raises(NotMeasured, match="20%"):
        undisturbed(taker(0.5, 0.2, 0.4), busy_ok=False, tries=3)


def test_a_process_that_is_gone_has_no_time() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert own_ticks(child.pid) == 0
