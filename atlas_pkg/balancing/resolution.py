"""Host names of upstreams, resolved off the request path.

A look-up can take seconds, and must never make a request wait. So names are looked up when a
configuration is loaded, and again in the background; requests use what is known. A name that
fails keeps its last good addresses; one that was never resolved makes its upstream answer 502 until
it is.

All addresses of a name are kept and tried in order when connecting, as for `localhost`, which may
be `::1` and `127.0.0.1`.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from atlas_pkg.balancing.upstream import Upstream

log = logging.getLogger("atlas.resolution")

# Seconds between look-ups: well under the TTLs that people use for fail-over by DNS.
REFRESH_INTERVAL = 30.0

# How long loading a configuration waits for its names. A dead name server must not stop it.
FIRST_LOOKUP = 5.0

_LOOKUP_THREADS = 8

LookUp = Callable[..., list[Any]]


class Resolver:
    """Keeps `Upstream.endpoints` of host names up to date, on threads of its own."""

    def __init__(self, look_up: LookUp = socket.getaddrinfo) -> None:
        self._look_up = look_up
        self._stopping = threading.Event()
        # Guards _upstreams and _failed.
        self._lock = threading.Lock()
        self._upstreams: tuple[Upstream, ...] = ()
        self._failed: set[str] = set()
        self._thread: threading.Thread | None = None

    def watch(self, upstreams: Sequence[Upstream]) -> None:
        """Take over a new list; waits a bounded time for names that are not resolved yet."""
        names = tuple(upstream for upstream in upstreams if upstream.needs_resolving)
        with self._lock:
            self._upstreams = names
        self._resolve([upstream for upstream in names if not upstream.endpoints], FIRST_LOOKUP)
        if names and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the background look-ups; does not wait for one under way."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(REFRESH_INTERVAL):
            with self._lock:
                upstreams = self._upstreams
            self._resolve(upstreams, REFRESH_INTERVAL)

    def _resolve(self, upstreams: Sequence[Upstream], patience: float) -> None:
        """Look all of them up, several at a time; returns when done or when `patience` is over."""
        waiting = list(reversed(upstreams))

        def work() -> None:
            while waiting and not self._stopping.is_set():
                try:
                    upstream = waiting.pop()
                except IndexError:
                    return  # another thread took the last one
                self._resolve_one(upstream)

        threads = [
            threading.Thread(target=work, name=f"look-up-{number}", daemon=True)
            for number in range(min(_LOOKUP_THREADS, len(waiting)))
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _resolve_one(self, upstream: Upstream) -> None:
        name = upstream.address
        try:
            found = self._look_up(name, upstream.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if self._note(name, failed=True):
                log.warning("upstream %s: cannot resolve %s: %s", upstream.name, name, error)
            return
        upstream.endpoints = tuple((family, sockaddr) for family, _, _, _, sockaddr in found)
        if self._note(name, failed=False):
            log.info("upstream %s: %s is resolved again", upstream.name, name)

    def _note(self, name: str, *, failed: bool) -> bool:
        """Remember the outcome; returns whether it is news."""
        with self._lock:
            was_failed = name in self._failed
            if failed:
                self._failed.add(name)
            else:
                self._failed.discard(name)
            return failed != was_failed
