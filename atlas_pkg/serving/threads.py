"""Threads that may wait: one for each thing that is waited for.

There is always one in reserve, up to the limit: whoever takes the last piece of work starts the
next thread before it begins, so that the lane never has to (a start takes 100 µs). One that finds
nothing to do for a while ends.

Work beyond the limit stands in line, for `timeouts.queue` at most; then the lane answers it with
503. There is never more of it than there are clients.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from atlas_pkg.logs import Throttle
from atlas_pkg.net.copy import Copier
from atlas_pkg.serving.exchange import Exchange

log = logging.getLogger("atlas.threads")

# A thread ends after having nothing to do for so long.
RETIRE_AFTER = 2.0

# Each thread calls a few Python frames deep; 8 MiB of default stack are never touched.
STACK_BYTES = 512 * 1024


class Threads:
    """At most `most` threads that do `work`. Thread-safe."""

    def __init__(self, work: Callable[[Exchange, Copier], None], most: int) -> None:
        self._work = work
        self._most = most
        # The line, and a wake-up for each that joined it. One that has lost patience takes nobody's
        # wake-up along, so a thread may find nothing.
        self._line: deque[tuple[float, Exchange]] = deque()
        self._wake_ups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the two counts
        self._idle = 0
        self._running = 0
        self._throttle = Throttle(log)

    @property
    def waiting(self) -> int:
        """How many stand in line because every thread is at work; for any thread."""
        return len(self._line) if not self._idle and self._running >= self._most else 0

    def start(self) -> None:
        """Start the first thread."""
        threading.stack_size(STACK_BYTES)
        self._keep_reserve()

    def put(self, exchange: Exchange) -> None:
        """Have a thread go on with `exchange`. Never waits; the caller gives it up."""
        self._line.append((time.monotonic(), exchange))
        self._wake_ups.put(None)

    def take_overdue(self, now: float) -> Iterator[Exchange]:
        """Own those that have stood in line for too long, the first first. For one thread only."""
        spared = []
        while self._line:
            try:
                since, exchange = self._line.popleft()
            except IndexError:
                break
            if now - since < exchange.generation.config.timeouts.queue:
                self._line.appendleft((since, exchange))  # it came next anyway
                break
            if exchange.has_started:  # it is too late to say anything else
                spared.append((since, exchange))
            else:
                yield exchange
        self._line.extendleft(reversed(spared))

    def _keep_reserve(self) -> None:
        """See to it that somebody is idle, if that is possible."""
        with self._lock:
            is_full = not self._idle and self._running >= self._most
            is_short = not self._idle and not is_full
            self._idle += is_short
            self._running += is_short
        if is_short:
            threading.Thread(target=self._run, name="waiting", daemon=True).start()
        elif is_full:
            self._throttle.write(
                logging.WARNING,
                "full",
                "%d threads are at work (listen.max_threads); others wait",
                self._most,
            )

    def _run(self) -> None:
        copier = Copier()
        while self._wait_for_work():
            try:
                _, exchange = self._line.popleft()
            except IndexError:
                continue  # it has lost patience
            with self._lock:
                self._idle -= 1
            self._keep_reserve()
            try:
                self._work(exchange, copier)
            finally:
                with self._lock:
                    self._idle += 1
        copier.close()

    def _wait_for_work(self) -> bool:
        """Wait until somebody joins the line; False when it is time to end."""
        while True:
            try:
                self._wake_ups.get(timeout=RETIRE_AFTER if self._idle > 1 else None)
            except queue.Empty:
                with self._lock:
                    if self._idle > 1:
                        self._idle -= 1
                        self._running -= 1
                        return False
            else:
                return True
