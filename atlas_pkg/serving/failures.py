"""What went wrong, in the client's words: the status, a short reason, and how it is recorded.

An error says whose fault it was and how far the exchange had come (`errors.py`); this is the table
from there to what is answered. The reasons are our own wording: an exception's text may hold what
is nobody's business.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from atlas_pkg.errors import (
    ClientError,
    ClientGone,
    NoUpstream,
    Side,
    Stage,
    StreamError,
    UpstreamError,
)
from atlas_pkg.logs import Throttle
from atlas_pkg.observing.record import End

log = logging.getLogger("atlas.connection")


class Failure(NamedTuple):
    """An answer that Atlas makes itself."""

    status: int
    reason: str
    end: End
    retry_after: int | None = None


def explain(error: Exception) -> Failure:
    """Say what a client is to be told about `error`; everything unknown is our own fault."""
    if isinstance(error, ClientError):
        return Failure(error.status, error.reason, End.REFUSED)
    if isinstance(error, NoUpstream):
        reason = "no upstream is available"
        return Failure(503, reason, End.NO_UPSTREAM, retry_after=error.retry_after)
    if isinstance(error, UpstreamError):
        reason = "the upstream did not answer in time" if error.timed_out else "the upstream failed"
        return Failure(error.status, reason, _end_of(error))
    return Failure(500, "an error in Atlas", End.ERROR)


def _end_of(error: UpstreamError) -> End:
    if error.stage is Stage.CONNECT:
        return End.CONNECT_TIMEOUT if error.timed_out else End.CONNECT_FAILED
    return End.UPSTREAM_TIMEOUT if error.timed_out else End.UPSTREAM_FAILED


def translate(
    error: StreamError, stage: Stage, *, is_stale: bool = False
) -> ClientGone | UpstreamError:
    """Give a stream's failure its meaning: whose it was, and at which stage."""
    if error.side is Side.CLIENT:
        return ClientGone(error.reason)
    # Silence is no sign of a stale connection: asking again would only wait as long again.
    is_stale = is_stale and not error.timed_out
    return UpstreamError(stage, error.reason, timed_out=error.timed_out, is_stale=is_stale)


def log_failure(
    throttle: Throttle, request_line: bytes, error: Exception, failure: Failure
) -> None:
    """Log what is not the client's fault; that is logged where it is refused."""
    line = request_line.decode("latin-1")
    if isinstance(error, NoUpstream):
        throttle.write(logging.WARNING, "none", "503 for %s: %s", line, error)
    elif isinstance(error, UpstreamError):
        upstream = error.upstream or "an upstream"
        throttle.write(
            logging.WARNING,
            f"{upstream} {error}",
            "%d for %s: upstream %s %s",
            failure.status,
            line,
            upstream,
            error,
        )
    elif not isinstance(error, ClientError):
        log.error("500 for %s: an error in Atlas", line, exc_info=error)
