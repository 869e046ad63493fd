"""Slow start: an upstream that has come back gets its share little by little.

It has cold caches and no connections, and its full share at once might make it fail again. So while
it recovers, it is skipped as often as is still missing: after a fifth of the time for four of five
of its turns. Each time is decided by chance, so nothing has to be counted.

When a recovery begins is the balancer's to say, and whom to choose instead, too.
"""

from __future__ import annotations

from collections.abc import Callable

from atlas_pkg.balancing.upstream import Upstream

# The least share of its turns that a recovering upstream gets: enough to warm it up.
TRICKLE = 0.05

# So many recovering ones are skipped for one request: after that the first has to take it.
MOST_SKIPPED = 8


class Ramp:
    """How upstreams recover under one configuration. Caller holds the balancer's lock."""

    def __init__(
        self, duration: float, clock: Callable[[], float], chance: Callable[[], float]
    ) -> None:
        """`duration` 0 means that nobody is skipped; `chance` is from 0 to 1."""
        self._duration = duration
        self._clock = clock
        self._chance = chance

    def begin(self, upstream: Upstream, now: float) -> None:
        """An upstream is back: its recovery begins."""
        if self._duration:
            upstream.recovered_at = now

    def skips(self, upstream: Upstream, part: float) -> bool:
        """Is it skipped this time? Ends its recovery when the time for that has come.

        `part` is how many of the times that it comes up would be its own: 1 where it comes up in
        turns, and less where the least loaded does, since that is this one every time.
        """
        if upstream.recovered_at is None:
            return False
        age = self._clock() - upstream.recovered_at
        if age >= self._duration:
            upstream.recovered_at = None
            return False
        return self._chance() >= max(TRICKLE, age / self._duration) * part
