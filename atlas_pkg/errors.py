"""Every way things fail, each with its side, its stage and the status a client hears.

Two parties can fail us: the *client* in front and the *upstream* behind. An error names the
party and how far the exchange had come, because that decides everything that follows: what
the client is answered (`serving/connection.py`), whether another attempt is allowed
(`serving/proxy.py`) and what the log says. Nothing above `net/` and `balancing/pool.py` looks
at an `errno`; they translate it once into one of these.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable

# Descriptors, memory or ports of its own are what this machine lacks when a connection cannot be
# begun for one of these reasons. That is no upstream's fault.
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


class Side(enum.Enum):
    """The two parties of every conversation."""

    CLIENT = "client"
    UPSTREAM = "upstream"


class StreamError(AtlasError):
    """A connection ended or fell silent while it was needed; `side` tells whose it was.

    Raised by `net/`, which does not know what the bytes meant; serving turns it into one of the
    errors below, with a stage. `is_own_fault`: this machine could not begin (`OWN_FAULTS`).
    """

    def __init__(
        self, side: Side, reason: str, *, timed_out: bool = False, is_own_fault: bool = False
    ) -> None:
        self.side = side
        self.reason = reason
        self.timed_out = timed_out
        self.is_own_fault = is_own_fault
        super().__init__(f"{side.value}: {reason}")


class ClientGone(AtlasError):
    """The client closed, reset or stopped reading; there is nobody left to answer."""


class NoUpstream(AtlasError):
    """No upstream is available; the client hears 503 with `Retry-After` (whole seconds)."""

    def __init__(self, retry_after: int = 5) -> None:
        self.retry_after = retry_after
        super().__init__("no upstream is available")


class Stage(enum.Enum):
    """How far an attempt had come when its upstream failed."""

    CONNECT = "connect"
    SEND = "send"
    HEAD = "head"
    BODY = "body"


class UpstreamError(AtlasError):
    """An upstream failed at `stage`.

    `is_stale` is true when the connection had been kept open from an earlier exchange and ended
    before any byte of this answer: the ordinary end of an idle connection, not a verdict on
    the upstream. Neither is a fault of this machine (`OWN_FAULTS`).
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
        self.upstream = ""  # its name, filled in by who chose it
        super().__init__(f"{stage.value}: {reason}")

    @property
    def status(self) -> int:
        """504 where time ran out, else 502 (RFC 9110 §15.6.3, §15.6.5)."""
        return 504 if self.timed_out else 502
