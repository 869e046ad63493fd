"""This thread's idle upstream connections.

Each worker thread has a pool of its own, so taking a connection needs no lock and the connection's
memory is warm. The newest idle connection is taken first: it is the least likely to have been
closed, and the oldest ones age out.

An idle connection that can be read is finished: either the upstream closed it, or it sent bytes
that nobody asked for. Both mean discard (RFC 9112 §9.3 and §9.6). The look shrinks the race
with an upstream that closes at the same moment but cannot remove it; what is then still safe to
repeat is decided in `serving/proxy.py`.
"""

from __future__ import annotations

import time

from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import PoolConfig
from atlas_pkg.net.stream import Stream

# A request that may not be repeated is only put on a connection that was in use this recently.
FRESH = 1.0

# Connections beyond `pool.idle` are kept while they were all needed within so many seconds.
SURPLUS = 1.0

# We stop using a connection this long before the upstream said that it will close it.
_KEEP_ALIVE_MARGIN = 1.0


class UpstreamConnection:
    """An open connection to an upstream, used for one exchange at a time."""

    __slots__ = ("idle_limit", "idle_since", "opened_at", "requests", "stream", "upstream")

    def __init__(self, upstream: Upstream, stream: Stream, now: float) -> None:
        self.upstream = upstream
        self.stream = stream
        self.opened_at = now
        self.idle_since = now
        self.idle_limit = float("inf")
        self.requests = 0

    @property
    def is_reused(self) -> bool:
        """Has an earlier exchange used this connection?"""
        return self.requests > 0

    def note_keep_alive(self, seconds: int) -> None:
        """The upstream said that it closes after so many idle seconds; be earlier."""
        self.idle_limit = max(0.0, seconds - _KEEP_ALIVE_MARGIN)


class Pool:
    """Idle connections of one thread, newest last, by upstream.

    Not thread-safe, but for `count_idle`.
    """

    def __init__(self) -> None:
        self._idle: dict[Upstream, list[UpstreamConnection]] = {}

    def checkout(
        self, upstream: Upstream, settings: PoolConfig, *, idle_limit: float
    ) -> UpstreamConnection | None:
        """Take the newest usable idle connection, or None. Does not wait."""
        connections = self._idle.get(upstream)
        if not connections:
            return None
        now = time.monotonic()
        while connections:
            connection = connections.pop()
            if _may_reuse(connection, settings, now, idle_limit):
                return connection
            connection.stream.close()
        return None

    def checkin(self, connection: UpstreamConnection, settings: PoolConfig) -> None:
        """Keep a connection whose exchange ended cleanly, if there is room for it."""
        connection.requests += 1
        connections = self._idle.setdefault(connection.upstream, [])
        if settings.idle == 0 or connection.requests >= settings.max_requests:
            connection.stream.close()
            return
        connection.idle_since = time.monotonic()
        connections.append(connection)
        _close_surplus(connections, settings, connection.idle_since)

    def close_expired(
        self, settings: PoolConfig, idle_limit: float, upstreams: tuple[Upstream, ...]
    ) -> None:
        """Close what has aged, what was closed on the other side, and what left the list."""
        now = time.monotonic()
        listed = set(upstreams)
        for upstream, connections in list(self._idle.items()):
            kept = []
            for connection in connections:
                if upstream in listed and _may_reuse(connection, settings, now, idle_limit):
                    kept.append(connection)
                else:
                    connection.stream.close()
            _close_surplus(kept, settings, now)
            if kept:
                self._idle[upstream] = kept
            else:
                del self._idle[upstream]

    def count_idle(self) -> dict[Upstream, int]:
        """How many connections rest here. For any thread: the owner may be about to change it."""
        return {upstream: len(kept) for upstream, kept in self._idle.copy().items() if kept}

    def close(self) -> None:
        """Close all idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.stream.close()
        self._idle.clear()


def _close_surplus(connections: list[UpstreamConnection], settings: PoolConfig, now: float) -> None:
    """Close what is beyond `pool.idle`, unless it was in use a moment ago.

    A worker that leads has many requests under way, and will soon need as many again. The oldest
    are first, since the newest are taken first.
    """
    while len(connections) > settings.idle and connections[0].idle_since < now - SURPLUS:
        connections.pop(0).stream.close()


def _may_reuse(
    connection: UpstreamConnection, settings: PoolConfig, now: float, idle_limit: float
) -> bool:
    """Is this idle connection still worth sending on?"""
    idle = now - connection.idle_since
    if idle > idle_limit or idle > connection.idle_limit:
        return False
    if now - connection.opened_at > settings.max_age:
        return False
    return not connection.stream.is_readable()
