"""Taking turns: each as often as the others, or as often as its weight says.

What is remembered of the turns is the last one taken. Whose turn comes next is worked out from the
list as it is now, so upstreams may come, leave and return without anybody's turn being lost.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Collection, Sequence
from typing import Self

from atlas_pkg.balancing.strategies.registry import strategy
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import UpstreamConfig


@strategy("round_robin")
class RoundRobin:
    """One after the other, in the order of the file: A B C A B C. Ignores weights."""

    wants_counts = False

    def __init__(self, _: Sequence[UpstreamConfig] = ()) -> None:
        self._upstreams: Sequence[Upstream] = ()
        self._next = 0
        self._last: Upstream | None = None

    def resume(self, previous: Self) -> None:
        self._last = previous._last

    def prepare(self, upstreams: Sequence[Upstream]) -> None:
        self._upstreams = upstreams
        # A reload may have moved the last one; where it has left, its old place has to do.
        order = -1 if self._last is None else self._last.order
        self._next = bisect.bisect_right([upstream.order for upstream in upstreams], order)

    def choose(self, _: bytes, tried: Collection[Upstream]) -> Upstream | None:
        for _unused in self._upstreams:
            upstream = self._upstreams[self._next % len(self._upstreams)]
            self._next = self._next % len(self._upstreams) + 1
            if not tried or upstream not in tried:
                self._last = upstream
                return upstream
        return None

    def note(self, upstream: Upstream) -> None:
        """Requests in flight do not matter here."""

    def score(self, upstream: Upstream) -> str:
        # `_next` stands behind the one whose turn it was.
        before = (self._upstreams.index(upstream) - self._next + 1) % len(self._upstreams)
        return f"its turn after {before} other{'s' * (before > 1)}" if before else "its turn"


@strategy("weighted_round_robin")
class WeightedRoundRobin:
    """In turns, as often as the weight says, spread as evenly as possible.

    Think of each cycle as a line from 0 to 1. An upstream of weight w has w turns on it, at the
    middles of w equal parts: 3 gives 1/6, 3/6, 5/6. Taking the turns of all upstreams in the
    order of the line gives A B A C B A for the weights 3, 2, 1, the same interleaving as
    nginx's "smooth" algorithm, and every cycle holds exactly w turns of each. A heap yields the
    next turn in O(log n), where nginx looks at every server for every request.

    The same idea in packet scheduling: Bennett and Zhang, "WF²Q: Worst-case Fair Weighted Fair
    Queueing", INFOCOM 1996.
    """

    wants_counts = False

    def __init__(self, _: Sequence[UpstreamConfig] = ()) -> None:
        # The last turn taken: where it lies, its upstream's order in the file, and the upstream.
        self._last = (0.0, -1)
        self._whose: Upstream | None = None
        # (where the turn lies, order in the file, number of the turn, whose)
        self._turns: list[tuple[float, int, int, Upstream]] = []

    def resume(self, previous: Self) -> None:
        self._last, self._whose = previous._last, previous._whose

    def prepare(self, upstreams: Sequence[Upstream]) -> None:
        if self._whose is not None:  # a reload may have moved it
            self._last = (self._last[0], self._whose.order)
        self._turns = [
            (_place_of(turn, upstream.weight), upstream.order, turn, upstream)
            for upstream in upstreams
            for turn in [_first_turn_after(self._last, upstream)]
        ]
        heapq.heapify(self._turns)

    def choose(self, _: bytes, tried: Collection[Upstream]) -> Upstream | None:
        skipped = []
        while self._turns and tried and self._turns[0][3] in tried:
            skipped.append(heapq.heappop(self._turns))  # it keeps its turn for the next time
        chosen = self._take_turn() if self._turns else None
        for turn in skipped:
            heapq.heappush(self._turns, turn)
        return chosen

    def note(self, upstream: Upstream) -> None:
        """Requests in flight do not matter here."""

    def score(self, upstream: Upstream) -> str:
        place = last = self._last[0]
        if upstream is not self._whose:
            place = _place_of(_first_turn_after(self._last, upstream), upstream.weight)
        # The line is told from the beginning of the cycle that we are in.
        return f"turn at {place - int(last):.2f}, weight {upstream.weight}"

    def _take_turn(self) -> Upstream:
        place, order, turn, upstream = self._turns[0]
        # A turn that was skipped lies behind: time does not go back for it.
        if (place, order) > self._last:
            self._last, self._whose = (place, order), upstream
        following = _place_of(turn + 1, upstream.weight)
        heapq.heapreplace(self._turns, (following, order, turn + 1, upstream))
        return upstream


def _first_turn_after(last: tuple[float, int], upstream: Upstream) -> int:
    """The number of the first turn of `upstream` that comes after the last one taken."""
    # Rounding may put the guess one too low, and of turns at the same place the earlier ones may be
    # taken already.
    turn = max(1, int(last[0] * upstream.weight + 0.5))
    while (_place_of(turn, upstream.weight), upstream.order) <= last:
        turn += 1
    return turn


def _place_of(turn: int, weight: int) -> float:
    """Where the turn (1, 2, 3 …) lies; computed afresh each time, so that no error builds up."""
    return (2 * turn - 1) / (2 * weight)
