"""When an upstream is in rotation, and what reloads leave of it."""

from __future__ import annotations

import pytest

from atlas_pkg.balancing.breaker import Breaker
from atlas_pkg.balancing.upstream import AdminState
from atlas_pkg.config.model import CircuitBreaker
from tests.balancing.samples import build_config, build_upstream


def test_an_ordinary_upstream_takes_new_clients() -> None:
    upstream = build_upstream("a", 3)

    assert upstream.weight == 3
    assert upstream.is_alive(0.0)
    assert upstream.takes_new_clients(0.0)
    assert upstream.has_room


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
    upstream = build_upstream("a")

    upstream.admin_state = state

    assert upstream.is_alive(0.0) == is_alive
    assert upstream.takes_new_clients(0.0) == takes_new_clients


def test_one_that_is_down_is_neither_alive_nor_in_rotation() -> None:
    upstream = build_upstream("a")

    upstream.is_up = False

    assert not upstream.is_alive(0.0)
    assert not upstream.takes_new_clients(0.0)


def test_weight_0_keeps_those_it_has_and_takes_no_others() -> None:
    upstream = build_upstream("a", 0)

    assert upstream.is_alive(0.0)
    assert not upstream.takes_new_clients(0.0)


def test_an_administrators_weight_goes_before_that_of_the_file() -> None:
    upstream = build_upstream("a", 3)

    upstream.weight_override = 0
    assert upstream.weight == 0
    assert not upstream.takes_new_clients(0.0)
    upstream.weight_override = None
    assert upstream.weight == 3
    assert upstream.configured_weight == 3


def test_an_open_breaker_takes_it_out_until_its_time_is_up() -> None:
    upstream = build_upstream("a")
    breaker = upstream.breaker = Breaker(CircuitBreaker(failures=1, open_for=10.0))

    assert upstream.is_alive(0.0)
    breaker.fail(breaker.begin(0.0), 0.0)

    assert not upstream.is_alive(9.9)
    assert upstream.is_alive(10.0)
    breaker.begin(10.0)
    assert not upstream.takes_new_clients(10.0)  # one trial is under way


@pytest.mark.parametrize(("limit", "has_room"), [(0, True), (1, False), (2, False), (3, True)])
def test_room_is_what_the_limit_leaves(limit: int, has_room: bool) -> None:
    upstream = build_upstream("a", max_connections=limit)

    upstream.in_flight = 2

    assert upstream.has_room == has_room


def test_a_reload_says_anew_what_the_file_says_and_leaves_the_rest_alone() -> None:
    upstream = build_upstream("a", max_connections=1, order=0)
    upstream.in_flight = 1
    upstream.weight_override = 7
    assert not upstream.has_room

    breaker = CircuitBreaker()
    upstream.configure(build_config("a", 5, backup=True), order=4, breaker=breaker)

    assert (upstream.configured_weight, upstream.is_backup, upstream.order) == (5, True, 4)
    assert (upstream.weight, upstream.in_flight, upstream.has_room) == (7, 1, True)
    kept = upstream.breaker
    upstream.configure(build_config("a"), order=0, breaker=CircuitBreaker(failures=1))
    assert upstream.breaker is kept
    upstream.configure(build_config("a"), order=0, breaker=None)
    assert upstream.breaker is None
