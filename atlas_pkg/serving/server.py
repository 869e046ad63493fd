"""Accepting clients: the `ThreadingTCPServer` of the standard library.

Without a lane it is just that: each client gets a thread, which serves it from its first request
to its last. With lanes, `process_request` puts the client at one of them instead, and a client that
says nothing costs no thread. Nothing else happens in the accepting thread, so new clients do not
wait for old ones.

Where there is no room for another client, those that have been silent longest make room, and while
there are none, accepting pauses and the kernel's backlog holds the newcomers. Room is what
`listen.max_connections` and the limit of open files leave. The log says once that others wait, and
again only after a time in which nobody had to.

Not done here: how Atlas ends, and what it waits for then (`control/service.py`).
"""

from __future__ import annotations

import errno
import itertools
import logging
import resource
import select
import socket
import socketserver
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from atlas_pkg.balancing.pool import Pool
from atlas_pkg.errors import Side
from atlas_pkg.net.listener import BACKLOG
from atlas_pkg.net.stream import Stream, plain_address
from atlas_pkg.serving.client import Client, Opening
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.generation import ConfigHolder
from atlas_pkg.serving.lane import EpollLane

log = logging.getLogger("atlas.server")

# Descriptors that a process needs beside its connections: log, epoll, watcher, pipes, probes.
OWN_DESCRIPTORS = 64

# Rest for this long when descriptors or memory have run out; others will be closed meanwhile.
EXHAUSTED_REST = 0.1

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# How many clients one turn of the accepting thread takes.
ACCEPTS_PER_TURN = 64

# On Linux an accepted socket blocks whatever the listening one does; elsewhere it is a copy.
_ACCEPTS_BLOCKING = sys.platform == "linux"

# How soon the accepting thread notices that it should stop.
POLL_INTERVAL = 0.1


class ClientHandler(socketserver.BaseRequestHandler):
    """Serves one client in a thread of its own, which `ThreadingTCPServer` has started for it."""

    server: AtlasServer
    request: Any  # the `Client`

    def handle(self) -> None:
        """Serve the client until it is gone."""
        self.server.serve(self.request)


class AtlasServer(socketserver.ThreadingTCPServer):
    """Accepts clients, and has each served by a lane or by a thread of its own."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        listener: socket.socket,
        holder: ConfigHolder,
        clients: Clients,
        *,
        lanes: Sequence[EpollLane],
        welcome: Callable[[Client], object],
        serve: Callable[[Client], None],
        most_threads: int,
    ) -> None:
        """Takes over `listener`, which is open and listening.

        With `lanes`, `welcome` puts a new client where it is served, and does not wait. Without,
        `serve` serves one from beginning to end, in its own thread; then there are at most
        `most_threads`.
        """
        super().__init__(listener.getsockname(), ClientHandler, bind_and_activate=False)
        self.socket.close()  # the one that the library made for itself
        self.socket = listener
        self.socket.setblocking(False)  # so that a turn can take all who are there, and no more
        self._lanes = itertools.cycle(lanes) if lanes else None
        self._welcome = welcome
        self.serve = serve
        self._most = client_limit() if lanes else min(client_limit(), most_threads)
        self._clients = clients
        self._holder = holder
        self._waiting = select.poll()
        self._waiting.register(listener, select.POLLIN)
        self._is_full = False
        self._is_exhausted = False
        self.turned_at = time.monotonic()  # when it last came to look for new clients

    def service_actions(self) -> None:
        """One more turn of the library's loop."""
        self.turned_at = time.monotonic()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one client, when there is room for it; raises `OSError` to be called again."""
        self._wait_for_room()
        try:
            return self.socket.accept()
        except BlockingIOError:
            self._is_full = self._is_exhausted = False  # nobody waits any more
            raise
        except OSError as error:
            self._forget_if_nobody_waits()
            if error.errno in _EXHAUSTED:
                if not self._is_exhausted:
                    log.error("cannot accept: %s; clients wait", error.strerror)
                self._is_exhausted = True
                time.sleep(EXHAUSTED_REST)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a new client served, and those that came with it.

        Each turn of the library's loop waits for the interpreter lock behind whoever is busy. So
        it takes several clients, else newcomers would starve while others are served.
        """
        self._admit(request, client_address)
        for _ in range(ACCEPTS_PER_TURN - 1):
            try:
                self._admit(*self.get_request())
            except OSError:
                return

    def shutdown_request(self, request: Any) -> None:
        """Called by the library last of all; whoever has served the client has closed it."""

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log what the library caught; it would print a traceback to the terminal."""
        log.error("a client could not be served", exc_info=True)  # noqa: LOG014

    def accept_backlog(self) -> None:
        """Take the clients that the kernel has connected for us already; then stop listening.

        Closing the listener would reset them although they have done nothing wrong.
        """
        try:
            for _ in range(BACKLOG):
                self._admit(*self.socket.accept())  # beyond the limit, too: it is the last time
        except OSError:
            pass
        self.server_close()

    def _admit(self, request: Any, client_address: Any) -> None:
        """Put a new client at a lane, where it waits for its first byte, or start its thread."""
        if not _ACCEPTS_BLOCKING:
            request.setblocking(True)
        address = plain_address(client_address[0])
        generation = self._holder.generation
        config = generation.config
        lane = next(self._lanes) if self._lanes is not None else None
        pool = lane.pool if lane is not None else Pool()
        stream, idle_limit = Stream(request, Side.CLIENT), config.timeouts.client_idle
        client = Client(stream, address, idle_limit, lane, pool)
        if config.listen.proxy_protocol is not None:
            client.expect(Opening.HEADER, config.timeouts.client_head)
        elif generation.tls is not None:
            client.expect(Opening.HANDSHAKE, config.timeouts.tls_handshake)
        self._clients.add(client)
        if lane is not None:
            self._welcome(client)
        else:
            # The library starts a thread for it, and hands on whatever it is given.
            super().process_request(cast("socket.socket", client), client_address)

    def _forget_if_nobody_waits(self) -> None:
        """Where nobody waits the shortage is over: note that, and raise `BlockingIOError`."""
        if not self._waiting.poll(0):
            self._is_full = self._is_exhausted = False
            raise BlockingIOError(errno.EAGAIN, "nobody waits to be accepted")

    def _wait_for_room(self) -> None:
        limit = min(self._holder.generation.config.listen.max_connections, self._most)
        if len(self._clients) < limit:
            return
        self._forget_if_nobody_waits()
        has_room_soon = self._clients.dismiss_idle(1 + len(self._clients) - limit)
        if has_room_soon and self._clients.wait_until_below(limit, POLL_INTERVAL):
            return
        if not self._is_full:
            log.warning(
                "%d clients are connected (listen.max_connections = %d), and none is idle; "
                "others wait",
                len(self._clients),
                self._holder.generation.config.listen.max_connections,
            )
            self._is_full = True
        if not self._clients.wait_until_below(limit, POLL_INTERVAL):
            raise BlockingIOError(errno.EAGAIN, "no room for another client yet")


def client_limit() -> int:
    """How many clients the limit of open files leaves room for, each with an upstream."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (soft - min(OWN_DESCRIPTORS, soft // 2)) // 2)
