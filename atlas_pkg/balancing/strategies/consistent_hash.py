"""Consistent hashing: equal keys go to the same upstream, on every machine, through changes.

Picture a ring of numbers. Every upstream owns many points on it, computed from its name alone; a
key is hashed to a place and belongs to the owner of the next point. If an upstream leaves, only its
own keys move, each to the next owner on the ring; if one of N joins, it takes about 1/N of the
keys, from all others alike. Nobody has to be told: equal configurations make equal rings.

    Karger et al., "Consistent Hashing and Random Trees", STOC 1997.
    Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018.

The ring holds the names of all that the configuration lists, available or not. Those that cannot be
used now are passed over on the walk, so that an upstream that comes back finds its keys where they
were.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Self

from atlas_pkg.balancing.strategies.registry import strategy
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import UpstreamConfig

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
    """The points of all upstreams of a configuration, sorted. Immutable."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        per_weight = POINTS_PER_WEIGHT
        total = sum(weights.values())
        while per_weight > 1 and total * per_weight > MAX_POINTS:
            per_weight //= 2
        owner_of: dict[int, str] = {}
        # In the order of the names: should two points ever coincide, all machines agree whose it
        # is.
        for name in sorted(weights):
            owner_of.update(dict.fromkeys(_points_of(name, weights[name] * per_weight), name))
        self._places = sorted(owner_of)
        self._owners = [owner_of[place] for place in self._places]

    def walk(self, key: bytes) -> Iterator[str]:
        """The owners from the key's place onward, once around; an owner may come up again."""
        start = bisect.bisect(self._places, hash_key(key))
        for number in range(start, start + len(self._owners)):
            yield self._owners[number % len(self._owners)]


# A reload that concerns other things finds its ring here. --check asks for two by turns, and every
# balancer begins with an empty one.
@functools.lru_cache(maxsize=3)
def _build_ring(upstreams: tuple[tuple[str, int], ...]) -> Ring:
    # Weight 0 has points, too: it is passed over unless an administrator gives it a weight.
    return Ring({name: max(1, weight) for name, weight in upstreams})


def _points_of(name: str, count: int) -> list[int]:
    """The first `count` points of an upstream: a sequence that depends on its name alone."""
    points: list[int] = []
    for number in range(math.ceil(count / _POINTS_PER_DIGEST)):
        digest = hashlib.blake2b(f"{name}\x00{number}".encode(), digest_size=64).digest()
        points += struct.unpack(">8Q", digest)
    return points[:count]


@strategy("ip_hash")
class ConsistentHash:
    """Equal keys to the same upstream; with a `bound`, less so while that one is overloaded.

    `ip_hash` has no bound: a client address goes to its upstream however much that one has to do.
    `consistent_hash` has one: an upstream with more than `bound` times the mean of requests in
    flight, for its weight, passes keys on to the next on the ring. While nobody is over the
    bound, all machines choose alike.
    """

    wants_counts = True

    def __init__(self, upstreams: Sequence[UpstreamConfig], *, bound: float = math.inf) -> None:
        self._ring = _build_ring(tuple((each.name, each.weight) for each in upstreams))
        self._bound = bound
        self._available: dict[str, Upstream] = {}
        self._weights: dict[Upstream, int] = {}
        self._total_weight = 0
        self._counted: dict[Upstream, int] = {}
        self._in_flight = 0  # of all available upstreams together
        # In the latest choice: who was over its bound, in the order of the walk, and who was not.
        self._passed_over: dict[Upstream, int] = {}
        self._found: Upstream | None = None

    def resume(self, previous: Self) -> None:
        """There are no turns to go on with."""

    def prepare(self, upstreams: Sequence[Upstream]) -> None:
        """Take note of who is available, and count their requests; the ring stays."""
        self._available = {upstream.name: upstream for upstream in upstreams}
        self._weights = {upstream: upstream.weight for upstream in upstreams}
        self._total_weight = sum(self._weights.values())
        self._counted = {upstream: upstream.in_flight for upstream in upstreams}
        self._in_flight = sum(self._counted.values())

    def note(self, upstream: Upstream) -> None:
        """Keep the sum of requests in flight."""
        if upstream in self._counted:
            self._in_flight += upstream.in_flight - self._counted[upstream]
            self._counted[upstream] = upstream.in_flight

    def choose(self, key: bytes, tried: Collection[Upstream]) -> Upstream | None:
        """The first owner after the key that is available, not tried, and below its bound."""
        self._found, self._passed_over = None, {}
        if not self._weights or (tried and self._weights.keys() <= set(tried)):
            return None  # the walk would go around the whole ring to find that out
        mean = self._bound * (self._in_flight + 1) / max(1, self._total_weight)
        for name in self._ring.walk(key):
            upstream = self._available.get(name)
            if upstream is None or upstream in tried or upstream in self._passed_over:
                continue
            limit = mean * self._weights[upstream]
            if limit == math.inf or upstream.in_flight < math.ceil(limit):
                self._found = upstream
                return upstream
            self._passed_over[upstream] = math.ceil(limit)
            if len(self._passed_over) == len(self._weights):
                break
        # The bounds add up to more than all requests, so somebody is below; unless the one that
        # is has been tried.
        return next(iter(self._passed_over), None)

    def score(self, upstream: Upstream) -> str:
        places = [*self._passed_over, self._found]
        if upstream not in places:
            return "hash ring: further behind the key"
        number = places.index(upstream) + 1
        place = "hash ring: first behind the key" if number == 1 else f"hash ring: number {number}"
        if upstream in self._passed_over:
            load = f"{upstream.in_flight} of {self._passed_over[upstream]}"
            return f"{place}, but over its load bound: {load}"
        if self._passed_over:
            place += f", since {next(iter(self._passed_over)).name} is over its load bound"
        return place


@strategy("consistent_hash")
def build_bounded(upstreams: Sequence[UpstreamConfig]) -> ConsistentHash:
    """As `ip_hash`, with the bound."""
    return ConsistentHash(upstreams, bound=LOAD_BOUND)
