"""What a worker does with the connections that it takes at the gate.

The leader serves each of them as far as that goes without waiting, and then leads on. A request
whose answer is awaited waits at the gate. What a worker has to wait for (a body of some size, a
place in the queue, an answer that does not come soon) is held: the leader steps down for it, so
that the next worker leads.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from atlas_pkg.logs import Throttle
from atlas_pkg.observing.observers import MANY, Observers
from atlas_pkg.serving.clients import ClientConnection, Steps
from atlas_pkg.serving.exchange import Worker
from atlas_pkg.serving.gate import Gate

log = logging.getLogger("atlas.workers")

# When nothing has come for so long, it is time to tell what has happened. Under load there are
# shorter breaks again and again, and telling in each of them would cost as much as telling at once.
LULL = 0.002

# So many turns without a lull are enough, too: clients might go on for ever with what ends nothing.
MOST_TURNS = 1024


class Turns:
    """Serves connections for all workers of one gate, `most` requests at once."""

    def __init__(
        self,
        gate: Gate,
        serve: Callable[[ClientConnection, Worker], Steps],
        on_failed: Callable[[ClientConnection], None],
        most: int,
        observers: Observers,
    ) -> None:
        """`on_failed` closes a connection whose serving met an error of ours.

        The `observers` are told of what has ended.
        """
        self._gate = gate
        self._serve = serve
        self._on_failed = on_failed
        self._most = most
        self._observers = observers
        self._tell_by = 0  # when the gate has counted so many departures; after a pause, at once
        self._throttle = Throttle(log)
        # Guards _held.
        self._lock = threading.Lock()
        self._held = 0
        # Those who came while `most` requests were under way.
        self._backlog: deque[ClientConnection] = deque()
        # Requests have waited at the gate for longer than they should, since no worker was free.
        self.are_short_of_workers = False

    def take_one(self, worker: Worker, timeout: float) -> bool:
        """Do what there is to do next; False when there was nothing in time."""
        if not worker.leads:
            if not self._gate.lead(timeout):
                return False
            worker.leads = True
        if handed := self._gate.take_handed():
            self._hold(handed, worker)
            return True
        pending = self._observers.pending
        has_news = bool(pending)
        taken = self._gate.take(LULL if has_news else timeout)
        slow = self._serve_quickly(taken, worker)
        if overdue := self._take_overdue():
            slow.append(overdue)
        if slow:
            for connection in slow[1:]:
                self._gate.hand_over(connection)
            self._hold(slow[0], worker)
        elif pending and (
            not taken or len(pending) >= MANY or self._gate.departures >= self._tell_by
        ):
            self._tell_by = self._gate.departures + MOST_TURNS
            self._observers.publish()
        return bool(taken or slow or has_news)  # a lull is not the time that the caller gave us

    def leave(self, worker: Worker) -> None:
        """Let somebody else lead."""
        if worker.leads:
            worker.leads = False
            self._gate.step_down()

    def _serve_quickly(
        self, connections: list[ClientConnection], worker: Worker
    ) -> list[ClientConnection]:
        """Serve as the leader; returns those that have to be waited for by a worker."""
        slow = []
        room = self._most - self._held - self._gate.suspended()
        for connection in connections:
            if connection.steps is None:
                if room <= 0:
                    self._backlog.append(connection)
                    self.warn_that_full()
                    continue
                room -= 1
            if not self._advance(connection, worker):
                slow.append(connection)
        while self._backlog and self._held + self._gate.suspended() + len(slow) < self._most:
            waiting = self._take_waiting()
            if waiting is not None and not self._advance(waiting, worker):
                slow.append(waiting)
        return slow

    def _take_waiting(self) -> ClientConnection | None:
        """Own the first of the backlog. The leader and those who hold may all ask at once."""
        try:
            return self._backlog.popleft()
        except IndexError:
            return None

    def warn_that_full(self) -> None:
        """Say that requests wait because so many are being served; not too often."""
        self._throttle.write(
            logging.WARNING,
            "full",
            "%d requests are being served (listen.max_threads); others wait",
            self._most,
        )

    def _take_overdue(self) -> ClientConnection | None:
        """Take the one that has awaited its answer too long, if others can lead meanwhile."""
        is_overdue = self._gate.has_overdue()
        # With all others held, the last place is its own: then nothing else can be begun anyway.
        can_lead = self._gate.has_free_worker or self._held + 1 >= self._most
        self.are_short_of_workers = is_overdue and not can_lead
        if self.are_short_of_workers:
            self._gate.crowded.set()
        return self._gate.take_overdue() if is_overdue and can_lead else None

    def _hold(self, connection: ClientConnection, worker: Worker) -> None:
        """Serve to the end of what it says, waiting where that takes waiting.

        Then its place is for those who wait for one.
        """
        if connection.steps is not None:
            self._gate.release(connection)
        with self._lock:
            self._held += 1  # before another one leads and counts
        self.leave(worker)
        self._observers.publish()  # there may be nobody else to do it for as long as this takes
        waiting: ClientConnection | None = connection
        try:
            while waiting is not None:
                self._advance(waiting, worker)
                self._observers.publish()
                waiting = self._take_waiting()
        finally:
            with self._lock:
                self._held -= 1
        # The leader may have found the place taken just before it was given up.
        if (waiting := self._take_waiting()) is not None:
            self._hold(waiting, worker)

    def _advance(self, connection: ClientConnection, worker: Worker) -> bool:
        """Serve until it pauses or ends; False where it takes a worker that waits."""
        steps = connection.steps
        try:
            if steps is None:
                steps = self._serve(connection, worker)
                awaited = next(steps)
            else:
                connection.steps = None
                awaited = steps.send(worker)
        except StopIteration:
            return True
        except Exception:
            # Whatever went wrong, it costs this connection and not the worker.
            log.exception("a worker failed; its connection is closed")
            self._on_failed(connection)
            return True
        connection.steps = steps
        return awaited is not None and self._gate.await_answer(connection, awaited)
