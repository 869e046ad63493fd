"""One health probe: connect, ask, judge the answer's head. Blocks.

The answer is read up to the end of its head, and judged by the parser that judges answers to
clients' requests. Redirects are answers like any other. What is behind the head is not waited for.

A fault of this machine, such as having no descriptor left, says nothing about the upstream.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from atlas_pkg.balancing.pool import SPEAKS_TLS, reach
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import HealthCheck, Limits
from atlas_pkg.errors import StreamError, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.message import MessageParser
from atlas_pkg.net.stream import Stream

# Twice what the head of an ordinary answer may have by default (`limits.upstream_head`): a probe
# asks whether the upstream lives, not whether it is tidy.
_MOST_HEAD_BYTES = 128 * 1024

_PROTOCOL = b"HTTP/1."


class Result(NamedTuple):
    """What one probe found."""

    has_passed: bool
    reason: str


class _Failed(Exception):
    """The upstream failed the probe; its text is the reason."""


def probe_upstream(upstream: Upstream, check: HealthCheck) -> Result:
    """Probe `upstream` once, at whichever of its addresses answers first.

    Takes `check.timeout` at most, all together. Blocks. Raises `StreamError` for a fault of this
    machine.
    """
    deadline = time.monotonic() + check.timeout
    if not upstream.endpoints:
        return Result(False, "host name is not resolved")
    try:
        stream = reach(upstream, check.timeout, None)
    except StreamError as error:
        if error.is_own_fault:
            raise
        return Result(False, _explain_connect(error))
    try:
        if not check.path:
            return Result(True, "connected")
        stream.send(_build_request(upstream, check), deadline - time.monotonic())
        status = _read_status(stream, deadline)
        return Result(status in check.expect, f"status {status}")
    except _Failed as failure:
        return Result(False, str(failure))
    except StreamError as error:
        return Result(
            False, "no answer in time" if error.timed_out else f"no answer: {error.reason}"
        )
    finally:
        stream.close()


def _build_request(upstream: Upstream, check: HealthCheck) -> bytes:
    host = check.host.encode("ascii") or upstream.host_field
    return (
        b"GET " + check.path.encode("ascii") + b" HTTP/1.1\r\n"
        b"Host: " + host + b"\r\n"
        b"User-Agent: atlas-health\r\n"
        b"Accept: */*\r\n"
        b"Connection: close\r\n\r\n"
    )


def _explain_connect(error: StreamError) -> str:
    if error.timed_out:
        return "connect timed out"
    if error.reason == "connection refused":
        return "connect refused"
    return f"connect failed: {error.reason}"


def _read_status(stream: Stream, deadline: float) -> int:
    """Read up to the end of the final head; an interim one (RFC 9110 §15.2) may come before."""
    parser = MessageParser(Limits())
    buffered = b""
    read_bytes = 0
    while True:
        while (end := buffered.find(b"\r\n\r\n")) >= 0:
            status = _parse_status(parser, buffered[: end + 4])
            if status >= 200 or status == 101:
                return status
            buffered = buffered[end + 4 :]
        # Can this still become the head of an answer? Else there is nothing to wait for.
        may_be_head = buffered[: len(_PROTOCOL)] == _PROTOCOL[: len(buffered)]
        if buffered.startswith(syntax.TLS_ALERT):
            raise _Failed(SPEAKS_TLS)
        if read_bytes > _MOST_HEAD_BYTES or not may_be_head:
            raise _Failed("answer is not HTTP")
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Failed("no answer in time")
        data = stream.receive(left)
        if not data:
            raise _Failed("answer is incomplete" if read_bytes else "closed without an answer")
        buffered += data
        read_bytes += len(data)


def _parse_status(parser: MessageParser, head: bytes) -> int:
    try:
        return parser.parse_response(head, b"GET").status
    except UpstreamError:
        raise _Failed("answer is not HTTP") from None
