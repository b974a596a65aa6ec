"""Every joule of a node has one owner, whatever jobs share it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions.attribution import Claim, Split, split_cpu, split_gpu, split_reserved

joules = st.floats(0, 1e6)
claims = st.lists(st.builds(Claim, cpu_s=st.floats(0, 1e3), cpus=st.floats(0.1, 128)), max_size=9)
usable = st.floats(0.01, 1)


def assert_conserved(split: Split, energy_j: float) -> None:
    assert sum(split.shares_j) + split.metering_j + split.rest_j == pytest.approx(energy_j, rel=1e-12, abs=1e-9)
    assert min([*split.shares_j, split.metering_j]) >= 0
    assert split.rest_j >= -1e-9 * max(energy_j, 1)


@given(joules, st.none() | joules, claims, st.floats(0, 1e4), st.floats(0, 10), usable)
def test_shares_metering_and_rest_are_the_cpus_energy(
    energy_j: float, idle_j: float | None, claims: list[Claim], busy_s: float, metering_s: float, usable: float
) -> None:
    split = split_cpu(energy_j, idle_j, claims, busy_s=busy_s, metering_s=metering_s, capacity_s=1e4, usable=usable)
    assert_conserved(split, energy_j)
    if idle_j is None:
        assert split.idle_j is None
    else:
        assert split.idle_j is not None
        assert all(idle <= share * (1 + 1e-12) for idle, share in zip(split.idle_j, split.shares_j, strict=True))


@given(joules, st.none() | joules, claims, usable)
def test_shares_and_rest_are_the_memorys_energy(
    energy_j: float, idle_j: float | None, claims: list[Claim], usable: float
) -> None:
    assert_conserved(split_reserved(energy_j, idle_j, claims, usable=usable), energy_j)


@given(joules, st.none() | joules, st.lists(st.booleans(), min_size=1, max_size=9))
def test_shares_and_rest_are_the_gpus_energy(energy_j: float, idle_j: float | None, holds: list[bool]) -> None:
    split = split_gpu(energy_j, idle_j, holds)
    assert_conserved(split, energy_j)
    assert all(share == 0 for share, hold in zip(split.shares_j, holds, strict=True) if not hold)


def shares(*claims: Claim, energy_j: float = 100.0, idle_j: float | None, busy_s: float = 10.0, **more: float) -> Split:
    arguments = {"metering_s": 0.0, "capacity_s": 40.0, "usable": 1.0} | more
    return split_cpu(energy_j, idle_j, claims, busy_s=busy_s, **arguments)


def test_above_idle_goes_by_cpu_time_and_others_keep_theirs() -> None:
    split = shares(Claim(6, 2), Claim(2, 2), idle_j=20.0)  # two of ten busy seconds are others'
    assert split.shares_j == pytest.approx((10 + 48, 10 + 16))
    assert split.idle_j == pytest.approx((10, 10))
    assert split.rest_j == pytest.approx(16)


def test_idling_goes_by_reserved_cpus() -> None:
    assert shares(Claim(0, 3), Claim(0, 1), idle_j=100.0).shares_j == pytest.approx((75, 25))


def test_a_sleeping_job_that_has_the_node_alone_owns_its_idling() -> None:
    assert shares(Claim(0, 4), idle_j=20.0, busy_s=0.0).shares_j == (20.0,)
    assert shares(Claim(0, 4), idle_j=None).shares_j == (100.0,)


def test_where_idling_is_unknown_the_jobs_divide_the_node_by_cpu_time() -> None:
    split = shares(Claim(3, 1), Claim(1, 1), idle_j=None)
    assert split.shares_j == pytest.approx((75, 25)) and split.idle_j is None and split.rest_j == pytest.approx(0)


def test_what_a_scheduler_gave_to_others_is_the_rest() -> None:
    split = shares(Claim(0, 1), idle_j=100.0, usable=0.25)
    assert split.shares_j == (25.0,) and split.rest_j == pytest.approx(75)
    assert shares(Claim(1, 1), idle_j=None, usable=0.25).rest_j == pytest.approx(75)


def test_the_meterings_cpu_time_is_its_own() -> None:
    split = shares(Claim(8, 4), idle_j=20.0, metering_s=2.0)
    assert split.metering_j == pytest.approx(16) and split.shares_j == pytest.approx((84,))
    unknown = shares(Claim(8, 4), idle_j=None, metering_s=2.0)
    assert unknown.metering_j == pytest.approx(5) and unknown.shares_j == pytest.approx((95,))  # 2 of 40 CPU seconds


def test_clocks_that_disagree_share_no_more_than_there_is() -> None:
    split = shares(Claim(12, 4), idle_j=20.0, busy_s=10.0)  # ticks of 10 ms: a job may show more than the machine
    assert split.shares_j == pytest.approx((100,)) and split.rest_j == pytest.approx(0)


def test_several_holders_of_a_gpu_have_equal_parts() -> None:
    assert split_gpu(90.0, 30.0, [True, False, True]) == Split((45.0, 0.0, 45.0), (15.0, 0.0, 15.0), 0.0, 0.0)


def test_without_jobs_everything_is_the_rest() -> None:
    assert shares(idle_j=20.0).rest_j == 100
    assert split_reserved(7.0, 7.0, [], usable=1.0).rest_j == 7
    assert split_gpu(7.0, None, [False, False]).rest_j == 7
