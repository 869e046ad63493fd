"""Those who are told of exchanges that have ended, many at a time.

Between two requests whatever counts and writes leaves the CPU's caches, so telling of each one when
it ends would cost three times as much. Who serves only puts the record down here. All that are
pending are published when there is nothing else to do, or when they are many.

A third of what a record costs are its looks at the clock. So only those exchanges are timed of
which somebody shows the times, and where a few will do, a few.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from atlas_pkg.observing.record import Observer, Record, Times
from atlas_pkg.observing.tracer import Tracer

log = logging.getLogger("atlas.observers")

# So many are published even if there is something else to do. It takes a fifth of a millisecond.
MANY = 256

# Between two publications, so many exchanges at most are timed where a few are enough.
A_FEW = 16
ALL = 2**63


class Observers:
    """The observers, and the records that they have not been told of yet. Thread-safe."""

    def __init__(self) -> None:
        # While nobody watches, nobody need make records.
        self.are_there = False
        # What nobody has been told of, the oldest first. For others to look at.
        self.pending: deque[Record] = deque()
        # How many more exchanges are to be timed before the next publication. Counted down without
        # the lock: one more or less does not matter.
        self.to_time = 0
        self._observers: tuple[Observer, ...] = ()
        self._timed = 0
        self._tracer: Tracer | None = None
        # Held while observers are told. They only touch memory, so it never takes long.
        self._lock = threading.Lock()

    def watch(self, observers: Sequence[Observer], tracer: Tracer | None, *, timed: int) -> None:
        """Have `observers` told from now on, instead of those before.

        So many exchanges are `timed` between two publications: 0, `A_FEW` or `ALL`. The `tracer`
        says which are explained; None: none.
        """
        with self._lock:
            self._publish()
            self._observers, self._tracer = tuple(observers), tracer
            self.are_there = bool(observers)
            self._timed = timed
        self.refresh()

    def follow(self, record: Record) -> Times:
        """Have an exchange timed, and explained if somebody asks for that."""
        self.to_time -= 1
        if self._tracer is not None and self._tracer.wants(record.address):
            record.choices = []
        record.times = Times()
        return record.times

    def note(self, record: Record) -> None:
        """Take note that an exchange has ended."""
        record.ended_at = time.monotonic()
        self.pending.append(record)

    def publish(self) -> None:
        """Tell the observers of all that have ended so far; they have been told on return."""
        with self._lock:
            self._publish()

    def _publish(self) -> None:
        """Caller holds the lock."""
        if not self.pending:
            return
        # Others add to it meanwhile, but nobody else takes.
        records = [self.pending.popleft() for _ in range(len(self.pending))]
        self.refresh()
        for observer in self._observers:
            try:
                observer(records)
            except Exception:
                # It costs neither other observers nor those who are being served.
                log.exception("%d exchanges could not be observed", len(records))

    def refresh(self) -> None:
        """Set anew how many exchanges are timed: all, if somebody wants some explained.

        To be called when the tracer has been asked for something else.
        """
        is_asked = self._tracer is not None and self._tracer.is_asked
        self.to_time = ALL if is_asked else self._timed
