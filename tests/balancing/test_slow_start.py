"""How often a recovering upstream is skipped: with chances that are given, to the single turn."""

from __future__ import annotations

import pytest

from atlas_pkg.balancing.slow_start import Ramp
from tests.balancing.samples import Clock, build_upstream

# The middle of each hundredth, so that a share is a count.
CHANCES = [(number + 0.5) / 100 for number in range(100)]


@pytest.mark.parametrize(
    ("age", "turns"), [(0.0, 5), (1.5, 5), (3.0, 10), (13.5, 45), (15.0, 50), (29.7, 99)]
)
def test_it_gets_of_its_turns_what_has_passed_of_the_time(age: float, turns: int) -> None:
    clock, chances = Clock(), iter(CHANCES)
    ramp, upstream = Ramp(30.0, clock, lambda: next(chances)), build_upstream("a")
    ramp.begin(upstream, clock.now)
    clock.now += age

    skipped = [ramp.skips(upstream, 1.0) for _ in CHANCES]

    assert skipped.count(False) == turns
    assert upstream.recovered_at == 1000.0


def test_where_it_comes_up_every_time_it_gets_its_part_of_that() -> None:
    clock, chances = Clock(), iter(CHANCES)
    ramp, upstream = Ramp(30.0, clock, lambda: next(chances)), build_upstream("a")
    ramp.begin(upstream, clock.now)
    clock.now += 15.0

    assert [ramp.skips(upstream, 0.5) for _ in CHANCES].count(False) == 25


def test_when_the_time_is_over_it_is_never_skipped_again() -> None:
    clock = Clock()
    ramp, upstream = Ramp(30.0, clock, lambda: 0.999), build_upstream("a")
    ramp.begin(upstream, clock.now)
    clock.now += 30.0

    assert not ramp.skips(upstream, 1.0)
    assert upstream.recovered_at is None


def test_without_a_duration_it_is_never_skipped() -> None:
    clock = Clock()
    ramp, upstream = Ramp(0.0, clock, lambda: 0.999), build_upstream("a")
    ramp.begin(upstream, clock.now)

    assert not ramp.skips(upstream, 1.0)
