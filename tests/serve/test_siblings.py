"""Which names a GPU may go by: the listed pairs, and every other one refused with its reason."""

from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.siblings import (
    FAMILIES,
    Allowed,
    Device,
    Refused,
    last_power_of_2,
    listed,
    may_present,
    safe_on,
)

L4 = Device("NVIDIA L4", "8.9", 58)
RTX_3060 = Device("NVIDIA GeForce RTX 3060", "8.6", 28)
RTX_3090 = Device("NVIDIA GeForce RTX 3090", "8.6", 82)
STRANGERS = (L4, RTX_3060, RTX_3090)
LISTED = [gpu for family in FAMILIES for gpu in family]
A40, A10G = LISTED[0], LISTED[2]

names = st.sampled_from([gpu.name for gpu in (*LISTED, *STRANGERS)])
devices = st.builds(Device, names, st.sampled_from(["8.6", "8.9", "9.0", ""]), st.integers(0, 200))


def name(gpu: Device) -> str:
    return gpu.name


@pytest.mark.parametrize(
    ("true", "presented"),
    [pair for family in FAMILIES for pair in permutations(family, 2)],
    ids=name,
)
def test_members_of_one_family_may_go_by_each_others_name(true, presented):
    assert may_present(true, presented) == Allowed()


@pytest.mark.parametrize(("true", "presented"), list(product(STRANGERS, LISTED)), ids=name)
def test_a_gpu_that_is_not_listed_is_refused_either_way(true, presented):
    assert isinstance(may_present(true, presented), Refused)
    assert isinstance(may_present(presented, true), Refused)


def test_another_capability_is_named_in_the_refusal():
    refused = may_present(L4, A40)
    assert "NVIDIA L4 has compute capability 8.9, NVIDIA A40 8.6" in refused.reason


def test_a_part_too_small_for_the_grid_barrier_is_told_so():
    reason = may_present(RTX_3060, A40).reason
    assert "NVIDIA GeForce RTX 3060 has 28 multiprocessors" in reason
    assert "made for the 84 of NVIDIA A40 can wait for 64 blocks" in reason
    assert "capability" not in reason


def test_a_part_that_would_do_but_is_not_listed_is_told_just_that():
    assert may_present(RTX_3090, A40).reason == (
        "NVIDIA GeForce RTX 3090 and NVIDIA A40 are not a pair of the allow-list "
        "in serve/siblings.py"
    )


def test_a_slice_of_a_listed_part_is_judged_by_what_it_has():
    """The list's count is for names alone; a machine says how many it really has."""
    assert "63 multiprocessors" in may_present(Device(A10G.name, "8.6", 63), A40).reason
    assert may_present(Device(A10G.name, "8.6", 64), A40) == Allowed()


def test_an_unknown_count_is_refused():
    assert "A10G has is not known" in may_present(Device(A10G.name, "8.6", 0), A40).reason


def test_members_of_two_families_are_refused():
    reason = may_present(LISTED[0], LISTED[-1]).reason
    assert "8.6" in reason
    assert "9.0" in reason
    assert "not a pair" in reason


@given(devices)
def test_every_gpu_may_go_by_its_own_name(gpu):
    assert may_present(gpu, gpu) == Allowed()


@given(devices, devices)
def test_who_presents_whom_does_not_matter(one, another):
    assert type(may_present(one, another)) is type(may_present(another, one))


@given(devices, devices)
def test_what_is_allowed_is_listed_alike_and_safe_both_ways(one, another):
    if one.name == another.name or isinstance(may_present(one, another), Refused):
        return
    assert {one.name, another.name} <= {gpu.name for gpu in LISTED}
    assert one.capability == another.capability
    assert safe_on(one.multiprocessors, another.multiprocessors)
    assert safe_on(another.multiprocessors, one.multiprocessors)


@given(devices, devices)
def test_a_refusal_always_says_why(one, another):
    answer = may_present(one, another)
    assert isinstance(answer, Allowed) or answer.reason


@given(st.integers(1, 10_000))
def test_the_last_power_of_two_is_one_and_the_next_is_too_large(count):
    power = last_power_of_2(count)
    assert power.bit_count() == 1
    assert power <= count < 2 * power


@given(st.integers(0, 300), st.integers(0, 300))
def test_more_multiprocessors_never_make_a_kernel_unsafe(baked, serving):
    assert not safe_on(baked, serving) or safe_on(baked, serving + 1)


def test_no_name_is_listed_twice_and_each_is_found():
    assert len({gpu.name for gpu in LISTED}) == len(LISTED)
    assert all(listed(gpu.name) == gpu for gpu in LISTED)
    assert listed("NVIDIA L4") is None


def test_every_family_is_of_one_capability():
    assert all(len({gpu.capability for gpu in family}) == 1 for family in FAMILIES)
