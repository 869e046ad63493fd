"""The last minute, second by second: from counters that only grow to rates and curves.

Counting costs the road of a request next to nothing because counters are only ever added to.
What people want are differences: somebody reads all counters once a second and feeds them in here,
and the difference of two readings over the time between them is a rate.

Keys are pairs: what is counted, and the upstream, or "" for all together. A counter that has
become smaller belonged to a process that was replaced; its difference counts as zero.

Times are arguments, as instants of `time.monotonic()`. Not done here: counting (`metrics.py`), what
happened in words (`journal.py`), and the thread that feeds.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, TypedDict

Key = tuple[str, str]

# A minute of curves, at a reading a second.
KEPT_SECONDS = 60

# Over how many seconds a rate is taken: long enough to be read, short enough to follow.
RATE_WINDOW = 5

# Where nothing is known of an upstream, since a reload brought it later.
_UNKNOWN = "-"


class Sample(TypedDict):
    """The numbers of one second, and at the same time those at the head of the page."""

    rate: float  # requests a second
    connections: int
    error_percent: float  # answers with 5xx, whoever made them, among all
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    bytes_in_rate: float
    bytes_out_rate: float
    queue: int  # requests that wait for a slot under upstreams.max_connections


class Strip(TypedDict):
    """An upstream's last minute; the newest second comes last, and there may be fewer than 60."""

    requests: list[int]  # that it answered
    failed: list[int]  # attempts that failed
    marks: str  # a letter a second: u in rotation, d down or breaker open, o taken out by hand


class Reading(NamedTuple):
    """All counters at one instant, and the states of the upstreams, which cannot be added up."""

    at: float
    counters: Mapping[Key, float]
    marks: Mapping[str, str]  # a letter per upstream, see `status.mark_of`


class History:
    """The readings of the last minute. Thread-safe."""

    def __init__(self, kept: int = KEPT_SECONDS) -> None:
        # Guards _readings. A reading is never changed, so it may leave the lock.
        self._lock = threading.Lock()
        # One more than seconds: the first is only what the second is compared with.
        self._readings: deque[Reading] = deque(maxlen=kept + 1)

    def feed(
        self,
        now: float,
        counters: Mapping[Key, float],
        marks: Mapping[str, str] | None = None,
    ) -> None:
        """Take the reading of `now`, once a second. The mappings must not change afterwards.

        One that is no later than the last is left out: the clock has not moved.
        """
        reading = Reading(now, counters, marks or {})
        with self._lock:
            if not self._readings or now > self._readings[-1].at:
                self._readings.append(reading)

    def increase(self, key: Key, seconds: int = KEPT_SECONDS) -> float:
        """By how much a counter grew in the last `seconds` readings."""
        readings = self._last(seconds)
        return sum(_steps(readings, key))

    def rate(self, key: Key, seconds: int = RATE_WINDOW) -> float:
        """How much a counter grows per second, over the last `seconds` readings."""
        readings = self._last(seconds)
        if len(readings) < 2:
            return 0.0
        return sum(_steps(readings, key)) / (readings[-1].at - readings[0].at)

    def rates(self, key: Key) -> list[float]:
        """The rate of each second, the newest last."""
        readings = self._last()
        spans = (after.at - before.at for before, after in itertools.pairwise(readings))
        return [step / span for step, span in zip(_steps(readings, key), spans, strict=True)]

    def share_percent(self, key: Key, whole: Key, seconds: int = KEPT_SECONDS) -> float:
        """What one counter's growth is of another's, in percent; 0 where neither grew."""
        total = self.increase(whole, seconds)
        return 100 * self.increase(key, seconds) / total if total else 0.0

    def strip(self, upstream: str) -> Strip:
        """One upstream's last minute, from the counters "requests" and "failures"."""
        readings = self._last()
        marks = (reading.marks.get(upstream, _UNKNOWN) for reading in readings[1:])
        return Strip(
            requests=[round(step) for step in _steps(readings, ("requests", upstream))],
            failed=[round(step) for step in _steps(readings, ("failures", upstream))],
            marks="".join(marks),
        )

    def _last(self, seconds: int | None = None) -> list[Reading]:
        """The readings that span the last `seconds`, or all."""
        with self._lock:
            readings = list(self._readings)
        return readings if seconds is None else readings[-seconds - 1 :]


def _steps(readings: list[Reading], key: Key) -> list[float]:
    """How a counter grew from each reading to the next; one that just appeared began at zero."""
    values = [reading.counters.get(key, 0.0) for reading in readings]
    return [max(0.0, after - before) for before, after in itertools.pairwise(values)]
