"""Every way things fail, each with the party whose fault it was and how far things had come.

Two parties can fail us: the *client* in front and the *upstream* behind. An error names the
party and the stage, because that decides everything that follows: what the client hears and what
the log calls it (the table in `serving/failures.py`), and whether another attempt is allowed
(`proxying/retry.py`). Nothing above `net/` looks at an `errno`; it is translated there, once.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable

# Errors of connecting that mean that this machine has run out of descriptors, memory or ports. They
# are no upstream's fault.
OWN_FAULTS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)


class AtlasError(Exception):
    """The root of all errors that Atlas raises on purpose."""


class ConfigError(AtlasError):
    """A configuration that cannot be used; holds every problem found, a sentence each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class StartError(AtlasError):
    """The program cannot begin to serve: a port in use, an unknown listen host, no permission."""


class ClientError(AtlasError):
    """The client's request is refused with `status`, and its connection is closed.

    `reason` is a short phrase for people that never repeats the client's own bytes.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(f"{status} {reason}")


class MalformedMessage(AtlasError):
    """Bytes that break the grammar of HTTP/1.1, whoever sent them.

    Raised by what reads both directions (`http1/`). A client's becomes a `ClientError` with
    `status`, an upstream's an `UpstreamError`.
    """

    def __init__(self, reason: str, *, status: int = 400) -> None:
        self.reason = reason
        self.status = status
        super().__init__(reason)


class TruncatedMessage(MalformedMessage):
    """A message whose sender closed its connection before it was whole."""


class Side(enum.Enum):
    """The two parties of every conversation."""

    CLIENT = "client"
    UPSTREAM = "upstream"


class StreamError(AtlasError):
    """A connection ended or fell silent while it was needed; `side` tells whose it was.

    Raised by `net/`, which does not know what the bytes meant; `proxying/` turns it into one of the
    errors below, with a stage. `is_own_fault`: this machine lacks something (`OWN_FAULTS`).
    """

    def __init__(
        self, side: Side, reason: str, *, timed_out: bool = False, is_own_fault: bool = False
    ) -> None:
        self.side = side
        self.reason = reason
        self.timed_out = timed_out
        self.is_own_fault = is_own_fault
        super().__init__(f"{side.value}: {reason}")


class TlsError(StreamError):
    """A connection was opened, and TLS could not be agreed upon over it."""

    def __init__(self, cause: StreamError) -> None:
        super().__init__(cause.side, cause.reason, timed_out=cause.timed_out)


class ClientGone(AtlasError):
    """The client closed, reset or stopped reading; there is nobody left to answer."""


class NoUpstream(AtlasError):
    """No upstream is available, or none has had room in time; the client hears 503."""

    def __init__(self, reason: str = "no upstream is available") -> None:
        super().__init__(reason)


class Overloaded(AtlasError):
    """No thread was free in time (`listen.max_threads`); the client hears 503."""

    def __init__(self) -> None:
        super().__init__("no thread was free in time")


class Stage(enum.Enum):
    """How far an attempt had come when its upstream failed."""

    CONNECT = "connect"
    TLS = "tls"
    SEND = "send"
    HEAD = "head"
    BODY = "body"


class UpstreamError(AtlasError):
    """An upstream failed at `stage`.

    `is_stale` is true when the connection had been kept open from an earlier exchange and ended
    before any byte of this answer: the ordinary end of an idle connection, not a verdict on
    the upstream. A fault of this machine (`OWN_FAULTS`) is none either.
    """

    def __init__(
        self,
        stage: Stage,
        reason: str,
        *,
        timed_out: bool = False,
        is_stale: bool = False,
        is_own_fault: bool = False,
    ) -> None:
        self.stage = stage
        self.reason = reason
        self.timed_out = timed_out
        self.is_stale = is_stale
        self.is_own_fault = is_own_fault
        self.upstream = ""  # what the log calls it, filled in by who holds its lease
        # Had it been sent any of the request?
        self.was_asked = stage not in (Stage.CONNECT, Stage.TLS)
        super().__init__(f"{stage.value}: {reason}")
