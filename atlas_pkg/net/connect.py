"""Open a connection to one of several addresses, in time.

A host name may have addresses that swallow connections beside some that work. So the time is shared
among them: the next address is tried when one fails or has not answered for a quarter of a second,
and the first that connects wins (the idea of RFC 8305, "Happy Eyeballs", without its sorting).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

from atlas_pkg.errors import OWN_FAULTS, Side, StreamError
from atlas_pkg.net.stream import Stream, set_patience

# One way to reach a server: address family and what `socket.connect` takes.
Endpoint = tuple[socket.AddressFamily, tuple[Any, ...]]

# How long an address is waited for before the next one is tried as well (RFC 8305 §5).
NEXT_ADDRESS_AFTER = 0.25

# How long a read from an upstream blocks before the client is watched as well. Most answers
# come sooner, and then cost one system call.
UPSTREAM_PATIENCE = 0.25


def connect(endpoints: Sequence[Endpoint], timeout: float) -> Stream:
    """Open a connection to the first of `endpoints` that answers; `timeout` is for all together.

    Blocks. Raises `StreamError`: the last failure, or that time has run out.
    """
    deadline = time.monotonic() + timeout
    untried = list(reversed(endpoints))
    trying: dict[int, socket.socket] = {}
    failure = StreamError(Side.UPSTREAM, "has no address")
    poller = select.poll()
    try:
        while untried or trying:
            if untried:
                try:
                    sock = _begin(untried.pop())
                except OSError as error:
                    failure = _explain(error.errno or 0)
                    continue
                trying[sock.fileno()] = sock
                poller.register(sock, select.POLLOUT)
            left = deadline - time.monotonic()
            wait = min(left, NEXT_ADDRESS_AFTER) if untried else left
            for fd, _ in poller.poll(max(0.0, wait) * 1000):
                poller.unregister(fd)
                sock = trying.pop(fd)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return _settle(sock)
                sock.close()
                failure = _explain(code)
            if time.monotonic() >= deadline:
                raise StreamError(Side.UPSTREAM, "connecting took too long", timed_out=True)
        raise failure
    finally:
        for sock in trying.values():
            sock.close()


def _begin(endpoint: Endpoint) -> socket.socket:
    """Begin to connect; raises `OSError` where it is known at once that this fails."""
    family, address = endpoint
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code not in {0, errno.EINPROGRESS}:
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def _settle(sock: socket.socket) -> Stream:
    """Make an open connection one of ours."""
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_patience(sock, receive=UPSTREAM_PATIENCE, send=UPSTREAM_PATIENCE)
    return Stream(sock, Side.UPSTREAM)


def _explain(code: int) -> StreamError:
    """The error for an `errno`."""
    return StreamError(Side.UPSTREAM, os.strerror(code).lower(), is_own_fault=code in OWN_FAULTS)
