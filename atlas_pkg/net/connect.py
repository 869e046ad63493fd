"""Opening a connection to the first of several addresses that answers.

A host name often has several addresses, and one of them may lead nowhere: an IPv6 route that
swallows packets, a machine that is gone. To wait for the first one's timeout would make every such
connection slow; to try all at once would open connections that nobody needs. So the next address is
tried when the one before has failed, or has not answered for a quarter of a second, and goes on
trying. The first that connects is taken and the others are closed: "happy eyeballs", RFC 8305.

Of a single address that costs what connecting with a timeout costs: one `connect`, one `poll`.

A socket file is reached at once or not at all, but for one case: where the server has not accepted
those who came before, and its backlog is full. Non-blocking, that would be an error (nginx's
"Resource temporarily unavailable"), so there the kernel is given the time to wait for it.

Not done here: looking names up (`balancing/resolver.py`), keeping what was opened
(`balancing/pool.py`).
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

# One way to reach an upstream: address family and what `socket.connect` takes.
Endpoint = tuple[socket.AddressFamily, Any]

# So long an address is waited for before the next one is tried as well (RFC 8305 §5).
ATTEMPT_DELAY = 0.25

# How long a read from an upstream blocks before the client is watched as well. Most answers
# come sooner, and then cost one system call.
UPSTREAM_PATIENCE = 0.25

_BEGUN = frozenset((0, errno.EINPROGRESS))


def connect(endpoints: Sequence[Endpoint], timeout: float) -> Stream:
    """Open a connection to the first of `endpoints` that answers; `timeout` is for all together.

    Blocks. There has to be one at least. Raises `StreamError` for the upstream's side, with the
    reason why the last one failed; `is_own_fault` if that lay with this machine.
    """
    if endpoints[0][0] is socket.AF_UNIX:
        return _connect_file(endpoints[0][1], timeout)
    now = time.monotonic()
    deadline, next_start = now + timeout, now
    untried = list(reversed(endpoints))
    connecting: dict[int, socket.socket] = {}
    poller = select.poll()
    failure = _explain(errno.EADDRNOTAVAIL)
    try:
        while untried or connecting:
            if untried and (now >= next_start or not connecting):
                family, address = untried.pop()
                next_start = now + ATTEMPT_DELAY
                try:
                    sock = socket.socket(family, socket.SOCK_STREAM)
                except OSError as error:
                    failure = _explain(error.errno or 0)
                    continue
                connecting[sock.fileno()] = sock
                sock.setblocking(False)
                code = sock.connect_ex(address)
                if code not in _BEGUN:
                    connecting.pop(sock.fileno()).close()
                    failure = _explain(code)
                    continue
                poller.register(sock, select.POLLOUT)
            until = min(deadline, next_start) if untried else deadline
            for fd, _ in poller.poll(max(0.0, until - now) * 1000):
                sock = connecting.pop(fd)
                poller.unregister(fd)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    sock.setblocking(True)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return _take(sock)
                sock.close()
                failure = _explain(code)
                next_start = now  # nothing is gained by waiting any longer
            now = time.monotonic()
            if now >= deadline and connecting:
                raise StreamError(Side.UPSTREAM, "connecting took too long", timed_out=True)
        raise failure
    finally:
        for sock in connecting.values():
            sock.close()


def _connect_file(path: str, timeout: float) -> Stream:
    """Connect to whoever listens at a socket file now. Blocks. Raises `StreamError`."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise _explain(error.errno or 0) from None
    set_patience(sock, receive=UPSTREAM_PATIENCE, send=timeout)
    code = sock.connect_ex(path)
    if not code:
        return _take(sock)
    sock.close()
    if code == errno.EAGAIN:
        raise StreamError(Side.UPSTREAM, "connecting took too long", timed_out=True)
    raise _explain(code)


def _take(sock: socket.socket) -> Stream:
    set_patience(sock, receive=UPSTREAM_PATIENCE, send=UPSTREAM_PATIENCE)
    return Stream(sock, Side.UPSTREAM)


def _explain(code: int) -> StreamError:
    """Translate what the kernel reports when a connection cannot be opened."""
    reason = os.strerror(code).lower()
    is_late = code == errno.ETIMEDOUT
    return StreamError(Side.UPSTREAM, reason, timed_out=is_late, is_own_fault=code in OWN_FAULTS)
