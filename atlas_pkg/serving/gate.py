"""Where connections wait until there is something to do for them, and workers for one of those.

A connection waits here between two requests, so an idle client costs a descriptor and no thread.
One worker at a time *leads*: it alone takes what is ready, and serves it as far as that goes
without waiting for anybody. A request that was passed on waits here too, for its answer, so the
leader can begin the next one. What takes waiting otherwise is handed over, or the leader steps down
and waits itself; then the next worker leads. (Schmidt et al., "Leader/Followers", PLoP 2000.)

If every worker served one request after another instead, each answer would wake a thread. That
costs a fifth of the CPU time of a small request.

Ownership: a parked connection is in `_parked`, and whoever takes it out of there (one atomic
`dict.pop`) owns it: the leader, or the gatekeeper whose deadline came first. Those that await an
answer are in `_awaiting`, which only the leader touches.

The two gates themselves are in `gates.py`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.clients import ClientConnection

# An answer that takes longer is waited for by a worker, which watches client and time as well.
PATIENCE = 0.1


class Gate(Protocol):
    """Where connections and workers meet. Thread-safe, but for what only the leader may do."""

    # Set when nobody is left to lead: the gatekeeper looks whether more workers are needed.
    crowded: threading.Event
    # How often a worker has left the gate, as after each `take`. While that stands still, all of
    # them are stuck.
    departures: int

    @property
    def has_free_worker(self) -> bool:
        """Is a worker waiting here? A hint: being wrong costs a turn, nothing else."""

    def park(self, connection: ClientConnection) -> None:
        """Let `connection` wait until it is readable. The caller gives it up."""

    def lead(self, timeout: float) -> bool:
        """Become the leader as soon as nobody leads; False when time runs out."""

    def step_down(self) -> None:
        """Let another worker lead. Leader only, as are the methods below up to `suspended`."""

    def take(self, timeout: float) -> list[ClientConnection]:
        """Wait for connections for which there is something to do, and own them."""

    def await_answer(self, connection: ClientConnection, upstream: Stream) -> bool:
        """Let `connection` wait until its upstream says something; False where that fails."""

    def has_overdue(self) -> bool:
        """Has one awaited its answer for longer than `PATIENCE`?"""

    def take_overdue(self) -> ClientConnection | None:
        """Own the one that has awaited its answer longest."""

    def hand_over(self, connection: ClientConnection) -> None:
        """Let the next leader go on with `connection`."""

    def take_handed(self) -> ClientConnection | None:
        """Own the first one that was handed over."""

    def release(self, connection: ClientConnection) -> None:
        """Watch its upstream no more: a worker waits for that from now on."""

    def suspended(self) -> int:
        """How many requests are under way with nobody serving them at the moment. For any thread:
        a hint for those who do not lead."""

    def has_ready(self) -> bool:
        """Is a connection ready and not taken yet?"""

    def take_expired(self, now: float) -> list[ClientConnection]:
        """Own all connections whose deadline has passed."""

    def take_idle(self) -> list[ClientConnection]:
        """Own all connections that have said nothing yet and are not saying anything now."""

    def close(self) -> None:
        """Release what the gate itself holds."""


class WaitingRoom:
    """What both gates have in common: who waits here, workers and connections."""

    def __init__(self) -> None:
        self.crowded = threading.Event()
        self.departures = 0
        # Guards _present and departures.
        self._lock = threading.Lock()
        self._present = 0  # workers
        self._baton = threading.Lock()  # held by the leader
        self._parked: dict[int, ClientConnection] = {}
        self._awaiting: dict[int, ClientConnection] = {}  # oldest first, by the upstream's number
        self._handed: deque[ClientConnection] = deque()

    @property
    def has_free_worker(self) -> bool:
        return self._present > 0

    def lead(self, timeout: float) -> bool:
        self._arrive()
        try:
            return self._baton.acquire(timeout=timeout)
        finally:
            self._leave()

    def step_down(self) -> None:
        self._baton.release()
        if not self._present:
            self.crowded.set()

    def _arrive(self) -> None:
        with self._lock:
            self._present += 1

    def _leave(self) -> None:
        with self._lock:
            self._present -= 1
            self.departures += 1

    def park(self, connection: ClientConnection) -> None:
        raise NotImplementedError  # each gate has its own way

    def hand_over(self, connection: ClientConnection) -> None:
        self._handed.append(connection)

    def take_handed(self) -> ClientConnection | None:
        return self._handed.popleft() if self._handed else None

    def has_overdue(self) -> bool:
        if not self._awaiting:
            return False
        oldest = next(iter(self._awaiting.values()))
        return oldest.awaits_since + PATIENCE < time.monotonic()

    def take_overdue(self) -> ClientConnection | None:
        fd = next(iter(self._awaiting), None)
        return None if fd is None else self._awaiting.pop(fd)

    def suspended(self) -> int:
        return len(self._awaiting) + len(self._handed)

    def take_expired(self, now: float) -> list[ClientConnection]:
        expired = []
        # A copy is made in one step; workers take and park all the while. So what is seen here
        # is looked at again by whoever owns it.
        for fd, waiting in self._parked.copy().items():
            if waiting.deadline > now or not (owned := self._parked.pop(fd, None)):
                continue
            if owned.deadline <= now:
                expired.append(owned)
            else:
                self.park(owned)
        return expired

    def take_idle(self) -> list[ClientConnection]:
        idle = []
        for fd, waiting in self._parked.copy().items():
            if waiting.head_since or not (owned := self._parked.pop(fd, None)):
                continue
            # Not before it is ours: a worker could close the socket at this very moment.
            if owned.head_since or owned.stream.is_readable():
                self.park(owned)
            else:
                idle.append(owned)
        return idle

    def _note_awaiting(self, connection: ClientConnection, upstream: Stream) -> None:
        if not connection.awaits_since:
            connection.awaits_since = time.monotonic()
        connection.upstream = upstream
        self._awaiting[upstream.sock.fileno()] = connection

    def _find(self, fd: int) -> ClientConnection | None:
        """Own what waits for `fd`; one that expired at this very moment is no longer there."""
        return self._awaiting.pop(fd, None) or self._parked.pop(fd, None)

    def _wait_at_most(self, timeout: float) -> float:
        return min(timeout, PATIENCE) if self._awaiting else timeout
