"""What `--check` foretells is what the balancer does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from atlas_pkg.balancing.balancer import Balancer, BalancerSettings
from atlas_pkg.balancing.lease import Affinity
from atlas_pkg.balancing.preview import preview
from atlas_pkg.balancing.strategies import STRATEGIES
from atlas_pkg.config.model import Routing, UpstreamConfig
from tests.balancing.samples import build_config, build_settings

THREE = (build_config("one", 3), build_config("two", 2), build_config("three", 1))


def tell(*upstreams: UpstreamConfig, **keys: Any) -> list[str]:
    return preview(build_settings(*upstreams, **keys))


def numbers_of(lines: list[str], strategy: str) -> tuple[int, int]:
    """How many change, and how many have to."""
    row = next(line for line in lines if line.startswith(f"  {strategy} ") and line[-1] != ":")
    changed, forced = row.split()[1:3]
    return int(changed), int(forced)


def test_turns_are_told_by_name_with_all_upstreams_and_with_one_less() -> None:
    lines = tell(*THREE)

    assert lines[0].endswith("(clients 192.0.2.1 to 192.0.2.10):")
    assert lines[1:5] == [
        "  weighted_round_robin",
        "    one two one three two one one two one three",
        "  without one",
        "    two three two two three two two three two two",
    ]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_what_is_told_is_what_the_balancer_does(strategy: str) -> None:
    lines = tell(*THREE, strategy=strategy)
    random.seed(1)
    balancer = Balancer(build_settings(*THREE, strategy=strategy))

    names = []
    for number in range(1, 11):
        lease = balancer.lease(Affinity(b"192.0.2.%d" % number))
        names.append(lease.upstream.name)
        lease.release()

    assert lines[2].split() == names


def test_a_hash_moves_only_those_that_have_to_move() -> None:
    lines = tell(*THREE)

    for strategy in ("ip_hash", "consistent_hash"):
        changed, forced = numbers_of(lines, strategy)
        assert 0 < changed == forced
    changed, forced = numbers_of(lines, "round_robin")
    assert changed > forced == 4


def test_where_load_decides_ten_at_once_are_told_as_well() -> None:
    lines = tell(*THREE, strategy="least_connections")

    assert lines[3] == "  all at once"
    assert [lines[4].split().count(name) for name in ("one", "two", "three")] == [5, 3, 2]


def test_those_who_would_wait_for_room_are_told() -> None:
    full = [build_config(name, max_connections=1) for name in ("one", "two")]

    lines = tell(*full, strategy="round_robin")

    assert "    one two" + " (waits)" * 8 in lines


def test_backups_serve_when_the_last_other_one_is_gone() -> None:
    lines = tell(build_config("one"), build_config("spare", backup=True))

    assert lines[2].split() == ["one"] * 10
    assert lines[4].split() == ["spare"] * 10


def test_a_hash_over_something_else_is_told_for_that() -> None:
    routing = Routing(strategy="consistent_hash", hash_on="header:X-User")

    lines = preview(BalancerSettings(THREE, routing))

    assert lines[0].endswith("(header:X-User /1 to /10):")


def test_long_lists_of_long_names_stay_within_the_terminal() -> None:
    many = [build_config(f"backend-server-{number:04}.example.net") for number in range(100)]

    lines = tell(*many, strategy="least_connections")

    assert max(map(len, lines)) <= 110
    assert len(lines) < 25


@pytest.mark.parametrize(
    "upstreams",
    [[], [build_config("one")], [build_config("one", 0), build_config("two", 0)]],
    ids=["none", "one", "all of weight 0"],
)
def test_nothing_is_told_where_there_is_nothing_to_choose(upstreams: list[UpstreamConfig]) -> None:
    assert tell(*upstreams) == []
