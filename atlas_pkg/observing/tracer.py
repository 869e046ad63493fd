"""How a balancer thinks: which exchanges are explained, and the last ones to look at.

The last exchanges are always kept as they are, or under load some of them (`observers.py`). Who the
candidates were is written down only for those that somebody asked for: one in so many, or the next
of a certain client. Time lines are made when somebody looks.

While nobody asks, that costs a look at `is_asked`. Not done here: finding out why
(`balancing/explain.py`), and showing it (`timeline.py`, `terminal.py`).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from atlas_pkg.observing.record import Record
from atlas_pkg.observing.timeline import Timeline, Wanted, build_timeline

# So many of the last ones, and as many of the last explained ones.
MOST_KEPT = 50

# One in more than these need not be explained at all.
MOST_ONE_IN = 1_000_000


@dataclass(frozen=True, slots=True)
class Asking:
    """Which exchanges are to be explained from now on; what is None stays as it is."""

    one_in: int | None = None  # 0 = none
    next_from: str | None = None  # the address of a client; empty = wait for nobody

    def __str__(self) -> str:
        parts = []
        if self.one_in is not None:
            parts.append(f"one in {self.one_in}" if self.one_in else "none of all")
        if self.next_from is not None:
            parts.append(f"the next from {self.next_from or 'nobody'}")
        return ", ".join(parts)


class Tracer:
    """Chooses which exchanges are explained, and keeps the last ones. Thread-safe."""

    def __init__(self, one_in: int = 0) -> None:
        """Begin with one in `one_in`, 0 = none."""
        # May be looked at without the lock: is anybody interested at all?
        self.is_asked = one_in > 0
        # Guards what follows where it changes. It may be looked at, and turns taken, without.
        self._lock = threading.Lock()
        self._one_in = one_in
        self._turns = itertools.count()
        self._next_from = ""
        # Rings that are appended to without the lock; `timelines` copes with that.
        self._last: deque[Record] = deque(maxlen=MOST_KEPT)
        self._explained: deque[Record] = deque(maxlen=MOST_KEPT)

    def wants(self, address: str) -> bool:
        """Is this exchange, of the client at `address`, to be explained? To be asked once."""
        if not self.is_asked:
            return False
        if self._next_from and self._is_awaited(address):
            return True
        one_in = self._one_in
        return one_in > 0 and next(self._turns) % one_in == 0  # the first, so that one comes soon

    def note(self, records: Sequence[Record]) -> None:
        """Keep exchanges that have ended and were timed; an `Observer`."""
        timed = [record for record in records if record.times is not None]
        self._last.extend(timed)
        self._explained.extend(record for record in timed if record.choices is not None)

    def ask(self, asking: Asking) -> None:
        """Change which exchanges are explained."""
        with self._lock:
            if asking.one_in is not None:
                self._one_in, self._turns = asking.one_in, itertools.count()
            if asking.next_from is not None:
                self._next_from = asking.next_from
            self.is_asked = bool(self._one_in or self._next_from)

    def wanted(self) -> Wanted:
        """Which exchanges are explained at present."""
        with self._lock:
            return Wanted(one_in=self._one_in, next_from=self._next_from)

    def timelines(self) -> list[Timeline]:
        """The last exchanges, and the last that were explained, the newest first."""
        records = {id(record): record for record in (*_copy(self._last), *_copy(self._explained))}
        difference = time.time() - time.monotonic()
        newest = sorted(records.values(), key=lambda record: record.ended_at, reverse=True)
        return [build_timeline(record, record.ended_at + difference) for record in newest]

    def _is_awaited(self, address: str) -> bool:
        with self._lock:
            if self._next_from != address:
                return False
            self._next_from = ""
            self.is_asked = self._one_in > 0
            return True


def _copy(ring: deque[Record]) -> list[Record]:
    while True:
        try:
            return list(ring)
        except RuntimeError:
            continue  # somebody has just appended


def merge_timelines(parts: Iterable[list[Timeline]]) -> list[Timeline]:
    """The last exchanges of several processes: as many as one keeps, the newest first."""
    found = [timeline for part in parts for timeline in part]
    found.sort(key=itemgetter("time"), reverse=True)
    explained = [item["id"] for item in found if item["choices"] is not None]
    kept = {*explained[:MOST_KEPT], *(item["id"] for item in found[:MOST_KEPT])}
    return [item for item in found if item["id"] in kept]
