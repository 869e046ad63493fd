"""What happened lately, in words: the last events, and the last errors that clients have met.

Both lists are short and bounded; who wants all of it reads the log.

`Errors` is an `Observer` of records: of an exchange that went well it costs two looks. Whatever the
page counts as an error (an answer of 5xx) is listed, whoever made it, and so is what Atlas refused
or had to cut. Errors that are alike but for the time and the client are one line with their number,
or an outage would fill the list with the same line.

`Events` notices changes of upstreams by comparing: once a second their states are handed in, and
what differs from the second before becomes an event. So the one place knows since when a state
lasts, whoever caused it. What flips and flips back within a second is in the log only.

Times come from two clocks: records carry `time.monotonic()`, people want the time of day.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import TypedDict

from atlas_pkg.observing.process_stats import UpstreamNow
from atlas_pkg.observing.record import DONE, End, Record
from atlas_pkg.observing.timeline import show_line

MOST_EVENTS = 50
MOST_ERRORS = 20

# What had failed, where the answer was ours or did not end.
_FAILED = {
    End.REFUSED: "the request was refused",
    End.NO_UPSTREAM: "no upstream was available, or had room in time",
    End.OVERLOADED: "no thread was free in time",
    End.CONNECT_FAILED: "the upstream could not be reached",
    End.CONNECT_TIMEOUT: "connecting to the upstream took too long",
    End.TLS: "TLS with the upstream failed",
    End.UPSTREAM_FAILED: "the upstream failed before its answer had begun",
    End.UPSTREAM_TIMEOUT: "the upstream did not answer in time",
    End.UPSTREAM_CUT: "the upstream failed in the middle of its answer, which was cut",
    End.ERROR: "an error in Atlas; the log has the traceback",
}
_ANSWERED = "the upstream's own answer"
_ROUTED = "the fixed answer of a route"

# A breaker that is not closed.
_BREAKER_KINDS = frozenset({"open", "half-open"})

# See `_kind_of`.
_Kind = tuple[int, str, str, str, str]


class Event(TypedDict):
    """Something that happened; `upstream` is empty where it concerns none."""

    time: float
    kind: str  # state | reload | refused | steering | process
    upstream: str
    text: str


class ErrorLine(TypedDict):
    """Errors that are alike."""

    time: float  # of the last one
    client: str  # of the last one
    line: str  # the request line, without the query
    group: str  # "-" if no upstream was to answer
    upstream: str  # "-" if none was tried
    status: int
    text: str
    count: int  # how many there were


class Errors:
    """The last errors. Thread-safe."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        # Guards the lines, which are in the order of their times.
        self._lock = threading.Lock()
        self._lines: dict[_Kind, ErrorLine] = {}

    def note(self, records: Sequence[Record]) -> None:
        """Keep the exchanges that failed; an `Observer`."""
        for record in records:
            if record.end is not DONE or record.status >= 500:
                own = _ROUTED if record.end is End.ROUTE else _ANSWERED
                text = _FAILED.get(record.end, own if record.status >= 500 else "")
                if text:
                    self._keep(record, text)

    def lines(self) -> list[ErrorLine]:
        """The last errors, the newest first."""
        with self._lock:
            return list(reversed(self._lines.values()))

    def _keep(self, record: Record, text: str) -> None:
        age = self._monotonic() - record.ended_at if record.ended_at else 0.0
        line = ErrorLine(
            time=self._clock() - age,
            client=record.address,
            line=show_line(record.line),
            group=record.group,
            upstream=record.upstream,
            status=record.status,
            text=text,
            count=1,
        )
        kind = _kind_of(line)
        with self._lock:
            if (before := self._lines.pop(kind, None)) is not None:
                line["count"] += before["count"]
            elif len(self._lines) >= MOST_ERRORS:
                del self._lines[next(iter(self._lines))]
            self._lines[kind] = line


def merge_errors(errors: Iterable[ErrorLine]) -> list[ErrorLine]:
    """Make one list, the newest first, of those of several processes."""
    found: dict[_Kind, ErrorLine] = {}
    for error in sorted(errors, key=itemgetter("time"), reverse=True):
        kind = _kind_of(error)
        if kind in found:
            found[kind]["count"] += error["count"]
        else:
            found[kind] = error.copy()
    return list(found.values())[:MOST_ERRORS]


def _kind_of(error: ErrorLine) -> _Kind:
    """What is the same in errors that are one line."""
    return error["status"], error["line"], error["group"], error["upstream"], error["text"]


class Events:
    """The last events. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # Guards what follows.
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._states: dict[str, tuple[UpstreamNow, float]] = {}  # and since when its kind lasts

    def note(self, kind: str, text: str, *, upstream: str = "") -> None:
        """Add an event; `kind` is one of those that `Event` lists."""
        event = Event(time=self._clock(), kind=kind, upstream=upstream, text=text)
        with self._lock:
            self._events.append(event)

    def watch(self, upstreams: Iterable[UpstreamNow]) -> None:
        """Compare the states of all upstreams with those before, and note what is different.

        Upstreams seen for the first time are no event: a start or a reload brought them, and
        that is one already.
        """
        now = self._clock()
        with self._lock:
            known = self._states
            self._states = {}
            for item in upstreams:
                name = item["name"]
                before, since = known.get(name, (item, now))
                if before["kind"] != item["kind"]:
                    text = _tell_change(before, item)
                    self._events.append(Event(time=now, kind="state", upstream=name, text=text))
                    since = now
                self._states[name] = (item, since)

    def since(self, upstream: str) -> float | None:
        """Since when an upstream is in its present state, as far as it was watched."""
        with self._lock:
            known = self._states.get(upstream)
        return known[1] if known else None

    def lines(self) -> list[Event]:
        """The last events, the newest first."""
        with self._lock:
            return list(reversed(self._events))


def _tell_change(before: UpstreamNow, now: UpstreamNow) -> str:
    text = f"{now['state']}: {now['why']}" if now["why"] else now["state"]
    if before["kind"] in _BREAKER_KINDS and now["kind"] == "up":
        text = f"circuit breaker closed, {text}"
    return text
