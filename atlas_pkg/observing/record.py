"""What happened in one exchange, for those who watch: metrics, access log, explanations.

Nothing of this is kept unless somebody asks for it: without an observer no record is made, and the
road of a request only pays for a few looks at None. Instants are `time.monotonic()`, 0.0 where
a stage was not reached; an observer that wants the time of day adds the difference once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from atlas_pkg.choice import Choice
from atlas_pkg.config.model import DEFAULT_GROUP


class End(enum.StrEnum):
    """How an exchange ended; the values stand in the access log."""

    DONE = "done"  # answered whole, by an upstream or by us
    REFUSED = "refused"  # the request was at fault: a 4xx or 5xx of ours
    CLIENT_GONE = "client-gone"  # the client hung up or stopped reading: logged as 499
    NO_UPSTREAM = "no-upstream"  # nobody available, or the queue took too long: 503
    OVERLOADED = "overloaded"  # no thread was free in time: 503
    CONNECT_FAILED = "connect-failed"
    CONNECT_TIMEOUT = "connect-timeout"
    TLS = "tls"  # no TLS with the upstream: its certificate was not accepted, say: 502
    UPSTREAM_FAILED = "upstream-failed"  # broke or spoke nonsense before its answer: 502
    UPSTREAM_TIMEOUT = "upstream-timeout"  # no answer in time: 504
    UPSTREAM_CUT = "upstream-cut"  # its answer had begun and did not end
    TUNNEL = "tunnel"  # switched protocols; or a connection of mode "tcp" that has come through
    ROUTE = "route"  # a route says what Atlas answers: a redirect, or a fixed answer
    ERROR = "error"  # our own fault: 500


# What stands for the request line of a connection that is passed on unread (mode "tcp").
RAW_LINE = b"TCP"

# As a name of the module: looking it up in its class costs as much as a look at the clock.
DONE = End.DONE


class Times:
    """When an exchange reached each stage; 0.0 where it did not."""

    chosen_at = 0.0  # an upstream was reserved: from `head_at` to here is the queue
    connected_at = 0.0  # a connection was at hand
    asked_at = 0.0  # the head was written
    first_byte_at = 0.0  # the answer's head was read


# For those who look at the times of an exchange that has none.
NO_TIMES = Times()


class Record:
    """One exchange. Written by who serves it, then handed to the observers, who only read it."""

    # What most exchanges never change stands in the class: it costs nothing to begin with.

    host = b""  # as the client asked for it; empty if it did not, or was refused
    origin = (b"", b"")  # Referer and User-Agent
    request_id = b""
    route = ""  # the one that it took, in words; empty if none was meant for it
    group = DEFAULT_GROUP  # whose upstreams were to answer; "-" if none were
    upstream = "-"  # the name of the last one tried; "-" if none
    status = 0  # what the client was sent; 499 if it was gone before
    body_in = 0  # bytes of the request's body, decoded
    body_out = 0  # bytes of the answer's body, decoded
    reused = False  # the upstream connection had been used before
    retries = 0
    retry_refused = False  # there would have been one more, but for the budget of retries
    failures: Sequence[tuple[str, str]] = ()  # (upstream, value of `End`) of each that failed
    choices: list[Choice] | None = None  # why it went where; None: nobody has asked
    end = DONE
    times: Times | None = None  # when it reached each stage; None: nobody shows that
    ended_at = 0.0

    def __init__(self, address: str, line: bytes, head_at: float) -> None:
        self.address = address  # the client's, as far as it can be trusted
        self.line = line  # the request line as received; may hold anything
        self.began_at = head_at  # first byte of the head, where it was waited for
        self.head_at = head_at  # head complete


# Is told of exchanges that have ended, the oldest first. It must not wait for anything.
Observer = Callable[[Sequence[Record]], None]
