"""Accepting clients: the `ThreadingTCPServer` of the standard library, with the gate for threads.

The library's loop waits for the listening socket and accepts. Where it would start a thread for
each connection, `process_request` puts the connection at the gate: a client that says nothing costs
no thread. Nothing else happens in the accepting thread, so new clients do not wait for old ones.

At the connection limit, or without descriptors, accepting pauses and the kernel's backlog holds
the newcomers. The log says so once, until a time comes when nobody waits any more.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import socketserver
import sys
import time
from typing import Any

from atlas_pkg.errors import Side
from atlas_pkg.net.listener import BACKLOG
from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.clients import ClientConnection, Clients
from atlas_pkg.serving.gate import Gate
from atlas_pkg.serving.generation import ConfigHolder

log = logging.getLogger("atlas.server")

# Rest for this long when descriptors or memory have run out; others will be closed meanwhile.
EXHAUSTED_REST = 0.1

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# How many clients one turn of the accepting thread takes.
ACCEPTS_PER_TURN = 64

# On Linux an accepted socket blocks whatever the listening one does; elsewhere it is a copy.
_ACCEPTS_BLOCKING = sys.platform == "linux"

# How soon the accepting thread notices that it should stop.
POLL_INTERVAL = 0.1


class AtlasServer(socketserver.ThreadingTCPServer):
    """Accepts clients and puts them at the gate."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, listener: socket.socket, gate: Gate, clients: Clients, holder: ConfigHolder
    ) -> None:
        """Takes over `listener`, which is open and listening."""
        super().__init__(
            listener.getsockname(), socketserver.BaseRequestHandler, bind_and_activate=False
        )
        self.socket.close()  # the one that the library made for itself
        self.socket = listener
        self.socket.setblocking(False)  # so that a turn can take all who are there, and no more
        self._gate = gate
        self._clients = clients
        self._holder = holder
        self._waiting = select.poll()
        self._waiting.register(listener, select.POLLIN)
        self._is_full = False
        self._is_exhausted = False

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one client, when there is room for it; raises `OSError` to be called again."""
        self._wait_for_room()
        try:
            return self.socket.accept()
        except OSError as error:
            self._forget_if_nobody_waits()
            if error.errno in _EXHAUSTED:
                if not self._is_exhausted:
                    log.error("cannot accept: %s; clients wait", error.strerror)
                self._is_exhausted = True
                time.sleep(EXHAUSTED_REST)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Put a new client at the gate, and those that came with it.

        Each turn of the library's loop waits for the interpreter lock behind all busy workers. So
        it takes several clients, else newcomers would starve while others are served.
        """
        self._admit(request, client_address)
        self._admit_more(ACCEPTS_PER_TURN - 1)

    def _admit_more(self, most: int) -> None:
        """Admit up to `most` clients that the kernel has connected for us already."""
        for _ in range(most):
            try:
                self._admit(*self.get_request())
            except OSError:
                return

    def _admit(self, request: Any, client_address: Any) -> None:
        """Put a new client at the gate, where it waits for its first byte."""
        if not _ACCEPTS_BLOCKING:
            request.setblocking(True)
        address = client_address[0]
        # An IPv4 client of a socket that takes both kinds appears as ::ffff:192.0.2.1.
        if address.startswith("::ffff:") and "." in address:
            address = address[7:]
        address = address.partition("%")[0]
        timeouts = self._holder.current().config.timeouts
        stream = Stream(request, Side.CLIENT)
        self._clients.add(stream)
        self._gate.park(ClientConnection(stream, address, time.monotonic() + timeouts.client_idle))

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log what the library caught; it would print a traceback to the terminal."""
        log.error("a new client could not be taken", exc_info=True)  # noqa: LOG014

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

    def _forget_if_nobody_waits(self) -> None:
        """End a time of shortage, which was logged once; raises `BlockingIOError`."""
        if not self._waiting.poll(0):
            self._is_full = self._is_exhausted = False
            raise BlockingIOError(errno.EAGAIN, "nobody waits to be accepted")

    def _wait_for_room(self) -> None:
        limit = self._holder.current().config.listen.max_connections
        if self._clients.wait_until_below(limit, 0):
            return
        self._forget_if_nobody_waits()
        if not self._is_full:
            log.warning("%d clients are connected (listen.max_connections); others wait", limit)
            self._is_full = True
        if not self._clients.wait_until_below(limit, POLL_INTERVAL):
            raise BlockingIOError(errno.EAGAIN, "no room for another client yet")
