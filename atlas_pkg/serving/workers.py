"""The threads that serve, and the gatekeeper who decides how many there are.

Few threads are best: the interpreter lock makes every further runnable one an expense, and one that
leads serves all that needs no waiting (`turns.py`). More are needed for what does: large bodies,
answers that take long. So a handful of workers is always kept. The gatekeeper adds more only when
something is ready, nobody is at the gate, and there is CPU time to spare (`headroom.py`) or no
worker has come back at all. Workers that find nothing to do for half a second leave again.

The gatekeeper also enforces the deadlines of the connections that wait. It sleeps while there are
free workers, so an idle Atlas uses no CPU.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.serving.clients import ClientConnection
from atlas_pkg.serving.exchange import Worker
from atlas_pkg.serving.gate import Gate
from atlas_pkg.serving.headroom import Headroom
from atlas_pkg.serving.turns import Turns

log = logging.getLogger("atlas.workers")

# Workers that stay even when there is nothing to do.
KEPT_WORKERS = 8

# Further workers leave after waiting this long for nothing.
RETIRE_AFTER = 0.5

# How often a worker looks after its idle upstream connections.
TIDY_INTERVAL = 5.0

# How often the gatekeeper looks while nobody is at the gate, and how often it looks for deadlines.
CROWDED_TICK = 0.01
SWEEP_INTERVAL = 0.5

# Workers that have not come back to the gate for so long are all waiting for slow upstreams or
# clients. Then more are needed, even while other programs keep the CPU busy.
STUCK_AFTER = 0.05

# Answers that have been awaited for so long without a worker get some even where there is no CPU
# time to spare: it is a worker who keeps the time limits, and notices that a client has gone.
LATE_AFTER = 0.5

# Each worker calls a few Python frames deep; 8 MiB of default stack are never touched.
STACK_BYTES = 512 * 1024


class Workers:
    """Runs between `KEPT_WORKERS` and `max_threads` worker threads."""

    def __init__(
        self,
        gate: Gate,
        turns: Turns,
        *,
        on_expired: Callable[[ClientConnection], None],
        tidy: Callable[[Worker], None],
        max_threads: int,
    ) -> None:
        """`tidy` is called by a worker with nothing to do, to look after its own pool."""
        self._gate = gate
        self._turns = turns
        self._on_expired = on_expired
        self._tidy = tidy
        self._max_threads = max_threads
        self._kept = min(KEPT_WORKERS, max_threads)
        self._stopping = threading.Event()
        # Guards _count, _started and _running.
        self._lock = threading.Lock()
        self._running: set[Worker] = set()
        self._count = 0
        self._started = 0
        # The gatekeeper's own: it alone looks at them.
        self._headroom = Headroom()
        self._last_progress = (-1, 0.0)  # departures from the gate, and when they last changed
        self._short_since = 0.0  # answers have been awaited without a worker; 0: they are not

    def start(self) -> None:
        """Start the kept workers and the gatekeeper."""
        threading.stack_size(STACK_BYTES)
        self._add(self._kept)
        threading.Thread(target=self._keep_gate, name="gatekeeper", daemon=True).start()

    def stop(self) -> None:
        """Let all threads end once they are done with what they do; does not wait."""
        self._stopping.set()
        self._gate.crowded.set()

    def idle_connections(self) -> dict[Upstream, int]:
        """Count the upstream connections that the workers keep at rest."""
        with self._lock:
            pools = [worker.pool for worker in self._running]
        counts: dict[Upstream, int] = {}
        for pool in pools:
            for upstream, count in pool.count_idle().items():
                counts[upstream] = counts.get(upstream, 0) + count
        return counts

    def _add(self, wanted: int) -> None:
        """Start up to `wanted` more workers, within the limit."""
        with self._lock:
            wanted = min(wanted, self._max_threads - self._count)
            first = self._started + 1
            self._count += wanted
            self._started += wanted
        for number in range(first, first + wanted):
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True).start()

    def _work(self) -> None:
        worker = Worker()
        with self._lock:
            self._running.add(worker)
        next_tidying = 0.0
        while not self._stopping.is_set():
            has_served = self._take_one(worker)
            if has_served and time.monotonic() < next_tidying:
                continue
            if not has_served and self._may_retire():
                break
            # Whoever leads under load is never without something to do.
            next_tidying = time.monotonic() + TIDY_INTERVAL
            self._tidy(worker)
        self._turns.leave(worker)
        with self._lock:
            self._running.discard(worker)
        worker.close()

    def _take_one(self, worker: Worker) -> bool:
        is_kept = self._count <= self._kept
        try:
            return self._turns.take_one(worker, TIDY_INTERVAL if is_kept else RETIRE_AFTER)
        except Exception:
            log.exception("a worker failed")
            self._turns.leave(worker)  # or nobody would ever lead again
            return True

    def _may_retire(self) -> bool:
        """Leave the count, if there are more workers than are kept and another one is free.

        The last free one stays: slow clients may hold all the others, and without it whoever comes
        next waits until the gatekeeper takes those for stuck.
        """
        with self._lock:
            if self._count <= self._kept or not self._gate.has_free_worker:
                return False
            self._count -= 1
            return True

    def _keep_gate(self) -> None:
        next_sweep = time.monotonic() + SWEEP_INTERVAL
        while not self._stopping.is_set():
            if self._gate.crowded.wait(SWEEP_INTERVAL):
                self._relieve()
            now = time.monotonic()
            if now >= next_sweep:
                next_sweep = now + SWEEP_INTERVAL
                for connection in self._gate.take_expired(now):
                    self._on_expired(connection)

    def _is_crowded(self) -> bool:
        return not self._gate.has_free_worker or self._turns.are_short_of_workers

    def _relieve(self) -> None:
        """Watch a gate without workers for one tick, and add some if that would help."""
        self._stopping.wait(CROWDED_TICK)
        if not self._is_crowded():
            self._gate.crowded.clear()
            self._headroom.forget()
            self._short_since = 0.0
            if self._is_crowded():  # the last one left between the two looks
                self._gate.crowded.set()
            return
        is_stuck, has_spare = self._is_stuck() or self._is_late(), self._headroom.has_spare()
        is_waited_for = self._turns.are_short_of_workers or self._gate.has_ready()
        # Answers that are awaited at the gate need somebody who leads.
        is_needed = is_waited_for or self._gate.suspended() > 0
        if is_waited_for and self._count >= self._max_threads:
            self._turns.warn_that_full()
        elif is_needed and (is_stuck or has_spare):
            # In proportion: with time to spare from 8 to 256 in about a sixth of a second, and
            # twice as many each time that all of them are stuck.
            self._add(self._count if is_stuck else max(1, self._count // 4))

    def _is_stuck(self) -> bool:
        """Has no worker come back for a while? Then all wait for somebody, busy CPU or not."""
        now, departures = time.monotonic(), self._gate.departures
        if departures != self._last_progress[0]:
            self._last_progress = (departures, now)
        return now - self._last_progress[1] >= STUCK_AFTER

    def _is_late(self) -> bool:
        """Have answers been awaited for long without a worker? True once in `LATE_AFTER`."""
        now = time.monotonic()
        if not self._turns.are_short_of_workers:
            self._short_since = 0.0
        elif not self._short_since:
            self._short_since = now
        elif now - self._short_since >= LATE_AFTER:
            self._short_since = now
            return True
        return False
