"""The ways to choose an upstream, one small class each, registered by name.

A strategy sees only the upstreams that are available and have room. `prepare` tells it who they
are whenever that changes; `choose` is called for every request and has to be quick with a thousand
upstreams as well. Strategies that look at requests in flight are told of every change (`note`). The
balancer calls all of it under its lock, so a strategy needs none.

`excluded` are upstreams to leave out this once: those that a retry has tried already, or that are
being spared after a recovery. It is nearly always empty.

Where somebody asks why, `rank` tells what `choose` is about to do, without doing it. The strategies
that throw dice are in `drawing.py`, those that hash in `hashing.py`.

After a reload the new strategy is handed the `position` of the old one: a round robin that began
anew with every reload would send all first requests to the first upstream. A position is the last
turn taken; which upstreams' turns come next is worked out from the new list.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from atlas_pkg.balancing.drawing import PowerOfTwo, Random
from atlas_pkg.balancing.hashing import LOAD_BOUND, ConsistentHash
from atlas_pkg.balancing.member import START, Member, Position, load_of
from atlas_pkg.balancing.upstream import Upstream


class Strategy(Protocol):
    """A way to choose. Caller holds the balancer's lock."""

    # Must `note` be called?
    wants_counts: bool

    @property
    def position(self) -> Position:
        """The last turn taken, for the next configuration to go on from."""

    def prepare(self, members: Sequence[Member]) -> None:
        """Take note of the upstreams to choose from."""

    def choose(self, key: bytes, excluded: Collection[Upstream], /) -> Upstream | None:
        """Pick one for the client identified by `key`; None if all are excluded.

        Equal keys land together where the strategy promises it.
        """

    def note(self, upstream: Upstream) -> None:
        """Its requests in flight have changed."""

    def rank(self, key: bytes, excluded: Collection[Upstream], /) -> Iterator[tuple[Upstream, str]]:
        """Tell whom `choose` would pick now, whom if that one were excluded too, and so on.

        Each comes with what speaks for it, in a few words. Changes nothing; while the iterator is
        in use, nothing else may change either.
        """


class RoundRobin:
    """One after the other, in the order of the file: A B C A B C. Ignores weights."""

    wants_counts = False

    def __init__(self, position: Position = START) -> None:
        self._members: Sequence[Member] = ()
        self._last = position.order
        self._next = 0

    @property
    def position(self) -> Position:
        return Position(0.0, self._last)

    def prepare(self, members: Sequence[Member]) -> None:
        self._members = members
        self._next = bisect.bisect_right([member.order for member in members], self._last)

    def choose(self, _: bytes, excluded: Collection[Upstream]) -> Upstream | None:
        for _unused in self._members:
            member = self._members[self._next % len(self._members)]
            self._next = self._next % len(self._members) + 1
            if not excluded or member.upstream not in excluded:
                self._last = member.order
                return member.upstream
        return None

    def note(self, upstream: Upstream) -> None:
        """Requests in flight do not matter here."""

    def rank(self, _: bytes, excluded: Collection[Upstream]) -> Iterator[tuple[Upstream, str]]:
        first = self._next % max(1, len(self._members))
        turns = (*self._members[first:], *self._members[:first])
        waiting = (member.upstream for member in turns if member.upstream not in excluded)
        for before, upstream in enumerate(waiting):
            others = f" after {before} other{'s' * (before > 1)}" if before else ""
            yield upstream, f"its turn{others}"


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

    def __init__(self, position: Position = START) -> None:
        self._last: tuple[float, int] = position
        # (where the turn lies, order in the file, number of the turn, member)
        self._turns: list[tuple[float, int, int, Member]] = []

    @property
    def position(self) -> Position:
        return Position(*self._last)

    def prepare(self, members: Sequence[Member]) -> None:
        self._turns = []
        for member in members:
            # The first turn that comes after the last one taken. Rounding may put the guess one
            # too low, and of turns at the same place the earlier ones may be taken already.
            turn = max(1, int(self._last[0] * member.weight + 0.5))
            while (_turn_place(turn, member.weight), member.order) <= self._last:
                turn += 1
            self._turns.append((_turn_place(turn, member.weight), member.order, turn, member))
        heapq.heapify(self._turns)

    def choose(self, _: bytes, excluded: Collection[Upstream]) -> Upstream | None:
        spared = []
        while self._turns and excluded and self._turns[0][3].upstream in excluded:
            spared.append(heapq.heappop(self._turns))  # it keeps its turn for the next time
        chosen = self._take_turn() if self._turns else None
        for turn in spared:
            heapq.heappush(self._turns, turn)
        return chosen

    def _take_turn(self) -> Upstream:
        place, order, turn, member = self._turns[0]
        # A turn that was spared lies behind: time does not go back for it.
        self._last = max(self._last, (place, order))
        following = _turn_place(turn + 1, member.weight)
        heapq.heapreplace(self._turns, (following, order, turn + 1, member))
        return member.upstream

    def note(self, upstream: Upstream) -> None:
        """Requests in flight do not matter here."""

    def rank(self, _: bytes, excluded: Collection[Upstream]) -> Iterator[tuple[Upstream, str]]:
        turns = self._turns.copy()
        cycle = int(turns[0][0]) if turns else 0  # the line is told from where we are
        while turns:
            place, _order, _turn, member = heapq.heappop(turns)
            if member.upstream not in excluded:
                yield member.upstream, f"turn at {place - cycle:.2f}, weight {member.weight}"


def _turn_place(turn: int, weight: int) -> float:
    """Where the turn (1, 2, 3 …) lies; computed afresh each time, so that no error builds up."""
    return (2 * turn - 1) / (2 * weight)


class LeastConnections:
    """The one with the fewest requests in flight for its weight; among equals, in turns.

    A heap holds (load, when noted) of each; an entry that a later one has replaced is passed over
    when it comes up. So a choice costs O(log n), and the count that it adds is seen by the next.
    """

    wants_counts = True

    def __init__(self, position: Position = START) -> None:
        self.position = position
        self._weights: dict[Upstream, int] = {}
        self._heap: list[tuple[float, int, Upstream]] = []
        self._latest: dict[Upstream, int] = {}
        self._counter = itertools.count()

    def prepare(self, members: Sequence[Member]) -> None:
        self._weights = {member.upstream: member.weight for member in members}
        self._heap = []
        self._latest = {}
        for upstream in self._weights:
            self.note(upstream)

    def note(self, upstream: Upstream) -> None:
        weight = self._weights.get(upstream)
        if weight is None:
            return  # not available now; `prepare` will count it when it is
        number = self._latest[upstream] = next(self._counter)
        heapq.heappush(self._heap, (load_of(upstream, weight), number, upstream))
        if len(self._heap) > 4 * len(self._weights) + 64:
            latest = self._latest
            self._heap = [entry for entry in self._heap if latest[entry[2]] == entry[1]]
            heapq.heapify(self._heap)

    def choose(self, _: bytes, excluded: Collection[Upstream]) -> Upstream | None:
        spared = []
        chosen = None
        while self._heap and chosen is None:
            number, upstream = self._heap[0][1:]
            if self._latest[upstream] != number:
                heapq.heappop(self._heap)
            elif excluded and upstream in excluded:
                spared.append(heapq.heappop(self._heap))
            else:
                chosen = upstream
        for entry in spared:
            heapq.heappush(self._heap, entry)
        return chosen

    def rank(self, _: bytes, excluded: Collection[Upstream]) -> Iterator[tuple[Upstream, str]]:
        heap = self._heap.copy()
        while heap:
            load, number, upstream = heapq.heappop(heap)
            if self._latest[upstream] == number and upstream not in excluded:
                weight = self._weights[upstream]
                yield upstream, f"{upstream.in_flight} in flight / weight {weight} = {load:.2f}"


# The names that `routing.strategy` accepts. Each maker takes the position to go on from and all
# members of the configuration, available or not.
STRATEGIES: dict[str, Callable[[Position, Sequence[Member]], Strategy]] = {
    "round_robin": lambda position, _: RoundRobin(position),
    "weighted_round_robin": lambda position, _: WeightedRoundRobin(position),
    "random": lambda position, _: Random(position),
    "least_connections": lambda position, _: LeastConnections(position),
    "power_of_two": lambda position, _: PowerOfTwo(position),
    "ip_hash": lambda _, members: ConsistentHash(members),
    "consistent_hash": lambda _, members: ConsistentHash(members, bound=LOAD_BOUND),
}
