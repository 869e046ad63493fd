"""Host names of upstreams, resolved off the request path.

A look-up can take seconds, and must never make a request wait. So names are looked up before a
configuration is put in force, and again in the background; requests use what is known. A name that
fails keeps its last good addresses; one that was never resolved makes its upstream answer 502 until
it is, and is asked for again soon.

All addresses of a name are kept, for `net/connect.py` to find one that answers: `localhost` may be
`::1` and `127.0.0.1`.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from atlas_pkg.balancing.upstream import Upstream, parse_literal
from atlas_pkg.config.model import UpstreamConfig
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

LookUp = Callable[..., list[Any]]

# A name with the port that goes with it.
Host = tuple[str, int]


class Resolver:
    """Keeps `Upstream.endpoints` of host names up to date, on threads of its own."""

    def __init__(self, look_up: LookUp = socket.getaddrinfo) -> None:
        self._look_up = look_up
        # Guards everything below, and tells the thread that waits that something is different.
        self._changed = threading.Condition()
        self._is_stopping = False
        self._known: dict[Host, tuple[Endpoint, ...]] = {}
        self._failed: set[Host] = set()
        self._upstreams: tuple[Upstream, ...] = ()
        self._thread: threading.Thread | None = None

    def look_up(self, upstreams: Sequence[UpstreamConfig]) -> dict[Host, tuple[Endpoint, ...]]:
        """Resolve the host names of `upstreams`; returns what is known of them in time.

        Blocks for a bounded time, where there are names that are not known yet.
        """
        hosts = {
            (item.address, item.port)
            for item in upstreams
            if not parse_literal(item.address, item.port)
        }
        with self._changed:
            missing = hosts - self._known.keys()
        self._resolve(missing, FIRST_LOOKUP)
        with self._changed:
            return {host: self._known[host] for host in hosts if host in self._known}

    def watch(self, upstreams: Sequence[Upstream]) -> None:
        """Keep these resolved from now on, and no others. Returns at once."""
        names = tuple(upstream for upstream in upstreams if upstream.needs_resolving)
        with self._changed:
            self._upstreams = names
            self._hand_out()
            hosts = {(upstream.address, upstream.port) for upstream in names}
            self._known = {host: self._known[host] for host in hosts if host in self._known}
            self._failed &= hosts
            self._changed.notify()
            if names and self._thread is None:
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
                hosts = {(upstream.address, upstream.port) for upstream in self._upstreams}
                delays = {
                    host: delays.get(host, FIRST_RETRY) for host in hosts - self._known.keys()
                }
                due = {
                    host: due.get(host, now + delays.get(host, REFRESH_INTERVAL)) for host in hosts
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
                    delays[host] = min(2 * delays[host], REFRESH_INTERVAL)

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
        try:
            found = self._look_up(name, port, type=socket.SOCK_STREAM)
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
            self._known[host] = tuple((family, sockaddr) for family, _, _, _, sockaddr in found)
            self._hand_out()
        if was_failed:
            log.info("%s is resolved again", name)

    def _hand_out(self) -> None:
        """Give what is known to whom it concerns. Caller holds the lock."""
        for upstream in self._upstreams:
            known = self._known.get((upstream.address, upstream.port))
            if known is not None:
                upstream.endpoints = known
