"""The one with the least to do, counted in requests in flight for its weight.

As in HAProxy and nginx, all that are idle are equal, whatever their weights. Among equals they take
turns: the one that has been at rest for the longest comes first. That order survives reloads, and
who returns joins it at its end. Were ties broken by the order of the file, the first upstream would
get every request of a quiet service.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Sequence
from typing import Self

from atlas_pkg.balancing.strategies.registry import strategy
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import UpstreamConfig


@strategy("least_connections")
class LeastConnections:
    """The one with the fewest requests in flight for its weight; among equals, in turns.

    A heap holds (load, number of the latest change) of each; an entry that a later one has replaced
    is dropped when it comes up. So a choice costs O(log n), and the count that it adds is seen by
    the next.
    """

    wants_counts = True

    def __init__(self, _: Sequence[UpstreamConfig] = ()) -> None:
        self._counter = itertools.count()
        self._latest: dict[Upstream, int] = {}  # of those available, with the number of each
        self._weights: dict[Upstream, int] = {}
        self._heap: list[tuple[float, int, Upstream]] = []

    def resume(self, previous: Self) -> None:
        self._counter, self._latest = previous._counter, previous._latest

    def prepare(self, upstreams: Sequence[Upstream]) -> None:
        before = self._latest
        self._latest = {
            upstream: before[upstream] if upstream in before else next(self._counter)
            for upstream in upstreams
        }
        self._weights = {upstream: upstream.weight for upstream in upstreams}
        self._heap = [
            (upstream.load, number, upstream) for upstream, number in self._latest.items()
        ]
        heapq.heapify(self._heap)

    def note(self, upstream: Upstream) -> None:
        weight = self._weights.get(upstream)
        if weight is None:
            return  # not available now; `prepare` will count it when it is
        number = self._latest[upstream] = next(self._counter)
        heapq.heappush(self._heap, (upstream.in_flight / weight, number, upstream))
        if len(self._heap) > 4 * len(self._weights) + 64:
            latest = self._latest
            self._heap = [entry for entry in self._heap if latest[entry[2]] == entry[1]]
            heapq.heapify(self._heap)

    def choose(self, _: bytes, tried: Collection[Upstream]) -> Upstream | None:
        skipped = []
        chosen = None
        while self._heap and chosen is None:
            number, upstream = self._heap[0][1:]
            if self._latest[upstream] != number:
                heapq.heappop(self._heap)
            elif tried and upstream in tried:
                skipped.append(heapq.heappop(self._heap))
            else:
                chosen = upstream
        for entry in skipped:
            heapq.heappush(self._heap, entry)
        return chosen

    def score(self, upstream: Upstream) -> str:
        load = f"{upstream.in_flight} in flight / weight {upstream.weight}"
        return f"{load} = {upstream.load:.2f}"
