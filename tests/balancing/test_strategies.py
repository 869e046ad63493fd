"""The strategies, by the order in which they choose."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.balancing.strategies import (
    START,
    STRATEGIES,
    Member,
    Random,
    RoundRobin,
    Strategy,
    WeightedRoundRobin,
)
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config import UpstreamConfig


def member(name: str, weight: int = 1) -> Member:
    return Member(Upstream(UpstreamConfig(name, "192.0.2.1", 80)), weight)


def members(**weights: int) -> list[Member]:
    return [member(name, weight) for name, weight in weights.items()]


def prepared(strategy: Strategy, listed: list[Member]) -> Strategy:
    strategy.prepare(listed)
    return strategy


def take(strategy: Strategy, times: int) -> str:
    return "".join(strategy.choose().name for _ in range(times))


def test_round_robin_takes_turns_in_the_order_of_the_file() -> None:
    strategy = prepared(RoundRobin(), members(a=1, b=5, c=2))

    assert take(strategy, 7) == "abcabca"


def test_round_robin_goes_on_after_a_reload() -> None:
    first = prepared(RoundRobin(), members(a=1, b=1, c=1))
    take(first, 4)

    second = prepared(RoundRobin(first.position), members(a=1, b=1, c=1))

    assert take(second, 3) == "bca"


def test_round_robin_copes_with_fewer_upstreams_after_a_reload() -> None:
    first = prepared(RoundRobin(), members(a=1, b=1, c=1, d=1))
    take(first, 4)

    second = prepared(RoundRobin(first.position), members(x=1, y=1))

    assert Counter(take(second, 4)) == {"x": 2, "y": 2}


@pytest.mark.parametrize(
    ("weights", "cycle"),
    [
        ({"a": 3, "b": 2, "c": 1}, "abacba"),
        ({"a": 1, "b": 1, "c": 1}, "abc"),
        ({"a": 5, "b": 1, "c": 1}, "aaabcaa"),
        ({"a": 4, "b": 2}, "abaaba"),
        ({"a": 7}, "a"),
    ],
)
def test_weighted_round_robin_interleaves(weights: dict[str, int], cycle: str) -> None:
    strategy = prepared(WeightedRoundRobin(), members(**weights))

    assert Counter(cycle) == weights or len(weights) == 1
    assert take(strategy, 3 * len(cycle)) == cycle * 3


Weights = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


@given(Weights)
def test_every_cycle_is_exact(weights: list[int]) -> None:
    listed = [member(str(number), weight) for number, weight in enumerate(weights)]
    strategy = prepared(WeightedRoundRobin(), listed)

    for _ in range(3):
        shares = Counter(strategy.choose().name for _ in range(sum(weights)))

        assert shares == {entry.upstream.name: entry.weight for entry in listed}


@given(Weights, st.data())
def test_a_reload_in_the_middle_changes_nothing(weights: list[int], data: st.DataObject) -> None:
    listed = [member(str(number), weight) for number, weight in enumerate(weights)]
    undisturbed = prepared(WeightedRoundRobin(), listed)
    strategy: Strategy = prepared(WeightedRoundRobin(), listed)

    for _ in range(data.draw(st.integers(1, 5))):
        for _ in range(data.draw(st.integers(0, 40))):
            assert strategy.choose() is undisturbed.choose()
        strategy = prepared(WeightedRoundRobin(strategy.position), listed)

    assert [strategy.choose() for _ in range(50)] == [undisturbed.choose() for _ in range(50)]


@given(Weights, st.integers(0, 2000))
def test_shares_are_never_far_from_even(weights: list[int], times: int) -> None:
    listed = [member(str(number), weight) for number, weight in enumerate(weights)]
    strategy = prepared(WeightedRoundRobin(), listed)

    shares = Counter(strategy.choose().name for _ in range(times))

    for entry in listed:
        due = times * entry.weight / sum(weights)
        # Spread evenly: never a burst of one upstream. Each may be one turn ahead of or behind
        # its share for itself, and what the others are ahead or behind shifts the whole.
        assert abs(shares[entry.upstream.name] - due) <= 1 + len(weights) * entry.weight / sum(
            weights
        )


def test_a_reload_after_every_request_still_takes_turns() -> None:
    strategy: Strategy = prepared(WeightedRoundRobin(), members(a=1, b=1, c=1))
    chosen = ""

    for _ in range(9):
        chosen += take(strategy, 1)
        strategy = prepared(WeightedRoundRobin(strategy.position), members(a=1, b=1, c=1))

    assert chosen == "abcabcabc"


def test_new_weights_hold_from_the_reload_on() -> None:
    first = prepared(WeightedRoundRobin(), members(a=3, b=2, c=1))
    take(first, 6)

    second = prepared(WeightedRoundRobin(first.position), members(a=1, b=2, c=4))

    assert Counter(take(second, 70)) == {"a": 10, "b": 20, "c": 40}


def test_an_upstream_that_joins_gets_its_share_and_no_more() -> None:
    first = prepared(WeightedRoundRobin(), members(a=1, b=1))
    take(first, 1000)

    second = prepared(WeightedRoundRobin(first.position), members(a=1, b=1, c=1))

    assert Counter(take(second, 30)) == {"a": 10, "b": 10, "c": 10}


def test_after_millions_of_turns_the_shares_are_still_exact() -> None:
    listed = members(a=3, b=2, c=1)
    strategy = prepared(WeightedRoundRobin(START._replace(place=123_456_789.0)), listed)

    take(strategy, 6)

    assert Counter(take(strategy, 6000)) == {"a": 3000, "b": 2000, "c": 1000}


def test_random_is_even() -> None:
    strategy = prepared(Random(generator=random.Random(1)), members(a=1, b=9, c=1))

    shares = Counter(take(strategy, 3000))

    assert all(900 < shares[name] < 1100 for name in "abc")


def test_random_is_not_a_pattern() -> None:
    chosen = take(prepared(Random(generator=random.Random(2)), members(a=1, b=1)), 400)

    repeats = sum(one == next_ for one, next_ in pairwise(chosen))

    assert 150 < repeats < 250


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_takes_over_any_position(name: str) -> None:
    for other in STRATEGIES.values():
        before = prepared(other(START), members(a=3, b=2, c=1))
        take(before, 5)

        after = prepared(STRATEGIES[name](before.position), members(x=1, y=1))

        assert set(take(after, 40)) == {"x", "y"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_thousand_upstreams_are_chosen_among(name: str) -> None:
    listed = [member(str(number), 1 + number % 1000) for number in range(1000)]
    strategy = prepared(STRATEGIES[name](START), listed)

    assert len({strategy.choose() for _ in range(20_000)}) > 900
