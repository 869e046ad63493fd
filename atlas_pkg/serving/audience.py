"""Those who are told of exchanges that have ended, many at a time.

Between two requests whatever counts and writes leaves the CPU's caches, so telling of each one when
it ends would cost three times as much. A worker only puts the record down here. All that have
gathered are told of when there is nothing else to do, or when they are many.

What a record costs most are its looks at the clock. They are taken for the exchanges of which
somebody shows the times, and that may be a few of many.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from atlas_pkg.record import Observer, Record
from atlas_pkg.serving.explaining import Tracer

# So many are told of even if there is something else to do. With 64 a request costs 1 % more.
MANY = 256

# Between two tellings, so many exchanges at most are timed where a few are enough.
A_FEW = 16
ALL = 2**63


class Audience:
    """Observers, and records that they have not been told of. Thread-safe."""

    def __init__(self) -> None:
        # Empty while nobody watches, and then nobody need make records.
        self.observers: tuple[Observer, ...] = ()
        # What nobody has been told of, the oldest first. For others to look at.
        self.untold: deque[Record] = deque()
        self._tracer: Tracer | None = None
        # How many are timed, and how many of them are left. Workers change it without the lock:
        # one more or less is no matter.
        self._timed = 0
        self._left_to_time = 0
        # Held while observers are told. They only touch memory, so it never takes long.
        self._lock = threading.Lock()

    def watch(self, observers: Sequence[Observer], tracer: Tracer | None, *, timed: int) -> None:
        """Have `observers` told from now on, instead of those before.

        The `tracer` chooses which exchanges are explained; None: none. `timed` of the others are
        timed: 0, `A_FEW` or `ALL`.
        """
        with self._lock:
            self._tell()
            self.observers, self._tracer = tuple(observers), tracer
            self._timed = self._left_to_time = timed

    def wants_times(self, record: Record) -> bool:
        """Is this exchange to be timed? To be asked once. Notes whether it is to be explained."""
        tracer = self._tracer
        if tracer is not None and tracer.is_asked and tracer.wants(record.address):
            record.choices = []
        elif self._left_to_time > 0:
            self._left_to_time -= 1
        else:
            return False
        record.is_timed = True
        return True

    def note(self, record: Record) -> None:
        """Take note that an exchange has ended."""
        record.ended_at = time.monotonic()
        self.untold.append(record)

    def tell(self) -> None:
        """Tell of all that have ended so far; who returns from here knows that it is done."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        # Workers add to it meanwhile, but nobody else takes.
        records = [self.untold.popleft() for _ in range(len(self.untold))]
        if records:
            self._left_to_time = self._timed
            for observer in self.observers:
                observer(records)
