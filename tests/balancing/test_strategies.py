"""The strategies, by the order in which they choose."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas_pkg.balancing.strategies import STRATEGIES, Strategy
from atlas_pkg.balancing.strategies.least_connections import LeastConnections
from atlas_pkg.balancing.strategies.randomized import PowerOfTwo, Random
from atlas_pkg.balancing.strategies.round_robin import RoundRobin, WeightedRoundRobin
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.loader import parse_config
from atlas_pkg.errors import ConfigError
from tests.balancing.samples import build_upstream, build_upstreams, configs_of

ALL = sorted(STRATEGIES)

# Those that give everybody a share, however little there is to do.
SHARING = [
    *("round_robin", "weighted_round_robin", "least_connections", "random", "power_of_two"),
    *("ip_hash", "consistent_hash"),
]


def make(name: str, listed: list[Upstream]) -> Strategy:
    return STRATEGIES[name](configs_of(listed))


def prepared(strategy: Strategy, listed: list[Upstream]) -> Strategy:
    strategy.prepare(listed)
    return strategy


def resumed(strategy: Strategy, previous: Strategy, listed: list[Upstream]) -> Strategy:
    """What a reload makes of `previous`."""
    strategy.resume(previous)
    return prepared(strategy, listed)


def choose(strategy: Strategy, key: bytes = b"", *excluded: Upstream) -> Upstream:
    chosen = strategy.choose(key, excluded)
    assert chosen is not None
    return chosen


def take(strategy: Strategy, times: int, *excluded: Upstream) -> str:
    return "".join(choose(strategy, b"", *excluded).name for _ in range(times))


def send(strategy: Strategy, key: bytes = b"") -> Upstream:
    """Choose and count, as the balancer does."""
    upstream = choose(strategy, key)
    upstream.in_flight += 1
    strategy.note(upstream)
    return upstream


def end(strategy: Strategy, upstream: Upstream) -> None:
    """A request to `upstream` is over."""
    upstream.in_flight -= 1
    strategy.note(upstream)


def test_round_robin_takes_turns_in_the_order_of_the_file() -> None:
    strategy = prepared(RoundRobin(), build_upstreams(a=1, b=5, c=2))

    assert take(strategy, 7) == "abcabca"


def test_round_robin_goes_on_after_a_reload() -> None:
    first = prepared(RoundRobin(), build_upstreams(a=1, b=1, c=1))
    take(first, 4)

    second = resumed(RoundRobin(), first, build_upstreams(a=1, b=1, c=1))

    assert take(second, 3) == "bca"


def test_round_robin_copes_with_fewer_upstreams_after_a_reload() -> None:
    first = prepared(RoundRobin(), build_upstreams(a=1, b=1, c=1, d=1))
    take(first, 4)

    second = resumed(RoundRobin(), first, build_upstreams(x=1, y=1))

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
    strategy = prepared(WeightedRoundRobin(), build_upstreams(**weights))

    assert Counter(cycle) == weights or len(weights) == 1
    assert take(strategy, 3 * len(cycle)) == cycle * 3


Weights = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


def numbered(weights: list[int]) -> list[Upstream]:
    return [build_upstream(str(order), weight, order=order) for order, weight in enumerate(weights)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
@example([1000, 999, 1])
def test_every_cycle_is_exact(weights: list[int]) -> None:
    listed = numbered(weights)
    strategy = prepared(WeightedRoundRobin(), listed)

    for _ in range(3):
        shares = Counter(choose(strategy).name for _ in range(sum(weights)))

        assert shares == {entry.name: entry.weight for entry in listed}


@given(Weights, st.data())
def test_a_reload_in_the_middle_changes_nothing(weights: list[int], data: st.DataObject) -> None:
    listed = numbered(weights)
    undisturbed = prepared(WeightedRoundRobin(), listed)
    strategy: Strategy = prepared(WeightedRoundRobin(), listed)

    for _ in range(data.draw(st.integers(1, 5))):
        for _ in range(data.draw(st.integers(0, 40))):
            assert choose(strategy) is choose(undisturbed)
        strategy = resumed(WeightedRoundRobin(), strategy, listed)

    assert take(strategy, 50) == take(undisturbed, 50)


@given(Weights, st.integers(0, 2000))
def test_shares_are_never_far_from_even(weights: list[int], times: int) -> None:
    listed = numbered(weights)
    strategy = prepared(WeightedRoundRobin(), listed)

    shares = Counter(choose(strategy).name for _ in range(times))

    for entry in listed:
        due = times * entry.weight / sum(weights)
        # Spread evenly: never a burst of one upstream. Each may be one turn ahead of or behind
        # its share for itself, and what the others are ahead or behind shifts the whole.
        assert abs(shares[entry.name] - due) <= 1 + len(weights) * entry.weight / sum(weights)


def test_a_reload_after_every_request_still_takes_turns() -> None:
    strategy: Strategy = prepared(WeightedRoundRobin(), build_upstreams(a=1, b=1, c=1))
    chosen = ""

    for _ in range(9):
        chosen += take(strategy, 1)
        strategy = resumed(WeightedRoundRobin(), strategy, build_upstreams(a=1, b=1, c=1))

    assert chosen == "abcabcabc"


def test_new_weights_hold_from_the_reload_on() -> None:
    first = prepared(WeightedRoundRobin(), build_upstreams(a=3, b=2, c=1))
    take(first, 6)

    second = resumed(WeightedRoundRobin(), first, build_upstreams(a=1, b=2, c=4))

    assert Counter(take(second, 70)) == {"a": 10, "b": 20, "c": 40}


def test_an_upstream_that_joins_gets_its_share_and_no_more() -> None:
    first = prepared(WeightedRoundRobin(), build_upstreams(a=1, b=1))
    take(first, 1000)

    second = resumed(WeightedRoundRobin(), first, build_upstreams(a=1, b=1, c=1))

    assert Counter(take(second, 30)) == {"a": 10, "b": 10, "c": 10}


def test_after_millions_of_turns_the_shares_are_still_exact() -> None:
    listed = build_upstreams(a=3, b=2, c=1)
    strategy = WeightedRoundRobin()
    strategy._last = (123_456_789.0, -1)
    prepared(strategy, listed)

    take(strategy, 6)

    assert Counter(take(strategy, 6000)) == {"a": 3000, "b": 2000, "c": 1000}


def test_random_is_even() -> None:
    strategy = prepared(Random(chance=random.Random(1).random), build_upstreams(a=1, b=9, c=1))

    shares = Counter(take(strategy, 3000))

    assert all(900 < shares[name] < 1100 for name in "abc")


def test_random_is_not_a_pattern() -> None:
    chosen = take(prepared(Random(chance=random.Random(2).random), build_upstreams(a=1, b=1)), 400)

    repeats = sum(one == next_ for one, next_ in pairwise(chosen))

    assert 150 < repeats < 250


@pytest.mark.parametrize("name", ALL)
def test_every_strategy_goes_on_with_other_upstreams(name: str) -> None:
    listed = build_upstreams(a=3, b=2, c=1)
    before = prepared(make(name, listed), listed)
    take(before, 5)

    listed = build_upstreams(x=1, y=1)
    after = resumed(make(name, listed), before, listed)

    assert {send(after, str(key).encode()).name for key in range(40)} <= {"x", "y"}
    assert choose(after, b"key", listed[0]) is listed[1]
    assert choose(after, b"key", listed[1]) is listed[0]


def test_the_configuration_knows_the_same_names() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(b"[routing]\nstrategy = 'some'", Path("atlas.toml"))

    assert set(re.findall(r'"(\w+)"', str(caught.value))) - {"some"} == set(STRATEGIES)


@pytest.mark.parametrize("name", SHARING)
def test_a_thousand_upstreams_are_chosen_among(name: str) -> None:
    listed = numbered([1 + number % 10 for number in range(1000)])
    strategy = prepared(make(name, listed), listed)

    chosen = {send(strategy, str(key).encode()) for key in range(20_000)}

    assert len(chosen) > 900


# Those that are left out this once


@pytest.mark.parametrize("name", ALL)
def test_the_excluded_are_never_chosen(name: str) -> None:
    listed = build_upstreams(a=3, b=2, c=1)
    a, b, c = (entry for entry in listed)
    strategy = prepared(make(name, listed), listed)

    for number in range(50):
        key = str(number).encode()

        assert strategy.choose(key, {a}) in {b, c}
        assert strategy.choose(key, [a, b]) is c
        assert strategy.choose(key, (c, b, a)) is None


@pytest.mark.parametrize("name", ALL)
def test_without_anybody_nobody_is_chosen(name: str) -> None:
    members = build_upstreams(a=1)
    strategy = prepared(make(name, members), [])

    assert strategy.choose(b"key", ()) is None
    strategy.prepare(members)
    assert choose(strategy).name == "a"
    strategy.prepare([])
    assert strategy.choose(b"key", ()) is None


@pytest.mark.parametrize("name", ["round_robin", "weighted_round_robin"])
def test_turns_go_on_behind_the_excluded(name: str) -> None:
    listed = build_upstreams(a=1, b=1, c=1)
    strategy = prepared(make(name, listed), listed)

    assert take(strategy, 1, listed[0]) == "b"
    assert take(strategy, 6, listed[0]) == "cbcbcb"


def test_a_skipped_turn_of_weighted_round_robin_is_not_lost() -> None:
    listed = build_upstreams(a=3, b=2, c=1)
    strategy = prepared(WeightedRoundRobin(), listed)

    chosen = take(strategy, 1, listed[0]) + take(strategy, 5)

    assert Counter(chosen) == {"a": 3, "b": 2, "c": 1}


# By requests in flight


def test_least_connections_fills_the_gaps() -> None:
    strategy = prepared(LeastConnections(), build_upstreams(a=1, b=1, c=1))

    first = [send(strategy) for _ in range(6)]
    assert Counter(upstream.name for upstream in first) == {"a": 2, "b": 2, "c": 2}
    for upstream in first:
        if upstream.name == "b":
            end(strategy, upstream)

    assert {send(strategy).name, send(strategy).name} == {"b"}


def test_least_connections_takes_turns_among_equals() -> None:
    strategy = prepared(LeastConnections(), build_upstreams(a=1, b=1, c=1))
    chosen = []

    for _ in range(9):  # one at a time: never more than one under way
        upstream = send(strategy)
        chosen.append(upstream.name)
        end(strategy, upstream)

    assert Counter(chosen) == {"a": 3, "b": 3, "c": 3}


def test_least_connections_goes_on_in_turns_after_a_reload_and_a_return() -> None:
    listed = build_upstreams(a=1, b=1, c=1)
    strategy: Strategy = prepared(LeastConnections(), listed)
    chosen = ""

    for number in range(12):
        upstream = send(strategy)
        chosen += upstream.name
        end(strategy, upstream)
        if number % 2:
            strategy = resumed(LeastConnections(), strategy, listed)
        else:
            strategy.prepare(listed)

    assert chosen == "abc" * 4


def test_least_connections_counts_for_the_weight() -> None:
    strategy = prepared(LeastConnections(), build_upstreams(a=3, b=2, c=1))

    shares = Counter(send(strategy).name for _ in range(600))

    assert shares == {"a": 300, "b": 200, "c": 100}


Steps = st.lists(st.one_of(st.none(), st.integers(0, 100)), max_size=200)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), Steps)
def test_least_connections_is_exact(weights: list[int], steps: list[int | None]) -> None:
    listed = numbered(weights)
    strategy = prepared(LeastConnections(), listed)
    open_: list[Upstream] = []

    for step in steps:
        if step is not None and open_:
            end(strategy, open_.pop(step % len(open_)))
            continue
        loads = {entry: entry.in_flight / entry.weight for entry in listed}
        open_.append(send(strategy))

        assert loads[open_[-1]] == min(loads.values())


def test_power_of_two_is_nearly_even() -> None:
    # With n requests on n upstreams one draw leaves ln n / ln ln n on the fullest, two leave
    # ln ln n / ln 2: here 3.6 and 2.8 above the mean.
    listed = numbered([1] * 1000)
    strategy = prepared(PowerOfTwo(chance=random.Random(3).random), listed)

    for _ in range(10_000):
        send(strategy)

    counts = [entry.in_flight for entry in listed]
    print(f"power of two: 10,000 on 1,000 upstreams, {min(counts)} to {max(counts)} each")
    assert max(counts) <= 10 + 4


def test_power_of_two_follows_the_weights() -> None:
    listed = build_upstreams(a=3, b=2, c=1)
    strategy = prepared(PowerOfTwo(chance=random.Random(4).random), listed)

    shares = Counter(send(strategy).name for _ in range(6000))

    assert all(abs(shares[entry.name] - 1000 * entry.weight) < 30 for entry in listed)


def test_power_of_two_copes_with_a_weight_that_outweighs_all() -> None:
    listed = build_upstreams(a=1000, b=1)
    strategy = prepared(PowerOfTwo(chance=random.Random(5).random), listed)

    assert {choose(strategy, b"", listed[0]).name for _ in range(50)} == {"b"}
