"""The numbers of the status page, from what is counted and how the upstreams are right now.

Once a second `tick` is given the counters of all processes and the state of every upstream; it
feeds the history and the journal. When somebody looks, `samples`, `present` and `rows` turn that
into the parts of `Stats` that are numbers.

Rates are those of the last few seconds (`RATE_WINDOW`), and so are the quantiles of all requests.
A single upstream may have few, so its quantiles are those of the last minute. They need a whole
histogram; with hundreds of upstreams one a second would fill the memory, and six a minute do.

Not done here: gathering from several processes, and everything about Atlas that is no number.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence

from atlas_pkg.admin.stats import UpstreamStats
from atlas_pkg.observing.event_log import Journal
from atlas_pkg.observing.metrics import (
    BUCKET_BOUNDS,
    NOBODY,
    Snapshot,
    estimate_quantile,
    sum_buckets,
)
from atlas_pkg.observing.process_stats import State, UpstreamNow, mark_of
from atlas_pkg.observing.rates import KEPT_SECONDS, RATE_WINDOW, History, Key, Sample

ALL = ""  # the upstream's place in a key, for all together

_QUANTILES = (0.5, 0.95, 0.99)
_BUCKETS = tuple(f"bucket{at}" for at in range(len(BUCKET_BOUNDS) + 1))
# Whole snapshots that are kept, and how many ticks lie between two.
_KEPT_SNAPSHOTS = 6
_SNAPSHOT_EVERY = KEPT_SECONDS // _KEPT_SNAPSHOTS

_NO_ANSWERS = dict.fromkeys(("2xx", "3xx", "4xx", "5xx"), 0)


class Minute:
    """The last minute of Atlas. Thread-safe; `tick` is called by one thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._history = History()
        self._ticks = 0
        # Guards what follows. Snapshots are never changed, so they may leave the lock.
        self._lock = threading.Lock()
        self._snapshots: deque[Snapshot] = deque(maxlen=_KEPT_SNAPSHOTS)
        self._samples: deque[Sample] = deque(maxlen=KEPT_SECONDS)

    def tick(
        self,
        now: float,
        snapshot: Snapshot,
        upstreams: Iterable[UpstreamNow],
        *,
        connections: int,
        queue: int,
    ) -> None:
        """Take a reading, once a second; `now` is `time.monotonic()`."""
        states = {
            item["name"]: State(item["kind"], item["state"], item["why"]) for item in upstreams
        }
        marks = {name: mark_of(state.kind) for name, state in states.items()}
        self._history.feed(now, counters_of(snapshot), marks=marks)
        self._journal.watch(states)
        sample = self._build_sample(1, connections=connections, queue=queue)
        with self._lock:
            self._samples.append(sample)
            if self._ticks % _SNAPSHOT_EVERY == 0:
                self._snapshots.append(snapshot)
        self._ticks += 1

    def samples(self) -> list[Sample]:
        """A sample for each second of the last minute, the newest last."""
        with self._lock:
            return list(self._samples)

    def present(self) -> Sample:
        """The numbers of now; as `samples`, but with rates that do not jump about."""
        with self._lock:
            last = self._samples[-1] if self._samples else None
        connections, queue = (last["connections"], last["queue"]) if last else (0, 0)
        return self._build_sample(RATE_WINDOW, connections=connections, queue=queue)

    def rows(self, upstreams: Iterable[UpstreamNow], snapshot: Snapshot) -> list[UpstreamStats]:
        """The table of the upstreams."""
        return [self._build_row(item, snapshot) for item in upstreams]

    def _build_sample(self, seconds: int, *, connections: int, queue: int) -> Sample:
        history = self._history
        steps = (history.increase((key, ALL), RATE_WINDOW) for key in _BUCKETS)
        p50, p95, p99 = _quantiles([round(step) for step in steps])
        return Sample(
            rate=history.rate(("requests", ALL), seconds),
            connections=connections,
            error_percent=history.share_percent(("5xx", ALL), ("requests", ALL), RATE_WINDOW),
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            bytes_in_rate=history.rate(("bytes_in", ALL), seconds),
            bytes_out_rate=history.rate(("bytes_out", ALL), seconds),
            queue=queue,
        )

    def _build_row(self, now: UpstreamNow, snapshot: Snapshot) -> UpstreamStats:
        name, history = now["name"], self._history
        counts = snapshot["upstreams"].get(name)
        requests = counts["requests"] if counts else {}
        p50, p95, p99 = _quantiles(self._last_buckets(name, snapshot))
        return UpstreamStats(
            **now,
            since=self._journal.since(name),
            share_percent=history.share_percent(("requests", name), ("served", ALL)),
            rate=history.rate(("requests", name)),
            total=sum(requests.values()),
            classes={
                code_class: number
                for code_class, number in (_NO_ANSWERS | requests).items()
                if number or code_class in _NO_ANSWERS
            },
            failures=dict(counts["failures"]) if counts else {},
            retries=counts["retries"] if counts else 0,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            strip=history.strip(name),
        )

    def _last_buckets(self, name: str, snapshot: Snapshot) -> list[int]:
        """Build the histogram of an upstream's last minute, up to `snapshot`."""
        counts = snapshot["upstreams"].get(name)
        if counts is None:
            return []
        with self._lock:
            oldest = self._snapshots[0] if self._snapshots else None
        before = oldest["upstreams"].get(name) if oldest else None
        if before is None:
            return counts["duration_buckets"]
        pairs = zip(counts["duration_buckets"], before["duration_buckets"], strict=True)
        # Less than before: a process was replaced, and what it had counted is gone.
        return [max(0, now - then) for now, then in pairs]


def counters_of(snapshot: Snapshot) -> dict[Key, float]:
    """Write what the history needs of a snapshot as flat counters.

    For each upstream: requests, that it answered, and failures. For `ALL`: requests, whoever
    answered; served, those that an upstream answered; 5xx, bytes_in, bytes_out, and the histogram.
    """
    flat: dict[Key, float] = {}
    total = dict.fromkeys(("requests", "served", "5xx", "bytes_in", "bytes_out"), 0)
    for name, counts in snapshot["upstreams"].items():
        requests = sum(counts["requests"].values())
        flat["requests", name] = requests
        flat["failures", name] = sum(counts["failures"].values())
        total["requests"] += requests
        total["served"] += requests if name != NOBODY else 0
        total["5xx"] += counts["requests"]["5xx"]
        total["bytes_in"] += counts["bytes_in"]
        total["bytes_out"] += counts["bytes_out"]
    histograms = (counts["duration_buckets"] for counts in snapshot["upstreams"].values())
    flat.update({(key, ALL): count for key, count in total.items()})
    for key, count in zip(_BUCKETS, sum_buckets(histograms), strict=True):
        flat[key, ALL] = count
    return flat


def _quantiles(buckets: Sequence[int]) -> Sequence[float | None]:
    """p50, p95 and p99 in milliseconds."""
    found = (estimate_quantile(buckets, share) for share in _QUANTILES)
    return [None if duration is None else duration * 1000 for duration in found]
