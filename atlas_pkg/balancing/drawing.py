"""The strategies that throw dice: an upstream at random, and the better one of two.

They need no turns and no order among all upstreams, so machines that know nothing of each other do
not all pick the same one at the same time.

To tell in advance what the dice will say, `rank` throws others that are in the same state.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Sequence

from atlas_pkg.balancing.member import START, Member, Position, load_of
from atlas_pkg.balancing.upstream import Upstream

# A random choice that hits an excluded upstream is drawn again so often before we list the rest.
_DRAWS = 8


class Random:
    """Any of them, each as likely as the others. Needs no coordination between machines."""

    wants_counts = False

    def __init__(
        self, position: Position = START, *, generator: random.Random | None = None
    ) -> None:
        self.position = position
        self._members: Sequence[Member] = ()
        self._upstreams: list[Upstream] = []
        self._dice = generator or random.Random()
        self._random = self._dice.random

    def prepare(self, members: Sequence[Member]) -> None:
        self._members = members
        self._upstreams = [member.upstream for member in members]

    def choose(self, _: bytes, excluded: Collection[Upstream]) -> Upstream | None:
        upstreams = self._upstreams
        if excluded:
            upstreams = [upstream for upstream in upstreams if upstream not in excluded]
        return upstreams[int(self._random() * len(upstreams))] if upstreams else None

    def note(self, upstream: Upstream) -> None:
        """Requests in flight do not matter here."""

    def rank(self, key: bytes, excluded: Collection[Upstream]) -> Iterator[tuple[Upstream, str]]:
        chances = sum(upstream not in excluded for upstream in self._upstreams)
        ahead = Random(generator=_twin_of(self._dice))
        ahead.prepare(self._members)
        drawn = "drawn, "
        for upstream in _exhaust(ahead.choose, key, excluded):
            yield upstream, f"{drawn}1 chance in {chances}"
            drawn = ""


class PowerOfTwo:
    """The less loaded of two drawn at random: nearly as even as looking at all of them.

    Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12 (2001).
    Draws follow the weights, and loads are compared for their weight, as in nginx.
    """

    wants_counts = False  # counts are read when they are needed

    def __init__(
        self, position: Position = START, *, generator: random.Random | None = None
    ) -> None:
        self.position = position
        self._members: Sequence[Member] = ()
        self._sums: list[int] = []  # running totals of the weights
        self._dice = generator or random.Random()
        self._random = self._dice.random

    def prepare(self, members: Sequence[Member]) -> None:
        self._members = members
        self._sums = list(itertools.accumulate(member.weight for member in members))

    def choose(self, _: bytes, excluded: Collection[Upstream]) -> Upstream | None:
        drawn: list[Member] = []
        for _draw in range(_DRAWS if self._members else 0):
            at = bisect.bisect(self._sums, self._random() * self._sums[-1])
            member = self._members[min(at, len(self._members) - 1)]
            if member not in drawn and member.upstream not in excluded:
                drawn.append(member)
            if len(drawn) == 2:
                break
        if not drawn:
            drawn = [member for member in self._members if member.upstream not in excluded]
        if not drawn:
            return None
        return min(drawn, key=lambda member: load_of(member.upstream, member.weight)).upstream

    def note(self, upstream: Upstream) -> None:
        """Counts are read when they are needed."""

    def rank(self, key: bytes, excluded: Collection[Upstream]) -> Iterator[tuple[Upstream, str]]:
        member_of = {member.upstream: member for member in self._members}
        dice, last = _twin_of(self._dice), len(self._members) - 1
        thrown = [dice.random() * self._sums[-1] for _ in range(_DRAWS if self._members else 0)]
        found = [self._members[bisect.bisect(self._sums, at, hi=last)].upstream for at in thrown]
        drawn = [upstream for upstream in dict.fromkeys(found) if upstream not in excluded][:2]
        ahead = PowerOfTwo(generator=_twin_of(self._dice))
        ahead.prepare(self._members)
        for upstream in _exhaust(ahead.choose, key, excluded):
            remark = ""
            if upstream in drawn:
                rivals = [other.name for other in drawn if other is not upstream]
                remark = f", drawn against {rivals[0]}" if rivals else ", drawn alone"
            yield upstream, member_of[upstream].load + remark


def _twin_of(dice: random.Random) -> random.Random:
    """Make dice that show next what these will show next."""
    twin = random.Random()
    twin.setstate(dice.getstate())
    return twin


def _exhaust(
    choose: Callable[[bytes, Collection[Upstream]], Upstream | None],
    key: bytes,
    excluded: Collection[Upstream],
) -> Iterator[Upstream]:
    """Yield what `choose` says, again and again without those that it has said."""
    passed_over = set(excluded)
    while (upstream := choose(key, passed_over)) is not None:
        passed_over.add(upstream)
        yield upstream
