"""One health probe: connect, ask, judge the answer's head.

A probe is a generator over a non-blocking socket. It says what it waits for (`Wait`), and whoever
runs it resumes it when that has come, or throws `TimeoutError` into it when its time is up. So
the steps read from top to bottom as if each of them blocked, and one thread runs a thousand
probes at a time (`health.py`).

The answer is read up to the end of its head, and judged by the grammar that answers to clients'
requests must obey. Redirects are answers like any other. What is behind the head is not waited for.

A fault of this machine, such as having no descriptor left, says nothing about the upstream; it is
raised as `OSError`.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Generator
from typing import NamedTuple

from atlas_pkg.balancing.upstream import Endpoint, Upstream
from atlas_pkg.config.model import HealthCheck
from atlas_pkg.errors import OWN_FAULTS
from atlas_pkg.http1 import syntax

# Twice what the head of an ordinary answer may have by default (`limits.upstream_head`): a probe
# asks whether the upstream lives, not whether it is tidy.
_MOST_HEAD_BYTES = 128 * 1024

_READ_BYTES = 64 * 1024


class Wait(NamedTuple):
    """What a probe waits for: `events` of the selectors module on a socket."""

    sock: socket.socket
    events: int


class Outcome(NamedTuple):
    """What one probe found."""

    has_passed: bool
    reason: str


Probe = Generator[Wait, None, Outcome]


class _Failed(Exception):
    """The upstream failed the probe; its text is the reason."""


def probe_upstream(upstream: Upstream, check: HealthCheck) -> Probe:
    """Probe `upstream` once, whichever of its addresses answers first in their order.

    Raises `OSError` for a fault of this machine.
    """
    sock: socket.socket | None = None
    late = "connect timed out"
    try:
        sock = yield from _connect(upstream)
        if not check.path:
            return Outcome(True, "connected")
        late = "no answer in time"
        yield from _send(sock, _build_request(upstream, check))
        status = yield from _read_status(sock)
        return Outcome(status in check.expect, f"status {status}")
    except TimeoutError:
        return Outcome(False, late)
    except _Failed as failure:
        return Outcome(False, str(failure))
    finally:
        if sock is not None:
            sock.close()


def _build_request(upstream: Upstream, check: HealthCheck) -> bytes:
    host = check.host.encode("ascii") or upstream.host_field
    return (
        b"GET " + check.path.encode("ascii") + b" HTTP/1.1\r\n"
        b"Host: " + host + b"\r\n"
        b"User-Agent: atlas-health\r\n"
        b"Accept: */*\r\n"
        b"Connection: close\r\n\r\n"
    )


def _connect(upstream: Upstream) -> Generator[Wait, None, socket.socket]:
    endpoints = upstream.endpoints
    if not endpoints:
        raise _Failed("host name is not resolved")
    for endpoint in endpoints[:-1]:
        try:
            return (yield from _connect_endpoint(endpoint))
        except _Failed:
            continue  # the last address decides what is reported
    return (yield from _connect_endpoint(endpoints[-1]))


def _connect_endpoint(endpoint: Endpoint) -> Generator[Wait, None, socket.socket]:
    family, sockaddr = endpoint
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _explain_connect(error.errno or 0) from None
    try:
        sock.setblocking(False)
        code = sock.connect_ex(sockaddr)
        if code == errno.EINPROGRESS:
            yield Wait(sock, selectors.EVENT_WRITE)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise _explain_connect(code)
    except BaseException:
        sock.close()
        raise
    return sock


def _explain_connect(code: int) -> Exception:
    """Tell the upstream's failure to be connected to from a fault of this machine."""
    if code in OWN_FAULTS:
        return OSError(code, os.strerror(code))
    if code == errno.ECONNREFUSED:
        return _Failed("connect refused")
    if code == errno.ETIMEDOUT:
        return _Failed("connect timed out")
    return _Failed(f"connect failed: {os.strerror(code).lower()}")


def _send(sock: socket.socket, data: bytes) -> Generator[Wait, None, None]:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            yield Wait(sock, selectors.EVENT_WRITE)
        except OSError as error:
            raise _explain_broken(error) from None


def _read_status(sock: socket.socket) -> Generator[Wait, None, int]:
    """Read up to the end of the final head; an interim one (RFC 9110 §15.2) may come before."""
    buffered = b""
    read_bytes = 0
    while True:
        while (end := buffered.find(b"\r\n\r\n")) >= 0:
            status = _parse_status(buffered[: end + 4])
            if status >= 200 or status == 101:
                return status
            buffered = buffered[end + 4 :]
        if read_bytes > _MOST_HEAD_BYTES or not _may_be_head(buffered):
            raise _Failed("answer is not HTTP")
        yield Wait(sock, selectors.EVENT_READ)
        try:
            data = sock.recv(_READ_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _explain_broken(error) from None
        if not data:
            raise _Failed("answer is incomplete" if read_bytes else "closed without an answer")
        buffered += data
        read_bytes += len(data)


def _may_be_head(beginning: bytes) -> bool:
    """Can this still become the head of an answer? Else there is nothing to wait for."""
    protocol = b"HTTP/1."
    return beginning[: len(protocol)] == protocol[: len(beginning)]


def _parse_status(head: bytes) -> int:
    line_end = head.index(b"\r\n")
    match = syntax.STATUS_LINE.fullmatch(head, 0, line_end)
    if match is None or not syntax.FIELD_BLOCK.fullmatch(head, line_end, len(head) - 2):
        raise _Failed("answer is not HTTP")
    return int(match[2])


def _explain_broken(error: OSError) -> _Failed:
    reason = os.strerror(error.errno).lower() if error.errno else "connection broken"
    return _Failed(f"no answer: {reason}")
