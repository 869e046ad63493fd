"""Counting what happens: one row of counters for each upstream.

Every request is counted, so counting must cost next to nothing. Exchanges come here many at a time
(`observing/observers.py`), and one lock, taken once for all of them, keeps the counters exact.

A `Snapshot` is plain enough to be sent to another process as JSON; `merge` makes one of several.
Durations are kept as a histogram, from which quantiles are estimated as Prometheus does it.

Upstreams that leave the configuration keep their counters until the program ends, since a counter
that vanishes looks like a restart. So that no chain of reloads fills the memory, the names are
bounded; those beyond the bound share one. Not done here: how the numbers are shown
(`prometheus.py`), and what is no count but a state (`gauges.py`).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import add
from typing import TypedDict

from atlas_pkg.observing.record import End, Record

# Upper bounds in seconds, each included. They are dense where a proxy's upstreams answer, and end
# where `timeouts.upstream_head` does by default. One more bucket holds what took longer.
BUCKET_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

# By the first digit of the status. None at all (no answer could be sent) is the first.
CODE_CLASSES = ("other", "1xx", "2xx", "3xx", "4xx", "5xx")

# Who made the answers that no upstream made.
NOBODY = "-"

# Names of upstreams that are told apart, and the name that all others share.
MOST_NAMES = 2000
OTHER_NAME = "_other"

# Looking three members up in their class would cost half as much again as all of `note`.
_DONE, _TUNNEL = End.DONE, End.TUNNEL

# Ends that are failures of ours or of an upstream.
_FAILURES = frozenset(End) - {_DONE, _TUNNEL, End.REFUSED, End.CLIENT_GONE}

# Ends after which the answer was ours, whoever had been asked.
_OWN_ANSWERS = (_FAILURES - {End.UPSTREAM_CUT}) | {End.REFUSED}


class UpstreamCounts(TypedDict):
    """What was counted for one upstream, or for `NOBODY`: what Atlas answered itself."""

    requests: dict[str, int]  # by code class, all of `CODE_CLASSES`
    failures: dict[str, int]  # by reason: the stage of a failed attempt, or how the exchange ended
    retries: int  # attempts elsewhere after this upstream had failed
    reused: int  # requests over a connection that had been used before
    bytes_in: int  # of the requests' bodies
    bytes_out: int  # of the answers' bodies
    duration_buckets: list[int]  # one per bound and one beyond; each request is in one of them
    duration_sum: float  # seconds


class Snapshot(TypedDict):
    """All counters at one moment."""

    upstreams: dict[str, UpstreamCounts]


class _Row:
    """The counters of one upstream."""

    __slots__ = (
        "buckets",
        "bytes_in",
        "bytes_out",
        "classes",
        "duration",
        "failures",
        "retries",
        "reused",
    )

    def __init__(self) -> None:
        self.classes = [0] * len(CODE_CLASSES)
        self.buckets = [0] * (len(BUCKET_BOUNDS) + 1)
        self.duration = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.retries = 0
        self.reused = 0
        self.failures: dict[str, int] = {}

    def show(self) -> UpstreamCounts:
        """Return the counters as plain values."""
        return UpstreamCounts(
            requests=dict(zip(CODE_CLASSES, self.classes, strict=True)),
            failures=dict(sorted(self.failures.items())),
            retries=self.retries,
            reused=self.reused,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            duration_buckets=list(self.buckets),
            duration_sum=self.duration,
        )


class Tallies:
    """Counts exchanges. Thread-safe."""

    def __init__(self) -> None:
        # Guards the rows and what is in them.
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}  # by the upstream's name

    def note(self, records: Sequence[Record]) -> None:
        """Count exchanges that have ended; an `Observer`."""
        with self._lock:
            rows = self._rows
            for record in records:
                name, end = record.upstream, record.end
                if end is not _DONE and end in _OWN_ANSWERS:
                    name = NOBODY
                row = rows.get(name) or self._begin_row(name)
                kind = record.status // 100
                row.classes[kind if kind < 6 else 0] += 1
                if end is not _TUNNEL:  # which lasts as long as people talk, and would say nothing
                    took = record.ended_at - record.head_at
                    row.buckets[bisect_left(BUCKET_BOUNDS, took)] += 1
                    row.duration += took
                if record.body_in:
                    row.bytes_in += record.body_in
                row.bytes_out += record.body_out
                if record.reused:
                    row.reused += 1
                if record.failures or end is not _DONE:
                    self._note_failures(record)

    def snapshot(self) -> Snapshot:
        """Return all counters as they are now."""
        with self._lock:
            rows = sorted(self._rows.items())
        upstreams = {}
        for name, row in rows:
            with self._lock:  # anew for each: a thousand of them would keep a worker waiting
                upstreams[name] = row.show()
        return Snapshot(upstreams=upstreams)

    def _begin_row(self, name: str) -> _Row:
        """The row of an upstream that is met for the first time. Caller holds the lock."""
        if len(self._rows) >= MOST_NAMES:
            name = OTHER_NAME
        return self._rows.setdefault(name, _Row())

    def _note_failures(self, record: Record) -> None:
        """Count each failed attempt where it failed, and each retry at whom it turned away from.

        Caller holds the lock.
        """
        failed = record.failures
        # All but the last attempt were followed by a retry. Where the last failure is not among
        # them, it came later than its attempt, or there was none.
        if record.end in _FAILURES and len(failed) <= record.retries:
            failed = [*failed, (record.upstream, record.end.value)]
        for index, (upstream, reason) in enumerate(failed):
            row = self._rows.get(upstream) or self._begin_row(upstream)
            row.failures[reason] = row.failures.get(reason, 0) + 1
            if index < record.retries:
                row.retries += 1


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Add up the snapshots of several processes."""
    total: dict[str, UpstreamCounts] = {}
    for snapshot in snapshots:
        for name, counts in snapshot["upstreams"].items():
            total[name] = _sum(total[name], counts) if name in total else counts
    return Snapshot(upstreams=dict(sorted(total.items())))


def _sum(one: UpstreamCounts, other: UpstreamCounts) -> UpstreamCounts:
    return UpstreamCounts(
        requests=_sum_by_key(one["requests"], other["requests"]),
        failures=_sum_by_key(one["failures"], other["failures"]),
        retries=one["retries"] + other["retries"],
        reused=one["reused"] + other["reused"],
        bytes_in=one["bytes_in"] + other["bytes_in"],
        bytes_out=one["bytes_out"] + other["bytes_out"],
        duration_buckets=sum_buckets([one["duration_buckets"], other["duration_buckets"]]),
        duration_sum=one["duration_sum"] + other["duration_sum"],
    )


def _sum_by_key(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    # In the order of `one`: the code classes keep theirs.
    keys = dict.fromkeys((*one, *other))
    return {key: one.get(key, 0) + other.get(key, 0) for key in keys}


def sum_buckets(histograms: Iterable[Sequence[int]]) -> list[int]:
    """Add histograms of the same bounds, bucket by bucket; of none at all, nothing but zeros."""
    total = [0] * (len(BUCKET_BOUNDS) + 1)
    for buckets in histograms:
        total = list(map(add, total, buckets))
    return total


def estimate_quantile(buckets: Sequence[int], share: float) -> float | None:
    """Estimate which duration `share` (0 to 1) of the requests did not exceed; None without any.

    `buckets` as in a snapshot, or what came between two snapshots. Within a bucket requests are
    taken to be spread evenly. Beyond the last bound nothing is known, so that bound is the answer.
    """
    reached = list(accumulate(buckets))
    if not reached or not reached[-1]:
        return None
    rank = share * reached[-1]
    index = bisect_left(reached, rank)
    while not buckets[index]:  # rank 0 is reached before the first request is
        index += 1
    if index >= len(BUCKET_BOUNDS):
        return BUCKET_BOUNDS[-1]
    low = BUCKET_BOUNDS[index - 1] if index else 0.0
    before = reached[index] - buckets[index]
    return low + (BUCKET_BOUNDS[index] - low) * (rank - before) / buckets[index]
