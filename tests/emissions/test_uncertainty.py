from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions.uncertainty import UNSEEN_SHARE, Interval, combine, unseen


def test_independent_half_widths_combine_in_quadrature_low_and_high_apart() -> None:
    whole = combine([Interval(100, 97, 104), Interval(50, 46, 53)])
    assert whole == pytest.approx((150, 145, 155))


def test_what_is_unseen_comes_on_top_and_only_there() -> None:
    assert combine([Interval(100, 97, 104)], 58.0) == pytest.approx((100, 97, 162))


def test_unseen_is_the_share_of_the_wall() -> None:
    assert unseen(63.0) / (63.0 + unseen(63.0)) == pytest.approx(UNSEEN_SHARE)


intervals = (
    st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
    .map(sorted)
    .map(lambda bounds: Interval(bounds[1], bounds[0], bounds[2]))
)


@given(st.lists(intervals, min_size=1, max_size=5), st.floats(0, 1e6))
def test_the_whole_is_no_surer_than_its_least_sure_part_and_no_less_sure_than_their_sum(
    parts: list[Interval], unseen_energy: float
) -> None:
    whole = combine(parts, unseen_energy)
    assert whole.low <= whole.energy <= whole.high
    widest = max(part.energy - part.low for part in parts)
    tolerance = 1e-9 * max(whole.high, 1)
    assert widest - tolerance <= whole.energy - whole.low <= sum(p.energy - p.low for p in parts) + tolerance
    assert whole.high - whole.energy <= sum(p.high - p.energy for p in parts) + unseen_energy + tolerance
