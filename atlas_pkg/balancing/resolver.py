"""Host names of upstreams, resolved off the request path.

A look-up can take seconds, and must never make a request wait. So names are looked up before a
configuration is put in force, and again in the background; requests use what is known. A name that
fails keeps its last good addresses; one that was never resolved makes its upstream answer 502 until
it is, and is asked for again soon.

All addresses of a name are kept, for `net/connect.py` to find one that answers: `localhost` may be
`::1` and `127.0.0.1`. With `upstreams.resolve` each of them is a server of its own instead, as is
meant by names with many servers behind them (docker's, headless services of Kubernetes): `expand`
makes them, and `on_change` is called when the answer is another one.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from atlas_pkg.balancing.upstream import Upstream, parse_literal
from atlas_pkg.config.model import Config, UpstreamConfig
from atlas_pkg.net.connect import Endpoint

log = logging.getLogger("atlas.resolver")

# Seconds between look-ups: well under the TTLs that people use for fail-over by DNS.
REFRESH_INTERVAL = 30.0

# A name that was never resolved is asked for after so long, then after twice as long, and so on up
# to the interval above: at the start of a whole cluster the name server may be the last to come up.
FIRST_RETRY = 1.0

# How long loading a configuration waits for its names. A dead name server must not stop it.
FIRST_LOOKUP = 5.0

_LOOKUP_THREADS = 8

# A name with the port that goes with it.
Host = tuple[str, int]


class Resolver:
    """Keeps what host names lead to up to date, on threads of its own."""

    def __init__(
        self,
        look_up: Callable[..., list[Any]] = socket.getaddrinfo,
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called when the addresses of a name with `resolve` are not what they were.

        It is called on a thread of the resolver's own, without any lock held.
        """
        self._on_change = on_change
        self._look_up = look_up
        # Guards everything below, and tells the thread that waits that something is different.
        self._changed = threading.Condition()
        self._is_stopping = False
        self._known: dict[Host, tuple[Endpoint, ...]] = {}
        self._failed: set[Host] = set()
        self._intervals: dict[Host, float] = {}  # between two look-ups, of all that are watched
        self._expanded: set[Host] = set()  # those of which every address is a server
        self._has_news = False  # about one of these
        self._upstreams: tuple[Upstream, ...] = ()
        self._thread: threading.Thread | None = None

    def look_up(self, upstreams: Sequence[UpstreamConfig]) -> dict[Host, tuple[Endpoint, ...]]:
        """Resolve the host names of `upstreams`; returns what is known of them in time.

        Blocks for a bounded time, where there are names that are not known yet.
        """
        hosts = {_host_of(config) for config in upstreams if _is_name(config)}
        with self._changed:
            self._expanded |= {_host_of(config) for config in upstreams if config.resolve}
            missing = hosts - self._known.keys()
        self._resolve(missing, FIRST_LOOKUP)
        with self._changed:
            return {host: self._known[host] for host in hosts if host in self._known}

    def expand(self, config: Config) -> Config:
        """Put a server for each address in the place of those with `resolve`, as far as known."""
        upstreams: list[UpstreamConfig] = []
        for upstream in config.upstreams:
            with self._changed:
                known = self._known.get(_host_of(upstream), ()) if upstream.resolve else ()
            addresses = sorted({sockaddr[0] for _, sockaddr in known}, key=_order)
            upstreams += [
                replace(
                    upstream,
                    name=f"{upstream.name}@{address}",
                    address=address,
                    host=upstream.address,
                )
                for address in addresses
            ] or [upstream]
        return replace(config, upstreams=tuple(upstreams))

    def watch(self, configs: Sequence[UpstreamConfig], upstreams: Sequence[Upstream]) -> None:
        """Keep the names of `configs` resolved from now on, and no others. Returns at once.

        `upstreams` are given their addresses.
        """
        named = [config for config in configs if _is_name(config)]
        with self._changed:
            self._upstreams = tuple(upstream for upstream in upstreams if upstream.needs_resolving)
            self._hand_out()
            self._intervals = {}
            for config in named:
                host, interval = _host_of(config), config.resolve or REFRESH_INTERVAL
                self._intervals[host] = min(interval, self._intervals.get(host, math.inf))
            self._expanded = {_host_of(config) for config in named if config.resolve}
            hosts = self._intervals.keys()
            self._known = {host: self._known[host] for host in hosts if host in self._known}
            self._failed &= hosts
            self._changed.notify()
            if hosts and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the background look-ups; does not wait for one under way."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def _run(self) -> None:
        """Look up again and again, each name when its time has come."""
        due: dict[Host, float] = {}
        delays: dict[Host, float] = {}  # of those that were never resolved
        while True:
            with self._changed:
                now = time.monotonic()
                intervals = self._intervals
                delays = {
                    host: min(delays.get(host, FIRST_RETRY), interval)
                    for host, interval in intervals.items()
                    if host not in self._known
                }
                due = {
                    host: min(due.get(host, math.inf), now + delays.get(host, interval))
                    for host, interval in intervals.items()
                }
                if self._is_stopping:
                    return
                if not due or min(due.values()) > now:
                    self._changed.wait(min(due.values()) - now if due else None)
                    continue
            ready = [host for host, instant in due.items() if instant <= now]
            self._resolve(ready, REFRESH_INTERVAL)
            for host in ready:
                del due[host]
                if host in delays:
                    delays[host] *= 2
            with self._changed:
                has_news, self._has_news = self._has_news, False
            if has_news and not self._is_stopping:
                self._tell()

    def _tell(self) -> None:
        try:
            self._on_change()
        except Exception:
            # A background thread: whatever broke, names have to be looked up.
            log.exception("taking over new addresses failed")

    def _resolve(self, hosts: Iterable[Host], patience: float) -> None:
        """Look all of them up, several at a time; returns when done or when `patience` is over."""
        waiting: queue.SimpleQueue[Host] = queue.SimpleQueue()
        for host in hosts:
            waiting.put(host)

        def work() -> None:
            while not self._is_stopping:
                try:
                    host = waiting.get_nowait()
                except queue.Empty:
                    return
                self._resolve_one(host)

        threads = [
            threading.Thread(target=work, name=f"look-up-{number}", daemon=True)
            for number in range(min(_LOOKUP_THREADS, waiting.qsize()))
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _resolve_one(self, host: Host) -> None:
        name, port = host
        # A server of its own is only what can be reached from here. Where addresses stand in for
        # one another, all of them are tried.
        flags = socket.AI_ADDRCONFIG if host in self._expanded else 0
        try:
            found = self._look_up(name, port, type=socket.SOCK_STREAM, flags=flags)
        except (OSError, UnicodeError) as error:
            with self._changed:
                is_news = host not in self._failed
                self._failed.add(host)
            if is_news:
                log.warning("cannot resolve %s: %s", name, error)
            return
        with self._changed:
            was_failed = host in self._failed
            self._failed.discard(host)
            endpoints = tuple((family, sockaddr) for family, _, _, _, sockaddr in found)
            if host in self._expanded and set(endpoints) != set(self._known.get(host, ())):
                self._has_news = True
            self._known[host] = endpoints
            self._hand_out()
        if was_failed:
            log.info("%s is resolved again", name)

    def _hand_out(self) -> None:
        """Give what is known to whom it concerns. Caller holds the lock."""
        for upstream in self._upstreams:
            known = self._known.get((upstream.address, upstream.port))
            if known is not None:
                upstream.endpoints = known


def _host_of(config: UpstreamConfig) -> Host:
    return (config.address, config.port)


def _is_name(config: UpstreamConfig) -> bool:
    return not parse_literal(config.address, config.port)


def _order(address: str) -> tuple[int, bytes]:
    """IPv4 before IPv6, each by number: name servers shuffle their answers."""
    ip = ipaddress.ip_address(address)
    return (ip.version, ip.packed)
