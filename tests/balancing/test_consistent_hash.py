"""Consistent hashing, measured against what theory promises. Run with `-s` to see the figures.

With P points per upstream, shares are spread around their mean by about 1/sqrt(P) of it: 8 % for
the 160 points of weight 1 (each owns the sum of P gaps, which are exponentially distributed).
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.preview import preview
from atlas_pkg.balancing.strategies.consistent_hash import (
    LOAD_BOUND,
    POINTS_PER_WEIGHT,
    ConsistentHash,
    _build_ring,
    hash_key,
)
from atlas_pkg.balancing.upstream import Upstream
from tests.balancing.samples import build_settings, build_upstream, configs_of
from tests.toolkit import ROOT

KEYS = [f"192.0.2.{number % 256}/{number}".encode() for number in range(100_000)]
SPREAD = 1 / math.sqrt(POINTS_PER_WEIGHT)


def build(names: Sequence[str], **weights: int) -> list[Upstream]:
    return [
        build_upstream(name, weights.get(name, 1), order=order) for order, name in enumerate(names)
    ]


def names(count: int) -> list[str]:
    return [f"upstream{number}" for number in range(count)]


def prepared(listed: list[Upstream], *, bound: float = math.inf) -> ConsistentHash:
    strategy = ConsistentHash(configs_of(listed), bound=bound)
    strategy.prepare(listed)
    return strategy


def choose(strategy: ConsistentHash, key: bytes, *excluded: Upstream) -> Upstream:
    chosen = strategy.choose(key, excluded)
    assert chosen is not None
    return chosen


def owners(strategy: ConsistentHash) -> list[str]:
    return [choose(strategy, key).name for key in KEYS]


def test_keys_are_spread_evenly() -> None:
    shares = Counter(owners(prepared(build(names(10)))))

    mean = len(KEYS) / 10
    deviations = [share / mean - 1 for share in shares.values()]
    print(
        f"10 upstreams, 100,000 keys: shares {min(shares.values()):,} to"
        f" {max(shares.values()):,}; spread {statistics.pstdev(deviations):.1%},"
        f" expected about {SPREAD:.1%}"
    )
    assert statistics.pstdev(deviations) < 1.6 * SPREAD
    assert max(map(abs, deviations)) < 4 * SPREAD


def test_weights_are_respected() -> None:
    weights = {"a": 1, "b": 2, "c": 5, "d": 10}
    shares = Counter(owners(prepared(build("abcd", **weights))))

    for name, weight in weights.items():
        due = len(KEYS) * weight / sum(weights.values())
        print(f"weight {weight:2}: {shares[name]:,} keys, {shares[name] / due - 1:+.1%} of its due")
        assert abs(shares[name] / due - 1) < 4 * SPREAD / math.sqrt(weight) + 0.02


def test_removing_one_moves_its_own_keys_and_no_others() -> None:
    before = owners(prepared(build(names(10))))

    after = owners(prepared([entry for entry in build(names(10)) if entry.order != 3]))

    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    heirs = Counter(new for _, new in moved)
    print(f"removing one of 10: {len(moved):,} keys moved, all its own, to {dict(heirs)}")
    assert {old for old, _ in moved} == {"upstream3"}
    assert len(moved) == before.count("upstream3")
    assert len(heirs) == 9  # they are spread over all others


def test_adding_one_moves_its_share() -> None:
    before = owners(prepared(build(names(10))))

    after = owners(prepared(build(names(11))))

    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    print(f"adding an eleventh: {len(moved) / len(KEYS):.2%} of keys moved; 1/11 is {1 / 11:.2%}")
    assert {new for _, new in moved} == {"upstream10"}
    assert abs(len(moved) / len(KEYS) * 11 - 1) < 4 * SPREAD


def test_a_larger_weight_takes_keys_and_moves_no_others() -> None:
    before = owners(prepared(build("abcd")))

    after = owners(prepared(build("abcd", b=2)))

    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    print(f"weight 1 to 2 of four: {len(moved) / len(KEYS):.2%} moved; 2/5 - 1/4 is 15.00%")
    assert {new for _, new in moved} == {"b"}
    assert abs(len(moved) / len(KEYS) / 0.15 - 1) < 6 * SPREAD


def test_those_that_are_down_find_their_keys_again() -> None:
    listed = build(names(10))
    strategy = prepared(listed)
    before = owners(strategy)

    strategy.prepare([entry for entry in listed if entry.order != 3])
    meanwhile = owners(strategy)
    strategy.prepare(listed)

    assert all(old == new for old, new in zip(before, meanwhile, strict=True) if old[-1] != "3")
    assert "upstream3" not in meanwhile
    assert owners(strategy) == before


def test_the_excluded_are_passed_over_like_those_that_are_down() -> None:
    listed = build(names(5))
    strategy = prepared(listed)
    without = prepared([entry for entry in listed if entry.order != 2])

    for key in KEYS[:2000]:
        assert choose(strategy, key, listed[2]) is choose(without, key)


def test_the_order_of_the_file_does_not_matter() -> None:
    assert owners(prepared(build("abcd", c=3))) == owners(prepared(build("dbca", c=3)))


def test_another_process_agrees() -> None:
    program = (
        "from tests.balancing import test_consistent_hash as t;"
        "print(''.join(t.owners(t.prepared(t.build('dcba', b=3)))[:5000]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "1"},
        timeout=60,
    )

    assert told.stdout.strip() == "".join(owners(prepared(build("abcd", b=3)))[:5000])


def test_the_place_of_a_key_is_for_ever() -> None:
    # BLAKE2b with 8 bytes, as a number: another version must not choose otherwise.
    assert hash_key(b"") == 0xE4A6A0577479B2B4
    assert hash_key(b"192.0.2.1") == 0xC874FACE288B2811


def test_a_ring_is_made_once_for_the_same_upstreams() -> None:
    settings = build_settings(*configs_of(build(names(3))), strategy="consistent_hash")
    balancer = Balancer(settings)
    made = _build_ring.cache_info().misses

    balancer.apply(settings._replace(queue=1.0))
    preview(settings)

    assert _build_ring.cache_info().misses == made + 1  # that of one upstream less


def test_huge_weights_make_no_huge_ring() -> None:
    listed = build(names(100), **{f"upstream{number}": 1000 for number in range(100)})
    began = time.monotonic()
    strategy = prepared(listed)
    print(f"a ring of 100 upstreams of weight 1000: {time.monotonic() - began:.2f} s")

    shares = Counter(choose(strategy, key).name for key in KEYS[:20_000])

    assert len(strategy._ring._places) <= 1 << 20
    assert all(100 < shares[name] < 300 for name in names(100))


# With a bound


def load(strategy: ConsistentHash, key: bytes) -> Upstream:
    upstream = choose(strategy, key)
    upstream.in_flight += 1
    strategy.note(upstream)
    return upstream


def test_the_bound_holds_and_keys_are_passed_on() -> None:
    listed = build("abcd", c=3)
    strategy = prepared(listed, bound=LOAD_BOUND)
    home = choose(strategy, b"popular")

    for total in range(1, 601):
        load(strategy, b"popular")
        for entry in listed:
            limit = math.ceil(LOAD_BOUND * total * entry.weight / 6)
            assert entry.in_flight <= limit

    counts = {entry.name: entry.in_flight for entry in listed}
    print(f"600 requests with one key, weights 1 1 3 1: {counts}, home is {home.name}")
    assert sum(counts.values()) == 600
    assert sum(count > 0 for count in counts.values()) > 2  # passed on, and on from there


def test_below_the_bound_a_key_stays_at_home() -> None:
    listed = build(names(10))
    strategy = prepared(listed, bound=LOAD_BOUND)
    unbound = prepared(build(names(10)))

    at_home = 0
    under_way: list[Upstream] = []
    for key in KEYS[:20_000]:
        upstream = load(strategy, key)
        at_home += upstream.name == choose(unbound, key).name
        under_way.append(upstream)
        if len(under_way) > 200:
            over = under_way.pop(0)
            over.in_flight -= 1
            strategy.note(over)

    print(f"200 in flight on 10 upstreams, keys all different: {at_home / 20_000:.1%} at home")
    assert at_home / 20_000 > 0.8


def test_one_request_at_a_time_is_always_at_home() -> None:
    listed = build("abc")
    bounded, unbound = prepared(listed, bound=LOAD_BOUND), prepared(build("abc"))

    for key in KEYS[:3000]:
        assert choose(bounded, key).name == choose(unbound, key).name


def test_a_key_returns_home_when_its_upstream_has_room_again() -> None:
    listed = build("abc")
    strategy = prepared(listed, bound=LOAD_BOUND)
    home = load(strategy, b"key")
    assert load(strategy, b"key") is not home

    home.in_flight -= 1
    strategy.note(home)

    assert load(strategy, b"key") is home


def test_an_upstream_of_weight_0_can_be_given_a_weight() -> None:
    listed = build("ab", b=0)
    strategy = ConsistentHash(configs_of(listed))
    strategy.prepare(listed[:1])
    assert {choose(strategy, key).name for key in KEYS[:500]} == {"a"}

    listed[1].weight_override = 1
    strategy.prepare(listed)

    shares = Counter(choose(strategy, key).name for key in KEYS[:4000])
    assert abs(shares["b"] / 2000 - 1) < 4 * SPREAD


@pytest.mark.parametrize("bound", [math.inf, LOAD_BOUND])
def test_a_choice_among_a_thousand_stays_cheap(bound: float) -> None:
    listed = build(names(1000))
    began = time.monotonic()
    strategy = ConsistentHash(configs_of(listed), bound=bound)
    built = time.monotonic() - began
    worst = 0.0

    for available in (listed, listed[:500], listed[:2]):
        strategy.prepare(available)
        began = time.process_time()
        for key in KEYS[:500]:
            load(strategy, key)
        each = (time.process_time() - began) / 500
        worst = max(worst, each)
        print(f"{len(available)} of 1,000 available, bound {bound}: {each * 1e6:.1f} µs a choice")
    began = time.process_time()
    assert strategy.choose(b"key", set(listed)) is None

    print(f"ring of 1,000 built in {built * 1e3:.0f} ms")
    assert time.process_time() - began < 0.1
    assert worst < 0.05  # two left of a thousand: some five hundred points are passed over
    assert built < 30
