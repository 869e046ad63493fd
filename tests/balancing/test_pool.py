"""Idle upstream connections: which are kept, which are used again, which are closed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from atlas_pkg.balancing.pool import SURPLUS, Pool, UpstreamConnection, open_connection
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import PoolConfig, UpstreamConfig
from atlas_pkg.errors import Side, Stage, UpstreamError
from atlas_pkg.net.stream import Stream
from tests.fakes import black_hole
from tests.toolkit import free_port

FOREVER = 3600.0


class Pairs:
    """Makes connections out of socket pairs and keeps both ends until the test is over."""

    def __init__(self) -> None:
        self.upstream = Upstream(UpstreamConfig("a", "192.0.2.1", 80))
        self._sockets: list[socket.socket] = []

    def make(self, upstream: Upstream | None = None) -> tuple[UpstreamConnection, socket.socket]:
        """A connection to the upstream, and the upstream's own end of it."""
        ours, theirs = socket.socketpair()
        self._sockets += [ours, theirs]
        stream = Stream(ours, Side.UPSTREAM)
        return UpstreamConnection(upstream or self.upstream, stream, time.monotonic()), theirs

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    made.close()


def is_open(connection: UpstreamConnection) -> bool:
    return connection.stream._sock.fileno() >= 0


def take(pool: Pool, pairs: Pairs, settings: PoolConfig | None = None) -> UpstreamConnection | None:
    return pool.checkout(pairs.upstream, settings or PoolConfig(), FOREVER)


def test_an_empty_pool_has_nothing(pairs: Pairs) -> None:
    assert take(Pool(), pairs) is None


def test_a_connection_is_used_again_and_then_is_a_reused_one(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    requests_before = connection.requests

    pool.checkin(connection, PoolConfig(), None)

    assert take(pool, pairs) is connection
    assert (requests_before, connection.requests) == (0, 1)
    assert take(pool, pairs) is None


def test_the_newest_is_taken_first_and_the_oldest_makes_room(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=2)
    first, second, third = (pairs.make()[0] for _ in range(3))

    for connection in (first, second, third):
        pool.checkin(connection, settings, None)
        connection.idle_since -= 2 * SURPLUS

    assert not is_open(first)
    assert take(pool, pairs) is third
    assert take(pool, pairs) is second
    assert take(pool, pairs) is None


@pytest.mark.parametrize("word", [b"", b"unasked"])
def test_a_connection_that_can_be_read_is_not_used_again(word: bytes, pairs: Pairs) -> None:
    pool, (connection, theirs) = Pool(), pairs.make()
    pool.checkin(connection, PoolConfig(), None)

    theirs.send(word) if word else theirs.close()

    assert take(pool, pairs) is None
    assert not is_open(connection)


def test_a_dead_connection_does_not_hide_a_live_one(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=2)
    live, (dead, theirs) = pairs.make()[0], pairs.make()
    pool.checkin(live, settings, None)
    pool.checkin(dead, settings, None)
    theirs.close()

    assert take(pool, pairs) is live


def test_a_connection_that_has_rested_too_long_is_closed(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    pool.checkin(connection, PoolConfig(), None)
    connection.idle_since -= 10

    assert pool.checkout(pairs.upstream, PoolConfig(), 9.0) is None
    assert not is_open(connection)


def test_what_the_upstream_says_of_its_patience_is_heeded(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    pool.checkin(connection, PoolConfig(), 5)  # we use it for one second less
    connection.idle_since -= 4.5

    assert take(pool, pairs) is None


def test_a_connection_that_is_too_old_is_closed(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    pool.checkin(connection, PoolConfig(), None)
    connection.opened_at -= 100

    assert take(pool, pairs, PoolConfig(max_age=99.0)) is None
    assert not is_open(connection)


def test_a_connection_is_closed_after_its_last_request(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    settings = PoolConfig(max_requests=2)

    pool.checkin(connection, settings, None)
    assert take(pool, pairs, settings) is connection
    pool.checkin(connection, settings, None)

    assert take(pool, pairs, settings) is None
    assert not is_open(connection)


def test_what_was_all_in_use_a_moment_ago_is_kept_for_now(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=1)
    connections = [pairs.make()[0] for _ in range(3)]

    for connection in connections:
        pool.checkin(connection, settings, None)

    assert all(is_open(connection) for connection in connections)

    # One request at a time from now on: the others are needed no more.
    connections[0].idle_since -= 2 * SURPLUS
    connections[1].idle_since -= 2 * SURPLUS
    assert take(pool, pairs) is connections[2]
    pool.checkin(connections[2], settings, None)

    assert [is_open(connection) for connection in connections] == [False, False, True]


def test_with_no_room_for_idle_ones_each_is_closed(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()

    pool.checkin(connection, PoolConfig(idle=0), None)

    assert not is_open(connection)


def test_upstreams_have_connections_of_their_own(pairs: Pairs) -> None:
    pool, other = Pool(), Upstream(UpstreamConfig("b", "192.0.2.1", 80))
    connection, _ = pairs.make(other)
    pool.checkin(connection, PoolConfig(), None)

    assert take(pool, pairs) is None
    assert pool.checkout(other, PoolConfig(), FOREVER) is connection


def test_tidying_closes_what_nobody_will_use_again(pairs: Pairs) -> None:
    pool, gone = Pool(), Upstream(UpstreamConfig("gone", "192.0.2.1", 80))
    settings = PoolConfig(idle=3)
    good, (dead, theirs), old, unlisted = (
        pairs.make()[0],
        pairs.make(),
        pairs.make()[0],
        pairs.make(gone)[0],
    )
    for connection in (good, dead, old, unlisted):
        pool.checkin(connection, settings, None)
    theirs.close()
    old.idle_since -= 100

    pool.close_expired(settings, 60.0, (pairs.upstream,))

    assert [is_open(one) for one in (good, dead, old, unlisted)] == [True, False, False, False]
    assert take(pool, pairs) is good


def test_what_was_kept_for_a_moment_is_closed_when_nothing_more_comes(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=1)
    connections = [pairs.make()[0] for _ in range(3)]
    for connection in connections:
        pool.checkin(connection, settings, None)
    assert all(is_open(connection) for connection in connections)
    for connection in connections:
        connection.idle_since -= 2 * SURPLUS

    pool.close_expired(settings, 60.0, (pairs.upstream,))

    assert [is_open(one) for one in connections] == [False, False, True]


def test_closing_the_pool_closes_all(pairs: Pairs) -> None:
    pool, connections = Pool(), [pairs.make()[0] for _ in range(3)]
    for connection in connections:
        pool.checkin(connection, PoolConfig(idle=3), None)

    pool.close()

    assert not any(is_open(connection) for connection in connections)


def test_what_rests_is_counted(pairs: Pairs) -> None:
    pool, other = Pool(), Upstream(UpstreamConfig("b", "192.0.2.1", 80))
    for connection in (pairs.make()[0], pairs.make()[0], pairs.make(other)[0]):
        pool.checkin(connection, PoolConfig(), None)

    assert pool.count_idle() == {pairs.upstream: 2, other: 1}
    take(pool, pairs)
    take(pool, pairs)
    assert pool.count_idle() == {other: 1}


def test_threads_that_share_a_pool_never_hold_the_same_connection(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=4, max_requests=1_000_000)
    for _ in range(4):
        pool.checkin(pairs.make()[0], settings, None)
    # Who holds what; each is put there and taken away in one step.
    held: dict[UpstreamConnection, int] = {}
    twice: list[UpstreamConnection] = []
    is_over = threading.Event()

    def use(number: int) -> None:
        for _ in range(5000):
            connection = take(pool, pairs, settings)
            if connection is None:
                continue
            if held.setdefault(connection, number) != number:
                twice.append(connection)
            held.pop(connection, None)
            pool.checkin(connection, settings, None)

    def tidy() -> None:
        while not is_over.is_set():
            pool.close_expired(settings, FOREVER, (pairs.upstream,))
            pool.count_idle()

    users = [threading.Thread(target=use, args=(number,)) for number in range(3)]
    tidying = threading.Thread(target=tidy)
    for thread in (*users, tidying):
        thread.start()
    for thread in users:
        thread.join(60)
    is_over.set()
    tidying.join(60)

    assert twice == []
    assert pool.count_idle() == {pairs.upstream: 4}


def reachable(*ports: int) -> Upstream:
    """An upstream with several addresses, as a host name may have."""
    upstream = Upstream(UpstreamConfig("a", "name.example", 80))
    upstream.endpoints = tuple((socket.AF_INET, ("127.0.0.1", port)) for port in ports)
    return upstream


def test_a_new_connection_is_one_that_was_never_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = reachable(listener.getsockname()[1])

        connection = open_connection(upstream, 5.0)

        assert (connection.upstream, connection.requests) == (upstream, 0)
        connection.stream.close()


def test_an_upstream_that_cannot_be_reached_is_its_own_failure_at_connecting() -> None:
    port = free_port()

    with pytest.raises(UpstreamError) as caught:
        open_connection(reachable(port, port), 5.0)

    error = caught.value
    assert (error.stage, error.reason) == (Stage.CONNECT, "connection refused")
    assert (error.timed_out, error.is_stale, error.is_own_fault) == (False, False, False)


def test_an_upstream_that_takes_too_long_to_be_reached_is_told_as_such() -> None:
    with black_hole() as port, pytest.raises(UpstreamError) as caught:
        open_connection(reachable(port, port), 0.2)

    assert (caught.value.stage, caught.value.timed_out) == (Stage.CONNECT, True)


def test_a_name_without_addresses_is_told_as_such() -> None:
    with pytest.raises(UpstreamError, match=r"host name name\.example is not resolved"):
        open_connection(reachable(), 5.0)
