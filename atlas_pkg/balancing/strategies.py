"""All ways to choose an upstream, one small class each, registered by name.

A strategy sees only the upstreams that are available. `prepare` tells it who they are, and with
which weights, whenever that changes; `choose` is then called for every request and has to be
quick with a thousand upstreams as well. The balancer calls both under its lock, so a strategy
needs none.

After a reload the new strategy is handed the `position` of the old one: a round robin that began
anew with every reload would send all first requests to the first upstream. A position is the last
turn taken; which upstreams' turns come next is worked out from the new list.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from atlas_pkg.balancing.upstream import Upstream


class Position(NamedTuple):
    """How far the turns have come: where the last one lies, and the place in the file of its
    upstream. Tuples compare in the order of the turns."""

    place: float
    order: int


# Before the first turn of all.
START = Position(0.0, -1)


class Member:
    """An upstream as one configuration sees it."""

    __slots__ = ("upstream", "weight")

    def __init__(self, upstream: Upstream, weight: int) -> None:
        self.upstream = upstream
        self.weight = weight


class Strategy(Protocol):
    """A way to choose."""

    @property
    def position(self) -> Position:
        """The last turn taken, for the next configuration to go on from."""

    def prepare(self, members: Sequence[Member]) -> None:
        """Take note of the available upstreams, never none. Caller holds the balancer's lock."""

    def choose(self) -> Upstream:
        """Pick one of the prepared upstreams. Caller holds the balancer's lock."""


class RoundRobin:
    """One after the other, in the order of the file: A B C A B C. Ignores weights."""

    def __init__(self, position: Position = START) -> None:
        self._upstreams: list[Upstream] = []
        self._last = position.order

    @property
    def position(self) -> Position:
        return Position(0.0, self._last)

    def prepare(self, members: Sequence[Member]) -> None:
        self._upstreams = [member.upstream for member in members]

    def choose(self) -> Upstream:
        self._last = (self._last + 1) % len(self._upstreams)
        return self._upstreams[self._last]


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

    def __init__(self, position: Position = START) -> None:
        self._last: tuple[float, int] = position
        # (where the turn lies, order in the file, number of the turn, member)
        self._turns: list[tuple[float, int, int, Member]] = []

    @property
    def position(self) -> Position:
        return Position(*self._last)

    def prepare(self, members: Sequence[Member]) -> None:
        self._turns = []
        for order, member in enumerate(members):
            # The first turn that comes after the last one taken. Rounding may put the guess one
            # too low, and of turns at the same place the earlier ones may be taken already.
            turn = max(1, int(self._last[0] * member.weight + 0.5))
            while (_turn_position(turn, member.weight), order) <= self._last:
                turn += 1
            self._turns.append((_turn_position(turn, member.weight), order, turn, member))
        heapq.heapify(self._turns)

    def choose(self) -> Upstream:
        place, order, turn, member = self._turns[0]
        self._last = (place, order)
        following = _turn_position(turn + 1, member.weight)
        heapq.heapreplace(self._turns, (following, order, turn + 1, member))
        return member.upstream


def _turn_position(turn: int, weight: int) -> float:
    """Where the turn (1, 2, 3 …) lies; computed afresh each time, so that no error builds up."""
    return (2 * turn - 1) / (2 * weight)


class Random:
    """Any of them, each as likely as the others. Needs no coordination between machines."""

    def __init__(
        self, position: Position = START, *, generator: random.Random | None = None
    ) -> None:
        self.position = position
        self._upstreams: list[Upstream] = []
        self._random = (generator or random.Random()).random

    def prepare(self, members: Sequence[Member]) -> None:
        self._upstreams = [member.upstream for member in members]

    def choose(self) -> Upstream:
        return self._upstreams[int(self._random() * len(self._upstreams))]


# The names that `routing.strategy` accepts. Each maker takes the position to go on from.
STRATEGIES: dict[str, Callable[[Position], Strategy]] = {
    "round_robin": RoundRobin,
    "weighted_round_robin": WeightedRoundRobin,
    "random": Random,
}
