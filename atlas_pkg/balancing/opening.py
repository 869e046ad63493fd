"""Opening a connection to an upstream, one of its addresses after the other.

It is begun without waiting, so that a worker that leads can go on with other clients meanwhile; who
has time can also wait for it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time

from atlas_pkg.balancing.pool import UpstreamConnection
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.errors import OWN_FAULTS, Side, Stage, StreamError, UpstreamError
from atlas_pkg.net import connect as net_connect
from atlas_pkg.net.connect import UPSTREAM_PATIENCE
from atlas_pkg.net.stream import Stream, set_patience

_BEGUN = frozenset((0, errno.EINPROGRESS))


class Opening:
    """A connection that is being opened. Raises `UpstreamError` at stage CONNECT throughout."""

    __slots__ = ("_deadline", "_left", "_upstream", "stream")

    def __init__(self, upstream: Upstream, timeout: float) -> None:
        """Begin with the first address; `timeout` is for all of them together."""
        if not upstream.endpoints:
            raise UpstreamError(Stage.CONNECT, f"host name {upstream.address} is not resolved")
        self._upstream = upstream
        self._deadline = time.monotonic() + timeout
        self._left = list(reversed(upstream.endpoints))
        self.stream = self._begin_next()

    def look(self) -> UpstreamConnection | None:
        """The connection, if it is open by now. Does not wait."""
        return self._look(0.0)

    def wait(self) -> UpstreamConnection:
        """The connection, as soon as it is open. Blocks."""
        while True:
            connection = self._look(self._deadline - time.monotonic())
            if connection is not None:
                return connection

    def _look(self, timeout: float) -> UpstreamConnection | None:
        sock = self.stream.sock
        poller = select.poll()
        poller.register(sock, select.POLLOUT)
        if not poller.poll(max(0.0, timeout) * 1000):
            if time.monotonic() < self._deadline:
                return None
            sock.close()
            raise UpstreamError(Stage.CONNECT, "connecting took too long", timed_out=True)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            sock.close()
            if not self._left:  # the last address decides what is reported
                raise _failed(code)
            self.stream = self._begin_next()
            return self._look(0.0)
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_patience(sock, receive=UPSTREAM_PATIENCE, send=UPSTREAM_PATIENCE)
        self.stream.is_connecting = False
        return UpstreamConnection(self._upstream, self.stream, time.monotonic())

    def _begin_next(self) -> Stream:
        """Begin with the next address of which it is not known at once that it fails."""
        while True:
            family, sockaddr = self._left.pop()
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                raise _failed(error.errno or 0) from None
            sock.setblocking(False)
            code = sock.connect_ex(sockaddr)
            if code in _BEGUN:
                stream = Stream(sock, Side.UPSTREAM)
                stream.is_connecting = True
                return stream
            sock.close()
            if not self._left:
                raise _failed(code)


def connect(upstream: Upstream, timeout: float) -> UpstreamConnection:
    """Open a connection, trying each address of the upstream; `timeout` is for all together.

    Blocks. Raises `UpstreamError` at stage CONNECT.
    """
    if not upstream.endpoints:
        raise UpstreamError(Stage.CONNECT, f"host name {upstream.address} is not resolved")
    try:
        stream = net_connect.connect(upstream.endpoints, timeout)
    except StreamError as error:
        raise UpstreamError(
            Stage.CONNECT,
            error.reason,
            timed_out=error.timed_out,
            is_own_fault=error.is_own_fault,
        ) from None
    return UpstreamConnection(upstream, stream, time.monotonic())


def _failed(code: int) -> UpstreamError:
    """The error for an `errno`."""
    reason = os.strerror(code).lower()
    return UpstreamError(Stage.CONNECT, reason, is_own_fault=code in OWN_FAULTS)
