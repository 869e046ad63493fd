"""The queue for those who find every upstream full: first come, first served.

A lease that is given back is handed to the first in the queue that it suits in the same step, so
nobody can slip in between. Who waits looks now and then whether its client is still there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection

from atlas_pkg.balancing.lease import Affinity, Lease
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.errors import ClientGone, NoUpstream

# How often somebody in the queue looks whether its client is still there.
_TICK = 0.5


class Waiter:
    """Somebody who waits for room at a full upstream."""

    __slots__ = ("affinity", "granted", "lease", "tried")

    def __init__(self, affinity: Affinity, tried: Collection[Upstream]) -> None:
        self.affinity = affinity
        self.tried = tried
        self.lease: Lease | None = None
        self.granted = threading.Event()


class WaitQueue:
    """Waiters in the order of arrival. Guarded by the balancer's lock."""

    def __init__(
        self,
        lock: threading.Lock,
        take: Callable[[Affinity, Collection[Upstream]], Lease | None],
        has_room: Callable[[], bool],
    ) -> None:
        """`take` chooses and counts, or returns None; `has_room` says whether a client that
        belongs nowhere could be served. Both are called with the lock held."""
        self._lock = lock
        self._take = take
        self._has_room = has_room
        self.waiters: deque[Waiter] = deque()

    def serve(self) -> None:
        """Hand out what has become free, in the order of arrival. Caller holds the lock."""
        for waiter in list(self.waiters):
            # Taking costs more, and most of a long queue will have to wait.
            is_anybodys = waiter.affinity.sticky is None and not waiter.tried
            if is_anybodys and not self._has_room():
                continue
            waiter.lease = self._take(waiter.affinity, waiter.tried)
            if waiter.lease is not None:
                self.waiters.remove(waiter)
                waiter.granted.set()

    def wait(self, waiter: Waiter, timeout: float, is_gone: Callable[[], bool] | None) -> Lease:
        """Wait until `waiter` is served.

        Raises `NoUpstream` when time is up, `ClientGone` if `is_gone` says so. Blocks.
        """
        with self._lock:
            self.waiters.append(waiter)
            self.serve()  # there may be room since the caller looked
        return self.stay(waiter, timeout, is_gone)

    def stay(self, waiter: Waiter, timeout: float, is_gone: Callable[[], bool] | None) -> Lease:
        """As `wait`, for one who stands in the queue already."""
        deadline = time.monotonic() + timeout
        while (remaining := deadline - time.monotonic()) > 0:
            if waiter.granted.wait(min(_TICK, remaining)):
                break
            if is_gone is not None and is_gone():
                break
            with self._lock:
                self.serve()  # nobody tells when a breaker's time is up
        with self._lock:
            if waiter.lease is not None and remaining > 0:
                return waiter.lease
            if waiter.lease is None:
                self.waiters.remove(waiter)
        if waiter.lease is not None:  # served at the very moment that it gave up
            waiter.lease.release()
        if remaining > 0:
            raise ClientGone("closed its connection while it waited for an upstream")
        raise NoUpstream("no upstream had room within timeouts.queue")
