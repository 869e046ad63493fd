"""Consistent hashing: equal keys go to the same upstream, on every machine, through changes.

Picture a ring of numbers. Every upstream owns many points on it, computed from its name alone; a
key is hashed to a place and belongs to the owner of the next point. If an upstream leaves, only its
own keys move, each to the next owner on the ring; if one of N joins, it takes about 1/N of the
keys, from all others alike. Nobody has to be told: equal configurations make equal rings.

    Karger et al., "Consistent Hashing and Random Trees", STOC 1997.
    Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018.

The ring holds all members of the configuration, available or not. Those that cannot be used now are
passed over on the walk, so that an upstream that comes back finds its keys where they were.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import struct
from collections.abc import Collection, Iterator, Sequence

from atlas_pkg.balancing.member import START, Member
from atlas_pkg.balancing.upstream import Upstream

# Points for each unit of weight: shares are then within some 8 % (1/sqrt(160)) of what they
# should be. The number of ketama, the most widespread ring.
POINTS_PER_WEIGHT = 160

# Large weights would make large rings: beyond this all have half as many points, and so on.
MAX_POINTS = 1 << 20

# How far above the mean of requests in flight an upstream may be before it passes keys on.
LOAD_BOUND = 1.25

_POINTS_PER_DIGEST = 8


def hash_key(key: bytes) -> int:
    """The place of a key on the ring, 0 to 2^64 - 1; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


class Ring:
    """The points of all members, sorted. Immutable."""

    def __init__(self, members: Sequence[Member]) -> None:
        per_weight = POINTS_PER_WEIGHT
        # Weight 0 has points, too: it is passed over unless an administrator gives it a weight.
        weights = {member: max(1, member.configured_weight) for member in members}
        total = sum(weights.values())
        while per_weight > 1 and total * per_weight > MAX_POINTS:
            per_weight //= 2
        owner_of: dict[int, Upstream] = {}
        # In the order of the names: should two points ever coincide, all machines agree whose it
        # is.
        for member in sorted(members, key=lambda member: member.upstream.name):
            points = _points_of(member.upstream.name, weights[member] * per_weight)
            owner_of.update(dict.fromkeys(points, member.upstream))
        self._places = sorted(owner_of)
        self._owners = [owner_of[place] for place in self._places]

    def walk(self, key: bytes) -> Iterator[Upstream]:
        """The owners from the key's place onward, once around; an owner may come up again."""
        start = bisect.bisect(self._places, hash_key(key))
        for number in range(start, start + len(self._owners)):
            yield self._owners[number % len(self._owners)]


def _points_of(name: str, count: int) -> list[int]:
    """The first `count` points of an upstream: a sequence that depends on its name alone."""
    points: list[int] = []
    for number in range(math.ceil(count / _POINTS_PER_DIGEST)):
        digest = hashlib.blake2b(f"{name}\x00{number}".encode(), digest_size=64).digest()
        points += struct.unpack(">8Q", digest)
    return points[:count]


class ConsistentHash:
    """Equal keys to the same upstream; with a `bound`, less so while that one is overloaded.

    `ip_hash` has no bound: a client address goes to its upstream however much that one has to do.
    `consistent_hash` has one: an upstream with more than `bound` times the mean of requests in
    flight, for its weight, passes keys on to the next on the ring. While nobody is over the
    bound, all machines choose alike.
    """

    wants_counts = True
    position = START

    def __init__(self, members: Sequence[Member], *, bound: float | None = None) -> None:
        self._ring = Ring(members)
        self._bound = bound
        self._weights: dict[Upstream, int] = {}
        self._total_weight = 0
        self._counted: dict[Upstream, int] = {}
        self._in_flight = 0  # of all available upstreams together

    def prepare(self, members: Sequence[Member]) -> None:
        """Take note of who is available, and count their requests; the ring stays."""
        self._weights = {member.upstream: member.weight for member in members}
        self._total_weight = sum(self._weights.values())
        self._counted = {upstream: upstream.in_flight for upstream in self._weights}
        self._in_flight = sum(self._counted.values())

    def note(self, upstream: Upstream) -> None:
        """Keep the sum of requests in flight."""
        if upstream in self._counted:
            self._in_flight += upstream.in_flight - self._counted[upstream]
            self._counted[upstream] = upstream.in_flight

    def choose(self, key: bytes, excluded: Collection[Upstream]) -> Upstream | None:
        """The first owner after the key that is available, not excluded, and below its bound."""
        if excluded and self._weights.keys() <= set(excluded):
            return None  # the walk would go around the whole ring to find that out
        mean = math.inf
        if self._bound is not None:
            mean = self._bound * (self._in_flight + 1) / max(1, self._total_weight)
        passed_over: dict[Upstream, None] = {}  # in the order of the walk
        for upstream in self._ring.walk(key):
            weight = self._weights.get(upstream)
            if weight is None or upstream in excluded or upstream in passed_over:
                continue
            if mean == math.inf or upstream.in_flight < math.ceil(mean * weight):
                return upstream
            passed_over[upstream] = None
            if len(passed_over) == len(self._weights):
                break
        # The bounds add up to more than all requests, so somebody is below; unless the one that
        # is has been excluded.
        return next(iter(passed_over), None)

    def rank(self, key: bytes, excluded: Collection[Upstream]) -> Iterator[tuple[Upstream, str]]:
        """Those below their bounds in the order of the walk, then those that have reached them."""
        mean = math.inf
        if self._bound is not None:
            mean = self._bound * (self._in_flight + 1) / max(1, self._total_weight)
        free = self._weights.keys() - set(excluded)
        passed_over: list[tuple[Upstream, str]] = []
        met: set[Upstream] = set()
        walk = self._ring.walk(key) if free else iter(())
        for upstream in walk:
            if upstream not in free or upstream in met:
                continue
            met.add(upstream)
            place = "first" if len(met) == 1 else f"number {len(met)}"
            text = f"hash ring: {place} behind the key"
            bound = mean * self._weights[upstream]
            if bound == math.inf or upstream.in_flight < math.ceil(bound):
                yield upstream, text
            else:
                text += f", but over its load bound: {upstream.in_flight} of {math.ceil(bound)}"
                passed_over.append((upstream, text))
            if len(met) == len(free):
                break
        yield from passed_over
