"""Counting what happens: a row says what is counted, what it is called and how a record counts.

`COUNTERS` is the whole of it. What is kept, what several processes have counted together, the
zeros before the first request, and Prometheus's text (`prometheus.py`) all come from its rows: who
wants to count something more adds a row.

Every request is counted, so counting must cost little. Exchanges come here many at a time
(`observers.py`), and one lock, taken once for all of them, keeps the counters exact. Durations are
kept as a histogram, from which quantiles are estimated as Prometheus does it.

It is counted by group and upstream, written as one word ("api/one"): no group has a slash.
Upstreams that leave the configuration keep their counters for five minutes, for whoever looks what
the last scrape brought. Then their counts go over to one series, `GONE`: no chain of reloads fills
memory and dashboards, and no sum over all upstreams ever falls. The names are bounded all the same;
those beyond the bound share one. Not done here: what is no count but a state
(`process_stats.py`), and differences over time (`rates.py`).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from atlas_pkg.observing.record import End, Record

# Upper bounds in seconds, each included. They are dense where a proxy's upstreams answer, and end
# where `timeouts.upstream_head` does by default. One more bucket holds what took longer.
BUCKET_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
BUCKETS = (*map(str, BUCKET_BOUNDS), "+Inf")

# By the first digit of the status. None at all (no answer could be sent) is the first.
CODE_CLASSES = ("other", "1xx", "2xx", "3xx", "4xx", "5xx")

# The upstream's name in the keys of answers that no upstream made.
NOBODY = "-"

# The key of a counter that is not kept for each upstream.
ALL = ""

# How many upstreams have keys of their own, and the one key of all beyond that.
MOST_NAMES = 2000
OTHER = "-/_other"

# The one key of upstreams that have left the configuration, after so many seconds.
GONE = "-/-gone-"
GONE_AFTER = 300.0


def name_key(group: str, upstream: str) -> str:
    """The key under which an upstream of a group is counted."""
    return f"{group}/{upstream}"


def split_key(key: str) -> tuple[str, str]:
    """The group and the upstream that are counted as `key`."""
    group, _, upstream = key.partition("/")
    return group, upstream


def own_keys(keys: Iterable[str]) -> set[str]:
    """The keys under which our own answers are counted; `keys` are those of the upstreams."""
    return {name_key(group, NOBODY) for group in ("-", *(split_key(key)[0] for key in keys))}


# Ends that are failures of ours or of an upstream.
_FAILURES = frozenset(End) - {
    *(End.DONE, End.TUNNEL, End.ROUTE),
    *(End.REFUSED, End.CLIENT_GONE),
}

# Ends after which the answer was ours, whoever had been asked.
_OWN_ANSWERS = (_FAILURES - {End.UPSTREAM_CUT}) | {End.REFUSED}

# A key, a label, and by how much the counter grows.
_Growth = tuple[str, str, float]


@dataclass(frozen=True, slots=True)
class Counter:
    """A row: something that is counted."""

    name: str
    help: str
    label: str  # what tells its values apart, beside the upstream; empty: nothing does
    count: Callable[[str, Sequence[Record]], Iterable[_Growth]]  # whose answers, and the records
    zeros: Sequence[str] = ()  # values of the label that are there before anything was counted
    own_zeros: Sequence[str] | None = None  # the same for `NOBODY`, where they are others
    is_histogram: bool = False  # its labels are `BUCKETS`, and "sum"
    by_upstream: bool = True
    is_of_trouble: bool = False  # only exchanges with a failed attempt, or a failed end, count


def _count_requests(author: str, records: Sequence[Record]) -> Iterator[_Growth]:
    for status, number in Tally([record.status for record in records]).items():
        kind = min(status // 100, 5)  # one beyond 599 counts as those (RFC 9110 §15)
        yield author, CODE_CLASSES[kind], number


def _count_durations(author: str, records: Sequence[Record]) -> Iterator[_Growth]:
    # Not those of tunnels, which last as long as people talk.
    tunnel = End.TUNNEL
    spans = [item.ended_at - item.head_at for item in records if item.end is not tunnel]
    yield author, "sum", sum(spans)
    for index, number in Tally([bisect_left(BUCKET_BOUNDS, span) for span in spans]).items():
        yield author, BUCKETS[index], number


def _count_failures(_: str, records: Sequence[Record]) -> Iterator[_Growth]:
    for record in records:
        for upstream, reason in _failures_of(record):
            yield name_key(record.group, upstream), reason, 1


def _count_retries(_: str, records: Sequence[Record]) -> Iterator[_Growth]:
    for record in records:
        for upstream, _reason in _failures_of(record)[: record.retries]:
            yield name_key(record.group, upstream), "", 1


def _count_refused_retries(_: str, records: Sequence[Record]) -> Iterator[_Growth]:
    for record in records:
        if record.retry_refused:
            yield name_key(record.group, record.upstream), "", 1


def _count_bytes(_: str, records: Sequence[Record]) -> Iterator[_Growth]:
    yield ALL, "in", sum([record.body_in for record in records])
    yield ALL, "out", sum([record.body_out for record in records])


def _failures_of(record: Record) -> Sequence[tuple[str, str]]:
    """Each attempt that failed: its upstream, and how it failed in the words of the access log.

    All but the last attempt were followed by a retry. Where the last failure is not among those
    that were noted, it came later than its attempt, or there was none.
    """
    failed = record.failures
    if record.end in _FAILURES and len(failed) <= record.retries:
        return [*failed, (record.upstream, record.end.value)]
    return failed


_USUAL_FAILURES = (
    *(End.CONNECT_FAILED, End.CONNECT_TIMEOUT, End.TLS),
    *(End.UPSTREAM_FAILED, End.UPSTREAM_TIMEOUT, End.UPSTREAM_CUT),
)
REQUESTS = Counter(
    "atlas_requests_total",
    'Requests by the class of their answer; upstream "-" is Atlas itself.',
    "code_class",
    _count_requests,
    CODE_CLASSES[1:],  # requests without any answer are rare
)
DURATIONS = Counter(
    "atlas_request_duration_seconds",
    "From the whole head of a request to its answer's end.",
    "le",
    _count_durations,
    (*BUCKETS, "sum"),
    is_histogram=True,
)
FAILURES = Counter(
    "atlas_upstream_failures_total",
    'Failed attempts by how they failed; upstream "-" is Atlas itself.',
    "reason",
    _count_failures,
    # What fails now and then: attempts at an upstream, its answers, and the search for one.
    tuple(end.value for end in _USUAL_FAILURES),
    (End.NO_UPSTREAM.value,),
    is_of_trouble=True,
)
RETRIES = Counter(
    "atlas_retries_total",
    "Attempts on another upstream after this one had failed.",
    "",
    _count_retries,
    ("",),
    is_of_trouble=True,
)
REFUSED_RETRIES = Counter(
    "atlas_retries_refused_total",
    "Attempts that failed and were not followed by another, since too many were under way.",
    "",
    _count_refused_retries,
    ("",),
    is_of_trouble=True,
)
BYTES = Counter(
    "atlas_bytes_total",
    "Bytes of bodies, in from clients and out to them.",
    "direction",
    _count_bytes,
    ("in", "out"),
    by_upstream=False,
)

COUNTERS = (REQUESTS, DURATIONS, FAILURES, RETRIES, REFUSED_RETRIES, BYTES)

# All counters at one moment: by the counter's name, the upstream's, and the label's value. Plain
# enough to be sent to another process as JSON.
Snapshot = dict[str, dict[str, dict[str, float]]]


class Departures:
    """Keys that are counted and no longer configured, and since when. For one thread at a time."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def find_gone(self, counted: Collection[str], present: Collection[str], now: float) -> set[str]:
        """The keys among those `counted` that have not been `present` for `GONE_AFTER`."""
        absent = set(counted) - set(present) - own_keys(present) - {ALL, OTHER, GONE}
        self._since = {name: self._since.get(name, now) for name in absent}
        return {name for name, since in self._since.items() if now - since >= GONE_AFTER}


class Counters:
    """Counts exchanges. Thread-safe."""

    def __init__(self) -> None:
        # Guards the departures, and that nobody copies what is just going over to `GONE`. Taken
        # before the other one.
        self._going = threading.Lock()
        self._departures = Departures()
        # Guards what follows, and what is in it.
        self._lock = threading.Lock()
        self._counted: list[tuple[Counter, dict[str, dict[str, float]]]] = [
            (row, {}) for row in COUNTERS
        ]
        self._names = {ALL}

    def note(self, records: Sequence[Record]) -> None:
        """Count exchanges that have ended; an `Observer`."""
        answered_by: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
        done = End.DONE  # looking members up in their class would cost more than all the rest
        troubled = []
        for record in records:
            upstream = record.upstream
            if record.end is not done or record.failures:
                troubled.append(record)
                if record.end in _OWN_ANSWERS:
                    upstream = NOBODY
            answered_by[record.group, upstream].append(record)
        authors = [(name_key(*author), answered) for author, answered in answered_by.items()]
        with self._lock:
            for row, counted in self._counted:
                for author, answered in [(ALL, troubled)] if row.is_of_trouble else authors:
                    for upstream, label, amount in row.count(author, answered):
                        labels = counted.get(upstream) or self._begin(counted, upstream)
                        labels[label] += amount

    def snapshot(self) -> Snapshot:
        """Return all counters as they are now."""
        found: Snapshot = {}
        with self._going:
            for row, counted in self._counted:
                with self._lock:
                    upstreams = list(counted.items())
                found[row.name] = copies = {}
                for upstream, labels in upstreams:
                    with self._lock:  # anew for each: a thousand would keep others waiting
                        copies[upstream] = dict(labels)
        return found

    def retire(self, present: Collection[str], now: float) -> None:
        """Add up under `GONE` what left long ago; `present` are the keys that are configured."""
        with self._going:
            with self._lock:
                counted = {name for _, upstreams in self._counted for name in upstreams}
            gone = self._departures.find_gone(counted, present, now)
            if not gone:
                return
            with self._lock:
                self._names -= gone
                for _, upstreams in self._counted:
                    fold(upstreams, gone)

    def _begin(self, counted: dict[str, dict[str, float]], upstream: str) -> dict[str, float]:
        """The values of an upstream that is met for the first time. Caller holds the lock."""
        if upstream not in self._names:
            if len(self._names) > MOST_NAMES:
                upstream = OTHER
            else:
                self._names.add(upstream)
        return counted.setdefault(upstream, defaultdict(int))


def fold(upstreams: dict[str, dict[str, float]], gone: set[str]) -> None:
    """Add what was counted under the keys in `gone` to `GONE`, in their place."""
    for name in gone & upstreams.keys():
        together = upstreams.setdefault(GONE, defaultdict(int))
        for label, amount in upstreams.pop(name).items():
            together[label] = together.get(label, 0) + amount


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Add up the snapshots of several processes."""
    total: Snapshot = {row.name: {} for row in COUNTERS}
    for snapshot in snapshots:
        for name, upstreams in snapshot.items():
            for upstream, labels in upstreams.items():
                sums = total[name].setdefault(upstream, {})
                for label, amount in labels.items():
                    sums[label] = sums.get(label, 0) + amount
    return total


def buckets_of(labels: Mapping[str, float]) -> list[int]:
    """The buckets of a histogram, one for each bound and one beyond."""
    return [int(labels.get(bucket, 0)) for bucket in BUCKETS]


def estimate_quantile(buckets: Sequence[int], share: float) -> float | None:
    """Estimate which duration `share` (0 to 1) of the requests did not exceed; None without any.

    `buckets` as of `buckets_of`, or what came between two of them. Within a bucket requests are
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
