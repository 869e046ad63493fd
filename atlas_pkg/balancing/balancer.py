"""Choosing an upstream for one attempt: filter, then strategy, then lease, under one lock.

The pick and the count are one step: whoever chooses by counts sees every pick made before. No
I/O happens here, so the lock is held for a few microseconds.

A balancer belongs to one configuration. The next one takes over its `Upstream` objects, its lock
(requests of both are under way at the same time) and the position of its strategy.
"""

from __future__ import annotations

import threading

from atlas_pkg.balancing.strategies import START, STRATEGIES, Member, Position, Strategy
from atlas_pkg.balancing.upstream import Upstream, identity_of
from atlas_pkg.config import Config
from atlas_pkg.errors import NoUpstream


class Lease:
    """An upstream reserved for one attempt. Whoever holds it calls `release` once."""

    __slots__ = ("_lock", "upstream")

    def __init__(self, upstream: Upstream, lock: threading.Lock) -> None:
        self.upstream = upstream
        self._lock = lock

    def release(self) -> None:
        """Give the upstream back."""
        with self._lock:
            self.upstream.in_flight -= 1


class Balancer:
    """Chooses among the upstreams of one configuration. Thread-safe."""

    def __init__(self, config: Config, previous: Balancer | None = None) -> None:
        # Guards the strategy's state and `in_flight` of every upstream, over all generations.
        self.lock: threading.Lock = previous.lock if previous else threading.Lock()
        known = {upstream.identity: upstream for upstream in previous.upstreams} if previous else {}
        members = [
            Member(known.get(identity_of(item)) or Upstream(item), item.weight)
            for item in config.upstreams
        ]
        self.upstreams: tuple[Upstream, ...] = tuple(member.upstream for member in members)
        self._available = [member for member in members if member.weight > 0]
        with self.lock:
            position = previous.position if previous else START
            self._strategy: Strategy = STRATEGIES[config.routing.strategy](position)
            if self._available:
                self._strategy.prepare(self._available)

    @property
    def position(self) -> Position:
        """How far the turns have come. Caller holds the lock."""
        return self._strategy.position

    def lease(self) -> Lease:
        """Reserve an upstream for one attempt; raises `NoUpstream`."""
        if not self._available:
            raise NoUpstream
        with self.lock:
            upstream = self._strategy.choose()
            upstream.in_flight += 1
        return Lease(upstream, self.lock)
