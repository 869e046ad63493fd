"""One client, and what becomes of it.

A `Client` is what remains of a client between two requests: a connection, some bytes, a deadline.
It is small on purpose, since most clients say nothing most of the time.

Whoever serves a client returns one of `Next`; nothing below it parks or closes. One place acts on
that (`clients.py`).
"""

from __future__ import annotations

import enum
import time
from typing import Any, Protocol

from atlas_pkg.balancing.pool import Pool, UpstreamConnection
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.http1.forwarding import ClientInfo
from atlas_pkg.net.stream import Ends, Stream
from atlas_pkg.net.tls import TlsStream
from atlas_pkg.serving.generation import Generation


class Next(enum.Enum):
    """What becomes of a client that has been served."""

    PARK = "park"  # it may say more: let it wait until then
    FINISH = "finish"  # its last answer is complete: close gently
    CLOSE = "close"  # close at once
    ABORT = "abort"  # close with a reset, so that nobody takes what was sent for complete
    TAKEN = "taken"  # somebody else serves it now


# As names of the module: looking a member up in its class takes longer than comparing it.
PARK, FINISH, CLOSE, ABORT, TAKEN = Next


class Lane(Protocol):
    """A thread that serves many clients (`lane.py`), as far as those who serve one know it."""

    def park(self, client: Client) -> None:
        """Let `client` wait until it says something. The caller gives it up."""

    def take_back(self, exchange: Any) -> None:
        """Await what the upstream says next: a thread has done what comes before."""

    def ignore(self, connection: UpstreamConnection) -> None:
        """Report no more events of this connection: a thread reads from it now."""


class Opening(enum.Enum):
    """What has to come before a client's first request."""

    HEADER = "a proxy in front says who the client is (PROXY protocol)"
    HANDSHAKE = "both ends agree on keys (TLS)"


class Client:
    """One client's connection. It is parked, or a lane's, or a thread's: one of these at a time."""

    __slots__ = (
        "_own_pool",
        "address",
        "awaits",
        "bound",
        "deadline",
        "ends",
        "generation",
        "head_since",
        "idle_limit",
        "info",
        "is_lingering",
        "is_registered",
        "is_sending",
        "lane",
        "linger_bytes",
        "linger_until",
        "pool",
        "requests",
        "stream",
    )

    def __init__(
        self, stream: Stream, address: str, idle_limit: float, lane: Lane | None, pool: Pool
    ) -> None:
        self.stream = stream
        self.address = address
        self.idle_limit = idle_limit  # for how long it may say nothing between two requests
        self.deadline = 0.0  # when its waiting ends
        # What is still to come before its first request; what a proxy in front has said of its
        # connection.
        self.awaits: Opening | None = None
        self.ends: Ends | None = None
        self.lane = lane  # which serves it; None: a thread of its own does
        self.pool = pool  # of upstream connections, for its requests
        # Connections to upstreams that are told for whom they are (PROXY protocol); made on demand.
        self._own_pool: Pool | None = None
        self.requests = 0
        # Upstream connections that have been told who the client is (NTLM, Negotiate): they serve
        # nobody else, and end with it. The latest is last; None while there are none.
        self.bound: dict[Upstream, UpstreamConnection] | None = None
        # When the first part of an incomplete head came, or since when an opening is due; else 0.
        # While it is set, the deadline is for that.
        self.head_since = 0.0
        self.is_sending = False  # it may still be sending when it gets its last answer
        self.is_lingering = False  # answered for the last time, waiting for the client to close
        self.linger_until = 0.0  # at the most,
        self.linger_bytes = 0  # and while it sends no more than these
        self.is_registered = False  # known to the lane's epoll
        # What forwarding needs to know of this client, as it is in one generation.
        self.generation: Generation | None = None
        self.info: ClientInfo

    @property
    def silent_since(self) -> float:
        """Since when it has been waiting for its next request, or its first word."""
        return self.head_since or self.deadline - self.idle_limit

    def bind(self, connection: UpstreamConnection) -> None:
        """Keep a connection that speaks for this client, for its next request to that upstream."""
        connection.is_bound = True
        connection.requests += 1
        if self.bound is None:
            self.bound = {}
        self.bound[connection.upstream] = connection

    def take_bound(self, upstream: Upstream) -> UpstreamConnection | None:
        """Take the connection to `upstream` that speaks for this client, if there is one."""
        connection = self.bound.pop(upstream, None) if self.bound else None
        if connection is None or not connection.stream.is_readable():
            return connection
        connection.stream.close()
        return None

    def find_bound(self, group: str) -> Upstream | None:
        """The upstream of a group that knows this client, the latest first; None if none does."""
        for upstream, connection in reversed((self.bound or {}).items()):
            if upstream.group == group and not connection.stream.is_readable():
                return upstream
        return None

    @property
    def own_pool(self) -> Pool:
        """A pool that serves no other client. Without a lane, `pool` is one."""
        if self.lane is None:
            return self.pool
        if self._own_pool is None:
            self._own_pool = Pool()
        return self._own_pool

    def release_bound(self) -> None:
        """Close all connections that speak for this client: it is gone."""
        bound, self.bound = self.bound, None
        for connection in (bound or {}).values():
            connection.stream.close()
        if self._own_pool is not None:
            self._own_pool.close()

    def expect(self, opening: Opening, timeout: float) -> None:
        """Let this come before anything else, within so long."""
        self.awaits = opening
        self.head_since = time.monotonic()
        self.deadline = self.head_since + timeout

    def introduce(self, ends: Ends) -> None:
        """A PROXY header has said who it is."""
        self.ends, self.address = ends, ends.source

    def find_ends(self) -> Ends:
        """From where it came, and to where. Raises `StreamError`."""
        ends = self.ends or self.stream.ends()
        assert ends is not None  # clients do not come through socket files
        return ends

    def begin(self) -> None:
        """All that comes before the first request has come."""
        self.awaits = None
        self.head_since = 0.0

    def follow(self, generation: Generation) -> None:
        """Be served as `generation` says, from now on."""
        stream, scheme, certificate = self.stream, "http", None
        if isinstance(stream, TlsStream):
            scheme, certificate = "https", stream.peer_certificate()
        self.info = generation.forwarder.describe_client(self.address, scheme, certificate)
        timeouts = generation.config.timeouts
        self.stream.client_gone, self.idle_limit = timeouts.client_gone, timeouts.client_idle
        self.generation = generation
