"""The failure table: everything that can go wrong with an exchange, a row each.

An error says whose fault it was and how far things had come (`errors.py`). Its row says all else:
the one word by which log, metrics and page call it, the status and the reason that the client
hears, whether the upstream's circuit breaker hears of it, and how it is logged. The reasons are
our own wording: an exception's text may hold what is nobody's business.

Answers that Atlas makes itself are built here, so all of them carry a length.
"""

from __future__ import annotations

import email.utils
import html
import http.client
import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from atlas_pkg.balancing.lease import FAILURE, Outcome
from atlas_pkg.config.model import DEFAULT_GROUP
from atlas_pkg.config.pages import names_for
from atlas_pkg.errors import (
    ClientError,
    ClientGone,
    NoUpstream,
    Overloaded,
    Stage,
    StreamError,
    UpstreamError,
)
from atlas_pkg.http1.fields import without
from atlas_pkg.http1.message import Request
from atlas_pkg.logs import Throttle
from atlas_pkg.observing.record import End

log = logging.getLogger("atlas.failures")

_SECRETS = frozenset((b"cookie", b"authorization", b"proxy-authorization"))

# Which key of [timeouts] says how long an upstream may take.
_LIMITS = {
    Stage.CONNECT: "connect",
    Stage.TLS: "connect",
    Stage.SEND: "upstream_body",
    Stage.HEAD: "upstream_head",
    Stage.BODY: "upstream_body",
}

# The line of a request that is refused, as far as the log tells it.
_SHOWABLE = re.compile(r"[ -~]+")
_LONGEST_SHOWN = 200

# HTML among what Accept names, with its parameters; and a parameter that says no to it.
_NAMES_HTML = re.compile(rb"(?:^|,)[ \t]*+text/html[ \t]*+((?:;[^,]*+)?)(?:,|\Z)")
_REFUSES = re.compile(rb";[ \t]*+q=0(?:\.0*+)?[ \t]*+(?:;|\Z)")

NO_PAGES: Mapping[str, bytes] = MappingProxyType({})

_HTML = "text/html; charset=utf-8"

# In whole seconds, with every 503 of ours: when it is worth asking again.
RETRY_AFTER = 5


class Failure(NamedTuple):
    """One way in which an exchange fails."""

    end: End  # its word in log, metrics and page
    status: int  # what the client hears; 0 = what the error says
    reason: str  # in words; empty = what the error says
    reaches_breaker: bool  # is it held against the upstream?
    closes: bool  # does the client's connection end with it?
    level: int  # of the log


_LATE, _BAD = "the upstream did not answer in time", "the upstream failed"
_DEBUG, _INFO = logging.DEBUG, logging.INFO
_WARNING, _ERROR = logging.WARNING, logging.ERROR

# fmt: off
FAILURES = {row.end: row for row in (
    #       word               status reason                    breaker closes level
    # the client's fault
    Failure(End.REFUSED,          0, "",                         False, True,  _INFO),
    Failure(End.CLIENT_GONE,    499, "",                         False, True,  _DEBUG),
    # an upstream's
    Failure(End.NO_UPSTREAM,    503, "no upstream is available", False, False, _WARNING),
    Failure(End.CONNECT_FAILED, 502, _BAD,                       True,  False, _WARNING),
    Failure(End.CONNECT_TIMEOUT, 504, _LATE,                     True,  False, _WARNING),
    Failure(End.TLS,            502, _BAD,                       True,  False, _WARNING),
    Failure(End.UPSTREAM_FAILED, 502, _BAD,                      True,  False, _WARNING),
    Failure(End.UPSTREAM_TIMEOUT, 504, _LATE,                    True,  False, _WARNING),
    Failure(End.UPSTREAM_CUT,   502, _BAD,                       True,  True,  _WARNING),
    # ours
    Failure(End.OVERLOADED,     503, "too much to do",           False, False, _WARNING),
    Failure(End.ERROR,          500, "an error in Atlas",        False, False, _ERROR),
)}
# fmt: on


def find_failure(error: Exception, *, has_started: bool = False) -> Failure:
    """Find the row of `error`; `has_started`: the client had been sent some of the answer."""
    if isinstance(error, UpstreamError):
        return FAILURES[End.UPSTREAM_CUT if has_started else _end_of(error)]
    if isinstance(error, ClientError):
        return FAILURES[End.REFUSED]._replace(status=error.status, reason=error.reason)
    if isinstance(error, (ClientGone, StreamError)):  # a stream's own error is the client's here
        return FAILURES[End.CLIENT_GONE]
    if isinstance(error, NoUpstream):
        return FAILURES[End.NO_UPSTREAM]
    if isinstance(error, Overloaded):
        return FAILURES[End.OVERLOADED]
    return FAILURES[End.ERROR]


def _end_of(error: UpstreamError) -> End:
    """What it is called that an upstream has failed before its answer had begun."""
    if error.timed_out:
        return End.UPSTREAM_TIMEOUT if error.was_asked else End.CONNECT_TIMEOUT
    if error.was_asked:
        return End.UPSTREAM_FAILED
    return End.TLS if error.stage is Stage.TLS else End.CONNECT_FAILED


def judge(error: Exception) -> Outcome:
    """What `error` says about the upstream that was tried.

    Nothing, where its connection had merely gone stale, or where this machine lacks something.
    """
    if isinstance(error, UpstreamError) and (error.is_stale or error.is_own_fault):
        return Outcome.NONE
    return FAILURE if find_failure(error).reaches_breaker else Outcome.NONE


def log_failure(
    throttle: Throttle,
    client: str,
    request_line: bytes,
    error: Exception,
    failure: Failure,
    *,
    group: str = DEFAULT_GROUP,
) -> None:
    """Log a failure at its level, each cause once in a while."""
    line = request_line.decode("latin-1")
    if failure.end is End.ERROR:
        log.error("500 for %s: an error in Atlas", line, exc_info=error)
    elif failure.end is End.CLIENT_GONE:
        log.debug("%s: client gone: %s", client, error)
    elif isinstance(error, ClientError):
        what = f"refused with {error.status}: {error.reason}"
        # It may be anything: what a terminal might obey does not come into the log.
        shown = f" ({line[:_LONGEST_SHOWN]})" if _SHOWABLE.fullmatch(line) else ""
        throttle.write(failure.level, what, "%s: %s%s", client, what, shown)
    else:
        reason = str(error) if group == DEFAULT_GROUP else f"{error} (group {group})"
        if isinstance(error, UpstreamError):  # without a name it is a file of mode "static"
            reason = f"upstream {error.upstream} {error}" if error.upstream else error.reason
            reason += f" (timeouts.{_LIMITS[error.stage]})" if error.timed_out else ""
        what = "answer cut" if failure.end is End.UPSTREAM_CUT else str(failure.status)
        throttle.write(failure.level, reason, "%s for %s: %s", what, line, reason)


def _accepts_html(accept: bytes) -> bool:
    """Does Accept name HTML, and not to refuse it (RFC 9110 §12.5.1)?"""
    named = _NAMES_HTML.search(accept.lower())
    return named is not None and not _REFUSES.search(named[1])


def build_last_answer(request: Request, persistence: bytes) -> bytes:
    """Answer a request that nobody may pass on any more, as its last recipient (RFC 9110 §7.6.2).

    TRACE tells what has arrived, but nothing that a script must not read (§9.3.8).
    """
    body = b""
    if request.method == b"TRACE":
        body = request.line + without(request.fields.block, _SECRETS) + b"\r\n"
    kind = b"Content-Type: message/http\r\n" if body else b""
    return b"HTTP/1.1 200 OK\r\nDate: %b\r\n%bContent-Length: %d\r\n%b\r\n%b" % (
        email.utils.formatdate(usegmt=True).encode("ascii"),
        kind,
        len(body),
        persistence,
        body,
    )


def build_answer(
    status: int,
    reason: str,
    *,
    accept: bytes = b"",
    fields: bytes = b"",
    pages: Mapping[str, bytes] = NO_PAGES,
    persistence: bytes = b"Connection: close\r\n",
) -> bytes:
    """Build a whole answer: HTML for a client that asks for it, else one line of text.

    `reason` is our own wording and never repeats what the client sent; it may be empty. `fields`
    are further lines of the head. `pages` are those of `[error_pages]`.
    """
    phrase = http.client.responses.get(status, "Error")
    accepts_html = _accepts_html(accept)
    page = next((pages[name] for name in names_for(status) if name in pages), None)
    if accepts_html and page is not None:
        kind, payload = _HTML, page
    elif accepts_html:
        kind = _HTML
        title = html.escape(f"{status} {phrase}")
        body = (
            f"<!DOCTYPE html>\n<html lang=en><title>{title}</title>\n"
            f"<h1>{title}</h1>\n{f'<p>{html.escape(reason)}</p>' if reason else ''}\n</html>\n"
        )
        payload = body.encode()
    else:
        kind = "text/plain; charset=utf-8"
        payload = f"{status} {phrase}{': ' if reason else ''}{reason}\n".encode()
    head = [
        f"HTTP/1.1 {status} {phrase}",
        f"Date: {email.utils.formatdate(usegmt=True)}",
        f"Content-Type: {kind}",
        "Vary: Accept",  # for caches: some statuses are kept without being asked to
        f"Content-Length: {len(payload)}",
    ]
    if status == 503:
        head.append(f"Retry-After: {RETRY_AFTER}")
    return "\r\n".join(head).encode() + b"\r\n" + fields + persistence + b"\r\n" + payload
