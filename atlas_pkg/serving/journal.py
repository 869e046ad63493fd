"""What happened lately, in words: the last events, and the last errors that Atlas answered with.

Both lists are short and bounded; who wants all of it reads the log. Errors that are alike but for
the time and the client are one line with their number, or an outage would fill the list with the
same line. The journal is an `Observer` of records: of an exchange that went well it costs one look
into a set.

Changes of upstreams are noticed by comparing: once a second their states are handed in, and
what differs from the second before becomes an event. So the one place knows since when a state
lasts, whoever caused it. What flips and flips back within a second is in the log only.

Times come from two clocks: records carry `time.monotonic()`, people want the time of day.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter

from atlas_pkg.record import DONE, End, Record
from atlas_pkg.serving.status import ErrorLine, Event, State
from atlas_pkg.serving.timeline import show_line

MOST_EVENTS = 50
MOST_ERRORS = 20

# The answers that Atlas makes itself, and what had failed.
_FAILED = {
    End.REFUSED: "the request was refused",
    End.NO_UPSTREAM: "no upstream was available, or had room in time",
    End.OVERLOADED: "no thread was free in time",
    End.CONNECT_FAILED: "the upstream could not be reached",
    End.CONNECT_TIMEOUT: "connecting to the upstream took too long",
    End.UPSTREAM_FAILED: "the upstream failed before its answer had begun",
    End.UPSTREAM_TIMEOUT: "the upstream did not answer in time",
    End.UPSTREAM_CUT: "the upstream failed in the middle of its answer, which was cut",
    End.ERROR: "an error in Atlas; the log has the traceback",
}
_WELL = frozenset(End) - _FAILED.keys()

# See `_kind_of`.
_Kind = tuple[int, str, str, str]

# A breaker that is not closed.
_BREAKER_KINDS = frozenset({"open", "half-open"})


class Journal:
    """The last events and errors. Thread-safe."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        # Guards everything below.
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._errors: dict[_Kind, ErrorLine] = {}  # in the order of their times
        self._states: dict[str, tuple[State, float]] = {}  # and since when its kind lasts

    def note(self, kind: str, text: str, *, upstream: str = "") -> None:
        """Add an event; `kind` is one of those that `status.Event` lists."""
        event = Event(time=self._clock(), kind=kind, upstream=upstream, text=text)
        with self._lock:
            self._events.append(event)

    def observe(self, records: Sequence[Record]) -> None:
        """Keep the exchanges that failed; an `Observer`."""
        for record in records:
            if record.end is not DONE and record.end not in _WELL:  # the first is the quicker look
                self._keep(record)

    def _keep(self, record: Record) -> None:
        age = self._monotonic() - record.ended_at if record.ended_at else 0.0
        line = ErrorLine(
            time=self._clock() - age,
            client=record.address,
            line=show_line(record.line),
            upstream=record.upstream,
            status=record.status,
            text=_FAILED[record.end],
            count=1,
        )
        kind = _kind_of(line)
        with self._lock:
            if (before := self._errors.pop(kind, None)) is not None:
                line["count"] += before["count"]
            elif len(self._errors) >= MOST_ERRORS:
                del self._errors[next(iter(self._errors))]
            self._errors[kind] = line

    def watch(self, states: Mapping[str, State]) -> None:
        """Compare the states of all upstreams with those before, and note what is different.

        Upstreams seen for the first time are no event: a start or a reload brought them, and
        that is one already.
        """
        now = self._clock()
        with self._lock:
            known = self._states
            self._states = {}
            for name, state in states.items():
                before, since = known.get(name, (state, now))
                if before.kind != state.kind:
                    text = _tell_change(before, state)
                    self._events.append(Event(time=now, kind="state", upstream=name, text=text))
                    since = now
                self._states[name] = (state, since)

    def since(self, upstream: str) -> float | None:
        """Since when an upstream is in its present state, as far as it was watched."""
        with self._lock:
            known = self._states.get(upstream)
        return known[1] if known else None

    def events(self) -> list[Event]:
        """The last events, the newest first."""
        with self._lock:
            return list(reversed(self._events))

    def errors(self) -> list[ErrorLine]:
        """The last errors, the newest first."""
        with self._lock:
            return list(reversed(self._errors.values()))


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
    return error["status"], error["line"], error["upstream"], error["text"]


def _tell_change(before: State, state: State) -> str:
    text = f"{state.words}: {state.why}" if state.why else state.words
    if before.kind in _BREAKER_KINDS and state.kind == "up":
        text = f"circuit breaker closed, {text}"
    return text
