"""What ties a client to an upstream: the key that is hashed, and the cookie that names one.

The address that counts is the trusted one. A client can write what it likes into X-Forwarded-For,
so only what a trusted proxy has appended is believed: the rightmost address that is not itself one
of the trusted proxies.
"""

from __future__ import annotations

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.lease import Affinity
from atlas_pkg.balancing.sticky import StickySessions, read_cookie
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import HASHES, Routing
from atlas_pkg.config.rules import parse_hash_on
from atlas_pkg.http1.forwarding import ClientInfo, Forwarder
from atlas_pkg.http1.message import Request


class AffinityReader:
    """Reads what ties a client to an upstream, for one group. Thread-safe."""

    def __init__(
        self,
        routing: Routing,
        balancer: Balancer,
        forwarder: Forwarder,
        sticky: StickySessions | None,
    ) -> None:
        self._balancer = balancer
        self._forwarder = forwarder
        self._sticky = sticky
        self._hashes = routing.strategy in HASHES
        on = routing.hash_on if routing.strategy == "consistent_hash" else "client_ip"
        self._hash_on, name = parse_hash_on(on)
        self._hash_name = name.encode("ascii")

    def read(self, request: Request, client: ClientInfo) -> Affinity:
        """What the balancer is told of whoever sent this request."""
        key = self._key(request, client) if self._hashes else b""
        upstream, is_due = None, False
        if self._sticky is not None:
            value = self._sticky.find(request.fields.values(b"cookie"))
            name = self._sticky.match(value) if value is not None else None
            upstream = self._balancer.by_name.get(name) if name is not None else None
            is_due = value is not None and self._sticky.is_due(value)
        return Affinity(key, upstream, is_due)

    def mark(self, affinity: Affinity, upstream: Upstream) -> bytes:
        """The Set-Cookie line for an answer of `upstream`; empty if the client knows it already."""
        if self._sticky is None or (affinity.sticky is upstream and not affinity.is_due):
            return b""
        return b"Set-Cookie: %b\r\n" % self._sticky.set_cookie(upstream.name)

    def _key(self, request: Request, client: ClientInfo) -> bytes:
        """What is hashed; the client's address where the request lacks what was asked for."""
        key = None
        if self._hash_on == "path":
            key = request.target.partition(b"?")[0]
        elif self._hash_on == "header":
            key = request.fields.get(self._hash_name.lower())
        elif self._hash_on == "cookie":
            values = request.fields.values(b"cookie")
            cookies = (c for value in values for c in read_cookie(value, self._hash_name))
            key = next(cookies, None)
        return key if key is not None else self._forwarder.client_address(request, client)
