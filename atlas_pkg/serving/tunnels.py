"""Connections that have become tunnels: WebSockets and whatever else a 101 switched to.

A tunnel may live for hours, so it leaves its worker for a thread of its own, which is not counted
against `max_threads`. Draining waits for tunnels like for any other exchange, and cuts those that
are left when the time is up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from atlas_pkg.errors import StreamError
from atlas_pkg.net.relay import Tunnel
from atlas_pkg.net.stream import Stream

log = logging.getLogger("atlas.tunnels")


class Tunnels:
    """Runs tunnels and knows those that are open. Thread-safe."""

    def __init__(self, on_closed: Callable[[Stream], None]) -> None:
        """`on_closed` is told of every client stream whose tunnel has ended."""
        self._on_closed = on_closed

    def start(
        self, client: Stream, upstream: Stream, *, idle_limit: float, on_end: Callable[[], None]
    ) -> None:
        """Take over both streams; they are closed when the tunnel ends, then `on_end` is called."""
        tunnel = Tunnel(client, upstream, idle_limit)

        def run() -> None:
            try:
                tunnel.run()
            except StreamError as error:
                log.debug("tunnel ended: %s", error)
            finally:
                upstream.close()
                on_end()
                self._on_closed(client)

        threading.Thread(target=run, name="tunnel", daemon=True).start()
