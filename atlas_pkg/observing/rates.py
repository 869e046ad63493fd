"""The last minute, second by second: from counters that only grow to rates, curves and quantiles.

Counting costs the road of a request next to nothing because counters are only ever added to.
What people want are differences: somebody reads all counters once a second and feeds them in here,
and the difference of two readings over the time between them is a rate.

Rates are those of the last few seconds (`RATE_WINDOW`), and so are the quantiles of all requests.
A single upstream may have few, so its quantiles are those of the last minute.

Times are arguments, as instants of `time.monotonic()`. Not done here: counting (`metrics.py`), what
happened in words (`event_log.py`), and the thread that feeds.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypedDict

from atlas_pkg.observing.metrics import (
    ALL,
    BYTES,
    DURATIONS,
    FAILURES,
    NOBODY,
    REQUESTS,
    Snapshot,
    buckets_of,
    estimate_quantile,
    split_key,
)
from atlas_pkg.observing.process_stats import ProcessStats, key_of

# A minute of curves, at a reading a second.
KEPT_SECONDS = 60

# Over how many seconds a rate is taken: long enough to be read, short enough to follow.
RATE_WINDOW = 5

# Letters of `Strip.marks`, and that of an upstream that a reload brought later.
_MARKS = {"up": "u", "half-open": "u", "drain": "o", "maintenance": "o"}
_ILL, _UNKNOWN = "d", "-"

_QUANTILES = (0.5, 0.95, 0.99)


class Latency(TypedDict):
    """Quantiles in milliseconds; None where nothing was measured."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Sample(Latency):
    """The numbers of one second, and at the same time those at the head of the page."""

    rate: float  # requests a second
    connections: int
    error_percent: float  # answers with 5xx, whoever made them, among all
    bytes_in_rate: float
    bytes_out_rate: float
    queue: int  # requests that wait for room at an upstream, or for a thread


class Strip(TypedDict):
    """An upstream's last minute; the newest second comes last, and there may be fewer than 60."""

    requests: list[int]  # that it answered
    failed: list[int]  # attempts that failed
    marks: str  # a letter a second: u in rotation, d down or breaker open, o taken out by hand


class UpstreamRates(Latency):
    """How one upstream did."""

    rate: float
    share_percent: float  # of the requests of the last minute
    strip: Strip


class _Counts(NamedTuple):
    """What was counted for one upstream, or for all."""

    requests: int
    errors: int  # of them, those answered with 5xx
    failures: int
    buckets: Sequence[int]


_NOTHING = _Counts(0, 0, 0, array("Q", buckets_of({})))


class _Reading(NamedTuple):
    """All counters at one instant, and how things were then. Never changed."""

    at: float
    upstreams: dict[str, _Counts]  # by the key of `metrics.name_key`
    own: int  # requests that no upstream has answered
    total: _Counts
    bytes_in: float
    bytes_out: float
    connections: int
    queue: int
    marks: dict[str, str]

    def of(self, key: str) -> _Counts:
        """The counts of one upstream; one that is not there yet begins at zero."""
        return self.upstreams.get(key, _NOTHING)


class Rates:
    """The readings of the last minute. Thread-safe."""

    def __init__(self) -> None:
        # Guards the readings. One is never changed, so it may leave the lock.
        self._lock = threading.Lock()
        # One more than seconds: the first is only what the second is compared with.
        self._readings: deque[_Reading] = deque(maxlen=KEPT_SECONDS + 1)

    def feed(self, now: float, snapshot: Snapshot, stats: ProcessStats) -> None:
        """Take the reading of `now`, once a second.

        One that is no later than the last is left out: the clock has not moved.
        """
        reading = _read(now, snapshot, stats)
        with self._lock:
            if not self._readings or now > self._readings[-1].at:
                self._readings.append(reading)

    def samples(self) -> list[Sample]:
        """A sample for each second of the last minute, the newest last."""
        readings = self._last()
        return [_sample(readings[: end + 1], 1) for end in range(1, len(readings))]

    def present(self) -> Sample:
        """The numbers of now; as `samples`, but with rates that do not jump about."""
        return _sample(self._last(), RATE_WINDOW)

    def of_upstream(self, key: str) -> UpstreamRates:
        """How one upstream did, which is counted as `key`."""
        readings = self._last()
        counts = [reading.of(key) for reading in readings]
        served = [item.total.requests - item.own for item in readings]
        recent = readings[-RATE_WINDOW - 1 :]
        return UpstreamRates(
            rate=_per_second(recent, [reading.of(key).requests for reading in recent]),
            share_percent=_percent(_growth([item.requests for item in counts]), _growth(served)),
            strip=Strip(
                requests=_steps([item.requests for item in counts]),
                failed=_steps([item.failures for item in counts]),
                marks="".join(reading.marks.get(key, _UNKNOWN) for reading in readings[1:]),
            ),
            **_latency(counts),
        )

    def _last(self) -> list[_Reading]:
        with self._lock:
            return list(self._readings)


def _read(now: float, snapshot: Snapshot, stats: ProcessStats) -> _Reading:
    requests, failures = snapshot[REQUESTS.name], snapshot[FAILURES.name]
    durations, transferred = snapshot[DURATIONS.name], snapshot[BYTES.name].get(ALL, {})
    upstreams = {
        name: _Counts(
            requests=int(sum(requests.get(name, {}).values())),
            errors=int(requests.get(name, {}).get("5xx", 0)),
            failures=int(sum(failures.get(name, {}).values())),
            # An array takes a quarter of a list, and with hundreds of upstreams that counts.
            buckets=array("Q", buckets_of(durations.get(name, {}))),
        )
        for name in requests.keys() | failures.keys()
    }
    return _Reading(
        at=now,
        upstreams=upstreams,
        own=sum(item.requests for key, item in upstreams.items() if split_key(key)[1] == NOBODY),
        total=_add(upstreams.values()),
        bytes_in=transferred.get("in", 0),
        bytes_out=transferred.get("out", 0),
        connections=stats["connections"],
        queue=stats["queue"],
        marks={key_of(item): _MARKS.get(item["kind"], _ILL) for item in stats["upstreams"]},
    )


def _add(counts: Iterable[_Counts]) -> _Counts:
    columns = list(zip(_NOTHING, *counts, strict=True))
    requests, errors, failures = (sum(column) for column in columns[:3])
    return _Counts(
        requests, errors, failures, [sum(bucket) for bucket in zip(*columns[3], strict=True)]
    )


def _sample(readings: Sequence[_Reading], seconds: int) -> Sample:
    """The numbers at the end of `readings`; rates of the last `seconds`."""
    last, recent = readings[-seconds - 1 :], readings[-RATE_WINDOW - 1 :]
    return Sample(
        rate=_per_second(last, [reading.total.requests for reading in last]),
        connections=last[-1].connections if last else 0,
        error_percent=_percent(
            _growth([reading.total.errors for reading in recent]),
            _growth([reading.total.requests for reading in recent]),
        ),
        bytes_in_rate=_per_second(last, [reading.bytes_in for reading in last]),
        bytes_out_rate=_per_second(last, [reading.bytes_out for reading in last]),
        queue=last[-1].queue if last else 0,
        **_latency([reading.total for reading in recent]),
    )


def _latency(counts: Sequence[_Counts]) -> Latency:
    """The quantiles of what came between the first and the last."""
    buckets: list[int] = []
    if counts:
        pairs = zip(counts[0].buckets, counts[-1].buckets, strict=True)
        buckets = [max(0, now - then) for then, now in pairs]
    found = (estimate_quantile(buckets, share) for share in _QUANTILES)
    p50, p95, p99 = (None if duration is None else duration * 1000 for duration in found)
    return Latency(p50_ms=p50, p95_ms=p95, p99_ms=p99)


def _steps(values: Sequence[float]) -> list[int]:
    """How a counter grew from each reading to the next. One that shrank began anew."""
    return [round(max(0.0, after - before)) for before, after in pairwise(values)]


def _growth(values: Sequence[float]) -> float:
    return sum(_steps(values))


def _per_second(readings: Sequence[_Reading], values: Sequence[float]) -> float:
    return _growth(values) / (readings[-1].at - readings[0].at) if len(readings) > 1 else 0.0


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0
