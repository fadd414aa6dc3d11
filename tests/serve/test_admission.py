"""Turns: bounded, fair between keys, lost by nobody who leaves."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.admission import Admission, Bounds

ROOM = Bounds(at_work=2, waiting=3, held_bytes=100)


def opened(bounds: Bounds = ROOM) -> Admission:
    admission = Admission(bounds)
    admission.unshut()
    return admission


async def queued(admission: Admission, *keys: str) -> list["asyncio.Task[None]"]:
    tasks = [asyncio.create_task(admission.wait(key)) for key in keys]
    await asyncio.sleep(0)
    return tasks


async def test_places_are_free_until_as_many_are_at_work_as_may_be() -> None:
    admission = opened()
    admission.take()
    assert admission.free
    admission.take()
    assert not admission.free
    assert not admission.full


async def test_who_leaves_gives_the_place_to_who_waits_first() -> None:
    admission = opened()
    admission.take()
    admission.take()
    first, second = await queued(admission, "a", "a")
    admission.leave(0.0)
    await asyncio.sleep(0)
    assert (first.done(), second.done(), admission.at_work) == (True, False, 2)
    admission.leave(0.0)
    await second
    assert admission.waiting == 0


async def test_a_key_with_many_waiting_delays_another_by_one_of_its_own() -> None:
    admission = opened(Bounds(at_work=1, waiting=100, held_bytes=0))
    admission.take()
    order: list[str] = []

    async def visit(key: str) -> None:
        await admission.wait(key)
        order.append(key)
        admission.leave(0.0)

    tasks = [asyncio.create_task(visit("many")) for _ in range(6)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(visit(key)) for key in ("few", "few", "one")]
    await asyncio.sleep(0)
    admission.leave(0.0)
    await asyncio.gather(*tasks)
    assert order[:5] == ["many", "few", "one", "many", "few"]


async def test_nobody_has_a_turn_while_the_gate_is_shut() -> None:
    admission = Admission(ROOM)
    assert not admission.free
    (waiting,) = await queued(admission, "a")
    admission.take()
    admission.leave(0.0)
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.unshut()
    await waiting
    assert admission.at_work == 1


async def test_the_queue_is_full_when_as_many_wait_as_may() -> None:
    admission = Admission(ROOM)
    tasks = await queued(admission, "a", "b", "c")
    assert admission.full
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.waiting, admission.at_work, admission.full) == (0, 0, False)


async def test_a_turn_that_comes_as_its_owner_leaves_goes_to_the_next() -> None:
    admission = opened(Bounds(at_work=1, waiting=9, held_bytes=0))
    admission.take()
    first, second = await queued(admission, "a", "b")
    admission.leave(0.0)
    # Its turn has come, and it has not run since.
    first.cancel()
    await second
    assert (admission.at_work, admission.waiting) == (1, 0)


async def test_one_that_left_just_now_is_passed_over() -> None:
    admission = opened(Bounds(at_work=1, waiting=9, held_bytes=0))
    admission.take()
    first, second = await queued(admission, "a", "b")
    first.cancel()
    admission.leave(0.0)
    await second
    assert first.cancelled()
    assert (admission.at_work, admission.waiting) == (1, 0)


def test_bodies_together_are_bounded_and_one_alone_is_not() -> None:
    admission = opened()
    assert admission.hold(150, 0)
    assert admission.hold(50, 150)
    assert not admission.hold(1, 0)
    admission.held_bytes -= 200
    assert admission.hold(60, 0)
    assert not admission.hold(41, 0)


def test_when_to_come_again_follows_the_pace_at_which_places_become_free() -> None:
    admission = opened(Bounds(at_work=99, waiting=0, held_bytes=0))
    for second in range(20):
        admission.take()
        admission.leave(4.0 * second)
    assert admission.retry_after() == 4
    assert opened().retry_after() == 1


STEPS = st.lists(
    st.sampled_from(["come a", "come b", "come c", "leave", "cancel", "shut", "unshut", "run"]),
    max_size=60,
)


@given(STEPS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_place_is_lost_or_given_twice_whatever_happens(steps: list[str]) -> None:
    asyncio.run(walk(steps))


async def walk(steps: list[str]) -> None:
    admission = opened(Bounds(at_work=2, waiting=4, held_bytes=0))
    waiting: list[asyncio.Task[None]] = []
    had = Counter[str]()

    def at_work() -> int:
        return had["taken"] + sum(t.done() and not t.cancelled() for t in waiting) - had["left"]

    for step in steps:
        if step.startswith("come") and admission.free:
            admission.take()
            had["taken"] += 1
        elif step.startswith("come") and not admission.full:
            waiting += await queued(admission, step)
        elif step == "leave" and at_work():
            admission.leave(0.0)
            had["left"] += 1
        elif step == "cancel" and waiting:
            waiting[-1].cancel()
        elif step in ("shut", "unshut"):
            getattr(admission, step)()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 <= admission.at_work <= 2
        assert admission.at_work == at_work()
        assert admission.waiting == sum(not t.done() for t in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert admission.waiting == 0
    assert not admission._queues
