"""Which route a request takes: the first that matches, as an upstream will understand the request.

Hosts are found in a dictionary, and so are the beginnings of a path, from slash to slash; of the
routes that are found the first in the file is taken. So a hundred routes cost no more than one. A
path is compared as it is written, but for spellings that are equal everywhere (`http1/target.py`).

A route with `from`, or with a fixed answer, is a *fence*: somebody is to be kept out. It is of no
use if `/x/../admin` gets around one that stands before `/admin`, and reaches an upstream that
follows `..`. So where there are fences, a path that servers read in different ways is looked up in
every reading. A fence that any of them meets counts; where one and the same fence is met by all but
the path as it is written, that one decides, and otherwise the request is refused: nobody can say
what it means. Capitals are no other reading: `/ADMIN` is not `/admin`.

It belongs to this room and not to the proxy's, since an exchange has its group from the beginning:
for its record, for the queue, and for the upstream that its client belongs to.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence
from operator import attrgetter

from atlas_pkg.config.model import RouteConfig
from atlas_pkg.config.route_rules import PLACEHOLDER
from atlas_pkg.config.rules import Address
from atlas_pkg.errors import ClientError
from atlas_pkg.http1.forwarding import ClientInfo, Forwarder
from atlas_pkg.http1.message import Request
from atlas_pkg.http1.target import find_readings, is_odd, normalize_host, normalize_path

# RFC 9110 §15.4.9: the same request once more, there and from now on.
_USUAL_REDIRECT = 308

# Hosts and addresses that are remembered; a client may make up any number of the former, and of any
# length. No name is longer than 253 letters (RFC 1035 §2.3.4), so longer hosts are not remembered,
# and the end of a name tells it; not so the end of a host, which may be all zeros of a port.
_REMEMBERED = 1024
_MOST_OF_HOST = 512

_number_of = attrgetter("number")

_UNCERTAIN = "the path can be read in more than one way"


class Route:
    """One route. Immutable."""

    __slots__ = (
        "_redirect",
        "group",
        "is_fence",
        "name",
        "networks",
        "number",
        "path",
        "status",
        "strip",
    )

    def __init__(self, config: RouteConfig, number: int) -> None:
        """`number` is its place in the file, from 1 on."""
        self.number = number
        # How people are told of it.
        self.name = f"route {number} ({config.pattern}) → {config.target}"
        self.path = config.path.encode("ascii")
        self.networks = config.from_
        self.group = config.group  # its name; empty: Atlas answers itself
        # What is taken off the path before it is sent on.
        self.strip = self.path if config.strip else b""
        self.status = config.status or (_USUAL_REDIRECT if config.redirect else 0)
        self.is_fence = bool(config.from_) or self.status >= 400
        self._redirect = config.redirect

    def build_location(self, request: Request) -> bytes:
        """Where it redirects a request to; empty if it does not. Raises `ClientError`.

        What is put in was checked when the request was read: no line ends, and no "/" in the host.
        """
        target = request.target.decode("ascii")
        uri = target if target.startswith("/") else "/"
        path, _, query = uri.partition("?")
        host = re.sub(r":[0-9]*\Z", "", (request.host or b"").decode("ascii"))
        if not host and "{host}" in self._redirect:
            raise ClientError(400, "the Host field is missing")
        values = {"uri": uri, "path": path, "query": query, "host": host}
        return PLACEHOLDER.sub(lambda match: values[match[1]], self._redirect).encode("ascii")


class _Table:
    """The routes of one host."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """The `routes` come in the order of the file."""
        self._by_path: dict[bytes, list[Route]] = {}
        for route in routes:
            self._by_path.setdefault(route.path, []).append(route)
        self._for_all = self._by_path.pop(b"", [])
        self._most_slashes = max((path.count(b"/") for path in self._by_path), default=0)
        self.has_fences = any(route.is_fence for route in routes)
        self.has_networks = any(route.networks for route in routes)

    def match(self, path: bytes, address: Address | None) -> Route | None:
        """The first route that matches; the `address` is that of the client, if it matters."""
        found, end = self._for_all, 0
        for _ in range(self._most_slashes):
            end = path.find(b"/", end + 1)
            if (more := self._by_path.get(path if end < 0 else path[:end])) is not None:
                found = found + more
            if end < 0:
                break
        for route in sorted(found, key=_number_of) if len(found) > 1 else found:
            if not route.networks or any(address in network for network in route.networks):
                return route
        return None


class Router:
    """The routes of one configuration. Immutable, thread-safe."""

    def __init__(self, routes: Sequence[RouteConfig], forwarder: Forwarder) -> None:
        """`forwarder` says where a client is, as far as those in between can be trusted."""
        self._forwarder = forwarder
        self._routes = [
            (config.host, Route(config, number)) for number, config in enumerate(routes, 1)
        ]
        self._tables = {host: self._build_table(host) for host, _ in self._routes}
        self._others = self._build_table("")
        self._find_table = functools.lru_cache(_REMEMBERED)(self._look_up)
        self._parse_address = functools.lru_cache(_REMEMBERED)(_parse_address)

    def find(self, request: Request, client: ClientInfo) -> Route | None:
        """The route that a request takes; None: none is meant for it.

        Raises `ClientError` where nobody can say whether a fence stands before it.
        """
        host = request.host or b""
        find_table = self._find_table if len(host) <= _MOST_OF_HOST else self._look_up
        table = find_table(host)
        address = None
        if table.has_networks:
            address = self._parse_address(self._forwarder.client_address(request, client))
        path = normalize_path(request.target.partition(b"?")[0])
        found = table.match(path, address)
        if table.has_fences and is_odd(path):
            return _settle(table, path, address, found)
        return found

    def _build_table(self, host: str) -> _Table:
        """The routes for requests to `host`; "*.example.com" stands for those that have no own."""
        return _Table([route for pattern, route in self._routes if _holds(pattern, host)])

    def _look_up(self, host: bytes) -> _Table:
        name = normalize_host(host)[-_MOST_OF_HOST:]
        if name in self._tables:
            return self._tables[name]
        while "." in name:  # the longest pattern first: what else matches is in its table as well
            name = name.partition(".")[2]
            if f"*.{name}" in self._tables:
                return self._tables[f"*.{name}"]
        return self._others


def _settle(
    table: _Table, path: bytes, address: Address | None, found: Route | None
) -> Route | None:
    """Decide about a path that servers read in different ways; `found` is for it as written."""
    if found is not None and found.status >= 400:
        return found  # it leads to no upstream
    readings = find_readings(path)
    if found is not None and found.strip and readings is not None:
        # An upstream that is told only the rest may climb out of that: /v1/../admin is its /admin,
        # which is known here as /v1/admin.
        rest = find_readings(path.removeprefix(found.strip) or b"/")
        readings = None if rest is None else readings | {found.strip + one for one in rest}
    if readings is None:
        raise ClientError(400, _UNCERTAIN)
    others = {table.match(reading, address) for reading in readings} - {found}
    fences = [route for route in others if route is not None and route.is_fence]
    if not fences:
        return found
    if len(others) > 1 or fences[0].strip:  # of what is not written it cannot be taken off
        raise ClientError(400, _UNCERTAIN)
    return fences[0]


def _holds(pattern: str, host: str) -> bool:
    """Is a route for `pattern` meant for `host`, or for all that another pattern stands for?"""
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return pattern in {"", host}


def _parse_address(text: bytes) -> Address:
    return ipaddress.ip_address(text.decode("ascii"))
