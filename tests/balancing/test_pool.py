"""Idle upstream connections: which are kept, which are used again, which are closed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from atlas_pkg.balancing.pool import SURPLUS, Pool, UpstreamConnection
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import PoolConfig, UpstreamConfig
from atlas_pkg.errors import Side
from atlas_pkg.net.stream import Stream

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
    number: int = connection.stream.sock.fileno()
    return number >= 0


def take(pool: Pool, pairs: Pairs, settings: PoolConfig | None = None) -> UpstreamConnection | None:
    return pool.checkout(pairs.upstream, settings or PoolConfig(), idle_limit=FOREVER)


def test_an_empty_pool_has_nothing(pairs: Pairs) -> None:
    assert take(Pool(), pairs) is None


def test_a_connection_is_used_again_and_then_is_a_reused_one(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    is_first_time_reused = connection.is_reused

    pool.checkin(connection, PoolConfig())

    assert take(pool, pairs) is connection
    assert (is_first_time_reused, connection.is_reused) == (False, True)
    assert take(pool, pairs) is None


def test_the_newest_is_taken_first_and_the_oldest_makes_room(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=2)
    first, second, third = (pairs.make()[0] for _ in range(3))

    for connection in (first, second, third):
        pool.checkin(connection, settings)
        connection.idle_since -= 2 * SURPLUS

    assert not is_open(first)
    assert take(pool, pairs) is third
    assert take(pool, pairs) is second
    assert take(pool, pairs) is None


@pytest.mark.parametrize("word", [b"", b"unasked"])
def test_a_connection_that_can_be_read_is_not_used_again(word: bytes, pairs: Pairs) -> None:
    pool, (connection, theirs) = Pool(), pairs.make()
    pool.checkin(connection, PoolConfig())

    theirs.send(word) if word else theirs.close()

    assert take(pool, pairs) is None
    assert not is_open(connection)


def test_a_dead_connection_does_not_hide_a_live_one(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=2)
    live, (dead, theirs) = pairs.make()[0], pairs.make()
    pool.checkin(live, settings)
    pool.checkin(dead, settings)
    theirs.close()

    assert take(pool, pairs) is live


def test_a_connection_that_has_rested_too_long_is_closed(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    pool.checkin(connection, PoolConfig())
    connection.idle_since -= 10

    assert pool.checkout(pairs.upstream, PoolConfig(), idle_limit=9.0) is None
    assert not is_open(connection)


def test_what_the_upstream_says_of_its_patience_is_heeded(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    connection.note_keep_alive(5)  # we use it for one second less
    pool.checkin(connection, PoolConfig())
    connection.idle_since -= 4.5

    assert take(pool, pairs) is None


def test_a_connection_that_is_too_old_is_closed(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    pool.checkin(connection, PoolConfig())
    connection.opened_at -= 100

    assert take(pool, pairs, PoolConfig(max_age=99.0)) is None
    assert not is_open(connection)


def test_a_connection_is_closed_after_its_last_request(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()
    settings = PoolConfig(max_requests=2)

    pool.checkin(connection, settings)
    assert take(pool, pairs, settings) is connection
    pool.checkin(connection, settings)

    assert take(pool, pairs, settings) is None
    assert not is_open(connection)


def test_what_was_all_in_use_a_moment_ago_is_kept_for_now(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=1)
    connections = [pairs.make()[0] for _ in range(3)]

    for connection in connections:
        pool.checkin(connection, settings)

    assert all(is_open(connection) for connection in connections)

    # One request at a time from now on: the others are needed no more.
    connections[0].idle_since -= 2 * SURPLUS
    connections[1].idle_since -= 2 * SURPLUS
    assert take(pool, pairs) is connections[2]
    pool.checkin(connections[2], settings)

    assert [is_open(connection) for connection in connections] == [False, False, True]


def test_with_no_room_for_idle_ones_each_is_closed(pairs: Pairs) -> None:
    pool, (connection, _) = Pool(), pairs.make()

    pool.checkin(connection, PoolConfig(idle=0))

    assert not is_open(connection)


def test_upstreams_have_connections_of_their_own(pairs: Pairs) -> None:
    pool, other = Pool(), Upstream(UpstreamConfig("b", "192.0.2.1", 80))
    connection, _ = pairs.make(other)
    pool.checkin(connection, PoolConfig())

    assert take(pool, pairs) is None
    assert pool.checkout(other, PoolConfig(), idle_limit=FOREVER) is connection


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
        pool.checkin(connection, settings)
    theirs.close()
    old.idle_since -= 100

    pool.close_expired(settings, 60.0, (pairs.upstream,))

    assert [is_open(one) for one in (good, dead, old, unlisted)] == [True, False, False, False]
    assert take(pool, pairs) is good


def test_what_was_kept_for_a_moment_is_closed_when_nothing_more_comes(pairs: Pairs) -> None:
    pool, settings = Pool(), PoolConfig(idle=1)
    connections = [pairs.make()[0] for _ in range(3)]
    for connection in connections:
        pool.checkin(connection, settings)
    assert all(is_open(connection) for connection in connections)
    for connection in connections:
        connection.idle_since -= 2 * SURPLUS

    pool.close_expired(settings, 60.0, (pairs.upstream,))

    assert [is_open(one) for one in connections] == [False, False, True]


def test_closing_the_pool_closes_all(pairs: Pairs) -> None:
    pool, connections = Pool(), [pairs.make()[0] for _ in range(3)]
    for connection in connections:
        pool.checkin(connection, PoolConfig(idle=3))

    pool.close()

    assert not any(is_open(connection) for connection in connections)
