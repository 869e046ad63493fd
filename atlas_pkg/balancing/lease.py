"""Leases, and the ledger in which they are counted.

A lease reserves an upstream for one attempt. It is given back with an outcome, which is what the
circuit breaker hears. The ledger outlives configurations: its lock guards all counts, and whoever
waits for a full upstream stands in its queue, first come first served. A lease that is given back
is handed to the first in the queue that it suits in the same step, so nobody can slip in between.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.choice import Choice
from atlas_pkg.errors import ClientGone, NoUpstream

log = logging.getLogger("atlas.balancing")

# Retries under way: at most this share of all requests under way, but never fewer than the minimum.
# A storm of failures then adds a fifth to the load instead of doubling it. The numbers are Envoy's.
RETRY_SHARE = 0.2
MIN_RETRIES = 3

# How often somebody in the queue looks whether its client is still there.
_QUEUE_TICK = 0.5

NOBODY: frozenset[Upstream] = frozenset()


class Outcome(enum.Enum):
    """How an attempt ended, as far as its upstream is concerned."""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"  # the client's own doing: says nothing about the upstream


# At hand, since finding them in the class takes longer than the rest of a release.
SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE


class Wish(NamedTuple):
    """What an attempt asks for."""

    key: bytes = b""  # what the client is known by; equal keys land together with the hashes
    sticky: Upstream | None = None  # the upstream that the client belongs to
    excluded: Collection[Upstream] = NOBODY  # those that have been tried already


ANY = Wish()
Affinity = Wish
ANYWHERE = ANY


class Chooser(Protocol):
    """What the ledger needs of the balancer in force. Caller holds the ledger's lock."""

    def take(self, wish: Wish) -> Lease | None:
        """Choose and count; None when nobody is available with room."""

    def take_explained(self, wish: Wish) -> tuple[Lease | None, Choice]:
        """As `take`, and why."""

    def has_room(self) -> bool:
        """Could anybody serve a client that belongs nowhere yet?"""

    def may_wait(self, wish: Wish) -> bool:
        """Is there somebody for it who is merely full?"""

    # Must `note_end` be called even where no breaker wants to know?
    counts_matter: bool

    def note_end(self, upstream: Upstream, ticket: int | None, outcome: Outcome) -> str:
        """An attempt has ended; returns what is worth a line in the log, or nothing."""


class Waiter:
    """Somebody who waits for room at a full upstream."""

    __slots__ = ("granted", "lease", "wish")

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.lease: Lease | None = None
        self.granted = threading.Event()


class Ledger:
    """Counts and queue of all configurations."""

    def __init__(self) -> None:
        # Guards everything in here, the state of all upstreams, and that of all balancers.
        self.lock = threading.Lock()
        self.in_flight = 0
        self.retries = 0
        self.queue: deque[Waiter] = deque()
        self.chooser: Chooser | None = None  # the balancer in force

    def begin_retry(self) -> bool:
        """Count one more retry, if the budget allows it."""
        with self.lock:
            if self.retries >= max(MIN_RETRIES, RETRY_SHARE * self.in_flight):
                return False
            self.retries += 1
            return True

    def end_retry(self) -> None:
        """The retry is over, whatever came of it."""
        with self.lock:
            self.retries -= 1

    def wait(self, waiter: Waiter, timeout: float, is_gone: Callable[[], bool] | None) -> Lease:
        """Wait in the queue; raises `NoUpstream`, or `ClientGone` if `is_gone` says so. Blocks."""
        with self.lock:
            self.queue.append(waiter)
            self.serve_queue()  # there may be room since the caller looked
        deadline = time.monotonic() + timeout
        while (remaining := deadline - time.monotonic()) > 0:
            if waiter.granted.wait(min(_QUEUE_TICK, remaining)):
                break
            if is_gone is not None and is_gone():
                break
            with self.lock:
                self.serve_queue()  # nobody tells when a breaker's time is up
        with self.lock:
            if waiter.lease is not None and remaining > 0:
                return waiter.lease
            if waiter.lease is None:
                self.queue.remove(waiter)
        if waiter.lease is not None:
            waiter.lease.release()
        if remaining > 0:
            raise ClientGone("closed its connection while it waited for an upstream")
        raise NoUpstream

    def serve_queue(self) -> None:
        """Hand out what has become free, in the order of arrival. Caller holds the lock."""
        if self.chooser is None:
            return
        for waiter in list(self.queue):
            # Taking costs more, and most of a long queue will have to wait.
            if waiter.wish.sticky is None and not self.chooser.has_room():
                continue
            waiter.lease = self.chooser.take(waiter.wish)
            if waiter.lease is not None:
                self.queue.remove(waiter)
                waiter.granted.set()


class Lease:
    """An upstream reserved for one attempt. Whoever holds it calls `release` once.

    Those of an upstream without a breaker are all the same, so they share one object.
    """

    __slots__ = ("_ledger", "_ticket", "upstream")

    def __init__(self, ledger: Ledger, upstream: Upstream, ticket: int | None = None) -> None:
        self._ledger = ledger
        self._ticket = ticket
        self.upstream = upstream

    def settle(self, outcome: Outcome) -> None:
        """Say how the upstream did, and keep it."""
        with self._ledger.lock:
            news = ""
            if self._ledger.chooser is not None:
                news = self._ledger.chooser.note_end(self.upstream, self._ticket, outcome)
            self._ticket = None
            self._ledger.serve_queue()
        if news:
            log.warning("upstream %s: %s", self.upstream.name, news)

    def release(self, outcome: Outcome = Outcome.NONE) -> None:
        """Give the upstream back and say how it did."""
        ledger = self._ledger
        news = ""
        with ledger.lock:
            self.upstream.in_flight -= 1
            ledger.in_flight -= 1
            chooser = ledger.chooser
            if chooser is not None and (self._ticket is not None or chooser.counts_matter):
                news = chooser.note_end(self.upstream, self._ticket, outcome)
            if ledger.queue:
                ledger.serve_queue()
        if news:
            log.warning("upstream %s: %s", self.upstream.name, news)
