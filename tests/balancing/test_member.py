"""When an upstream is in rotation, as one configuration sees it."""

from __future__ import annotations

import pytest

from atlas_pkg.balancing.breaker import Breaker
from atlas_pkg.balancing.member import Member
from atlas_pkg.balancing.upstream import AdminState, Upstream
from atlas_pkg.config.model import CircuitBreaker
from tests.balancing.samples import build_member, build_upstream


def test_an_ordinary_member_takes_new_clients() -> None:
    member = build_member("a", 3)

    assert member.weight == 3
    assert member.is_alive(0.0)
    assert member.takes_new_clients(0.0)
    assert member.has_room


@pytest.mark.parametrize(
    ("state", "is_alive", "takes_new_clients"),
    [
        (AdminState.READY, True, True),
        (AdminState.DRAIN, True, False),
        (AdminState.MAINTENANCE, False, False),
    ],
)
def test_an_administrator_may_take_it_out(
    state: AdminState, is_alive: bool, takes_new_clients: bool
) -> None:
    member = build_member("a")

    member.upstream.admin_state = state

    assert member.is_alive(0.0) == is_alive
    assert member.takes_new_clients(0.0) == takes_new_clients


def test_one_that_is_down_is_neither_alive_nor_in_rotation() -> None:
    member = build_member("a")

    member.upstream.is_up = False

    assert not member.is_alive(0.0)
    assert not member.takes_new_clients(0.0)


def test_weight_0_keeps_those_it_has_and_takes_no_others() -> None:
    member = build_member("a", 0)

    assert member.is_alive(0.0)
    assert not member.takes_new_clients(0.0)


def test_an_administrators_weight_goes_before_that_of_the_file() -> None:
    member = build_member("a", 3)

    member.upstream.weight_override = 0
    assert member.weight == 0
    assert not member.takes_new_clients(0.0)
    member.upstream.weight_override = None
    assert member.weight == 3
    assert member.configured_weight == 3


def test_an_open_breaker_takes_it_out_until_its_time_is_up() -> None:
    member = build_member("a")
    breaker = member.upstream.breaker = Breaker(CircuitBreaker(failures=1, open_for=10.0))

    assert member.is_alive(0.0)
    breaker.fail(breaker.begin(0.0), 0.0)

    assert not member.is_alive(9.9)
    assert member.is_alive(10.0)
    breaker.begin(10.0)
    assert not member.takes_new_clients(10.0)  # one trial is under way


@pytest.mark.parametrize(("limit", "has_room"), [(0, True), (1, False), (2, False), (3, True)])
def test_room_is_what_the_limit_leaves(limit: int, has_room: bool) -> None:
    member = build_member("a", max_connections=limit)

    member.upstream.in_flight = 2

    assert member.has_room == has_room


def test_two_configurations_may_see_the_same_upstream_differently() -> None:
    upstream = Upstream(build_upstream("a"))
    one = Member(upstream, build_upstream("a", 1, max_connections=1), 0)
    two = Member(upstream, build_upstream("a", 0, backup=True), 5)

    upstream.in_flight = 1

    assert (one.weight, one.has_room, one.is_backup, one.order) == (1, False, False, 0)
    assert (two.weight, two.has_room, two.is_backup, two.order) == (0, True, True, 5)
