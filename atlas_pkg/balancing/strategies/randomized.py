"""The strategies that throw dice: an upstream at random, and the better one of two.

They need no turns and no order among all upstreams, so machines that know nothing of each other do
not all pick the same one at the same time.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Collection, Sequence
from typing import Self

from atlas_pkg.balancing.strategies.registry import strategy
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import UpstreamConfig

# Two draws that hit the same upstream, or one tried already, are repeated so often in all.
_DRAWS = 8


@strategy("random")
class Random:
    """Any of them, each as likely as the others. Ignores weights."""

    wants_counts = False

    def __init__(
        self, _: Sequence[UpstreamConfig] = (), *, chance: Callable[[], float] = random.random
    ) -> None:
        """`chance` is from 0 to 1."""
        self._upstreams: Sequence[Upstream] = ()
        self._chance = chance

    def resume(self, previous: Self) -> None:
        """Dice have no memory."""

    def prepare(self, upstreams: Sequence[Upstream]) -> None:
        self._upstreams = upstreams

    def choose(self, _: bytes, tried: Collection[Upstream]) -> Upstream | None:
        upstreams = self._upstreams
        if tried:
            upstreams = [upstream for upstream in upstreams if upstream not in tried]
        return upstreams[int(self._chance() * len(upstreams))] if upstreams else None

    def note(self, upstream: Upstream) -> None:
        """Requests in flight do not matter here."""

    def score(self, _: Upstream) -> str:
        return f"1 chance in {len(self._upstreams)}"


@strategy("power_of_two")
class PowerOfTwo:
    """The less loaded of two drawn at random: nearly as even as looking at all of them.

    Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12 (2001).
    Draws follow the weights, and loads are compared for their weight, as in nginx.
    """

    wants_counts = False  # counts are read when they are needed

    def __init__(
        self, _: Sequence[UpstreamConfig] = (), *, chance: Callable[[], float] = random.random
    ) -> None:
        """`chance` is from 0 to 1."""
        self._upstreams: Sequence[Upstream] = ()
        self._sums: list[int] = []  # running totals of the weights
        self._chance = chance
        self._drawn: list[Upstream] = []  # for the latest choice

    def resume(self, previous: Self) -> None:
        """Dice have no memory."""

    def prepare(self, upstreams: Sequence[Upstream]) -> None:
        self._upstreams = upstreams
        self._sums = list(itertools.accumulate(upstream.weight for upstream in upstreams))

    def choose(self, _: bytes, tried: Collection[Upstream]) -> Upstream | None:
        drawn: list[Upstream] = []
        for _draw in range(_DRAWS if self._upstreams else 0):
            at = bisect.bisect(self._sums, self._chance() * self._sums[-1])
            upstream = self._upstreams[min(at, len(self._upstreams) - 1)]
            if upstream not in drawn and upstream not in tried:
                drawn.append(upstream)
            if len(drawn) == 2:
                break
        if not drawn:
            drawn = [upstream for upstream in self._upstreams if upstream not in tried]
        self._drawn = drawn
        return min(drawn, key=lambda upstream: upstream.load, default=None)

    def note(self, upstream: Upstream) -> None:
        """Counts are read when they are needed."""

    def score(self, upstream: Upstream) -> str:
        load = f"{upstream.in_flight} in flight / weight {upstream.weight} = {upstream.load:.2f}"
        if upstream not in self._drawn:
            return load
        rivals = [other.name for other in self._drawn if other is not upstream]
        return load + (f", drawn against {rivals[0]}" if rivals else ", drawn alone")
