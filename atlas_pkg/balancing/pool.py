"""Open connections to upstreams, and those that rest until they are used again.

Pools are per thread, so taking a connection needs no lock and its memory is warm: with a lane the
lane has one, and threads that wait borrow from it and give back to it; without a lane each thread
has its own. The newest idle connection is taken first: it is the least likely to have been closed,
and the oldest ones age out. A connection of which its upstream has been told for whom it is (PROXY
protocol) serves one client; it rests in a pool of that client's.

An idle connection that can be read is finished: either the upstream closed it, or it sent bytes
that nobody asked for. Both mean discard (RFC 9112 §9.3 and §9.6). The look shrinks the race
with an upstream that closes at the same moment but cannot remove it; what is then still safe to
repeat is decided in `proxying/retry.py`.
"""

from __future__ import annotations

import time

from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import PoolConfig
from atlas_pkg.errors import Stage, StreamError, TlsError, UpstreamError
from atlas_pkg.net.connect import connect
from atlas_pkg.net.proxy_protocol import build_header
from atlas_pkg.net.stream import Ends, Stream
from atlas_pkg.net.tls_client import TlsClient

# A request that may not be repeated is only put on a connection that was in use this recently.
FRESH = 1.0

# Connections beyond `pool.idle` are kept while they are in use once in so many seconds.
SURPLUS = 1.0

# What is said of an upstream that answers a plain request with an alert of TLS.
SPEAKS_TLS = "it speaks TLS, and has no [upstreams.tls]"

# We stop using a connection this long before the upstream said that it will close it.
_KEEP_ALIVE_MARGIN = 1.0


class UpstreamConnection:
    """An open connection to an upstream, used for one exchange at a time."""

    __slots__ = (
        "idle_limit",
        "idle_since",
        "is_bound",
        "is_watched",
        "opened_at",
        "requests",
        "stream",
        "tls",
        "upstream",
    )

    def __init__(
        self, upstream: Upstream, stream: Stream, now: float, tls: TlsClient | None = None
    ) -> None:
        self.upstream = upstream
        self.stream = stream
        self.tls = tls  # who has spoken TLS to it
        self.is_bound = False  # it speaks for one client, and is nobody else's any more
        self.is_watched = False  # a lane's epoll tells of it
        self.opened_at = now
        self.idle_since = now
        self.idle_limit = float("inf")
        self.requests = 0  # that were answered over it


def open_connection(
    upstream: Upstream, timeout: float, ends: Ends | None = None
) -> UpstreamConnection:
    """Connect to `upstream`, for the client whose `ends` these are. Blocks.

    Raises `UpstreamError` (CONNECT).
    """
    if not upstream.endpoints:
        raise UpstreamError(Stage.CONNECT, f"host name {upstream.address} is not resolved")
    tls = upstream.tls
    try:
        stream = reach(upstream, timeout, ends)
    except StreamError as error:
        stage = Stage.TLS if isinstance(error, TlsError) else Stage.CONNECT
        raise UpstreamError(
            stage, error.reason, timed_out=error.timed_out, is_own_fault=error.is_own_fault
        ) from None
    return UpstreamConnection(upstream, stream, time.monotonic(), tls)


def reach(upstream: Upstream, timeout: float, ends: Ends | None) -> Stream:
    """Connect to `upstream`, at one of its addresses, and be ready to speak to it.

    Blocks for `timeout` at most. An upstream with `proxy_protocol` is told the `ends` of the
    client; None: it is for no client, but for a probe. Raises `StreamError`.
    """
    deadline = time.monotonic() + timeout
    stream = connect(upstream.endpoints, timeout)
    if upstream.proxy_protocol:
        try:
            if ends is None and upstream.proxy_protocol == 1:
                ends = stream.ends()  # as HAProxy has it: some servers know no UNKNOWN
            stream.send(build_header(upstream.proxy_protocol, ends), timeout)
        except StreamError:
            stream.close()
            raise
    if upstream.tls is None:
        return stream
    return upstream.tls.wrap(stream, deadline - time.monotonic())


class Pool:
    """Idle connections, newest last, by upstream.

    Thread-safe without a lock, since a lane shares its pool with the threads that wait for others:
    taking from a list and adding to it are single steps.
    """

    def __init__(self) -> None:
        self._idle: dict[Upstream, list[UpstreamConnection]] = {}

    def checkout(
        self, upstream: Upstream, settings: PoolConfig, idle_limit: float
    ) -> UpstreamConnection | None:
        """Take the newest usable idle connection, or None. Never waits."""
        connections = self._idle.get(upstream)
        if not connections:
            return None
        now = time.monotonic()
        while connections:
            try:
                connection = connections.pop()
            except IndexError:
                break  # somebody else took it
            idle = now - connection.idle_since
            if (
                idle <= idle_limit
                and idle <= connection.idle_limit
                and now - connection.opened_at <= settings.max_age
                and connection.tls is upstream.tls
                and not connection.stream.is_readable()
            ):
                return connection
            connection.stream.close()
        return None

    def checkin(
        self, connection: UpstreamConnection, settings: PoolConfig, keep_alive: int | None
    ) -> None:
        """Keep a connection whose exchange ended cleanly, if there is room for it.

        `keep_alive`: the upstream said that it closes after so many idle seconds; be earlier.
        """
        if keep_alive is not None:
            connection.idle_limit = max(0.0, keep_alive - _KEEP_ALIVE_MARGIN)
        connection.requests += 1
        if settings.idle == 0 or connection.requests >= settings.max_requests:
            connection.stream.close()
            return
        now = connection.idle_since = time.monotonic()
        connections = self._idle.get(connection.upstream)
        if connections is None:
            connections = self._idle.setdefault(connection.upstream, [])
        connections.append(connection)
        if len(connections) > settings.idle and connections[0].idle_since < now - SURPLUS:
            _close_surplus(connections, settings, now)

    def close_expired(
        self, settings: PoolConfig, idle_limit: float, upstreams: tuple[Upstream, ...]
    ) -> None:
        """Close what has aged, what was closed on the other side, and what left the list."""
        listed = set(upstreams)
        for upstream, connections in list(self._idle.items()):
            if upstream not in listed:
                self._idle.pop(upstream, None)
                _close_all(connections)
                continue
            kept = []
            while connection := self.checkout(upstream, settings, idle_limit):
                kept.append(connection)
            connections.extend(reversed(kept))
            _close_surplus(connections, settings, time.monotonic())

    def count_idle(self) -> dict[Upstream, int]:
        """How many connections rest here. For any thread: it may change at any moment."""
        return {upstream: len(kept) for upstream, kept in self._idle.copy().items() if kept}

    def close(self) -> None:
        """Close all idle connections."""
        for connections in self._idle.copy().values():
            _close_all(connections)


def _close_all(connections: list[UpstreamConnection]) -> None:
    while connections:
        try:
            connections.pop().stream.close()
        except IndexError:
            return  # somebody else took it


def _close_surplus(connections: list[UpstreamConnection], settings: PoolConfig, now: float) -> None:
    """Close what is beyond `pool.idle`, unless it was in use a moment ago.

    Requests under way need a connection each, and will soon need as many again. The oldest are
    first, since the newest are taken first.
    """
    try:
        while len(connections) > settings.idle:
            oldest = connections[0]
            if oldest.idle_since >= now - SURPLUS:
                return
            connections.remove(oldest)
            oldest.stream.close()
    except (IndexError, ValueError):
        return  # somebody else took it
