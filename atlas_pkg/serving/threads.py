"""Threads that may wait: one for each thing that is waited for.

There is always one in reserve, up to the limit: a thread that takes work while no other is idle
starts one first, so that the lane never has to (a start takes 100 µs). One that finds nothing to do
for a while ends.

What may take long (uploads, answers under way) may have three quarters of them. So however many
clients send or read slowly, some are always there to open connections, and requests that take no
time are served.

Work beyond the limits stands in line, for `timeouts.queue` at most; then the lane answers it with
503. There is never more of it than there are clients.
"""

from __future__ import annotations

import contextlib
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


_Line = deque[tuple[float, Exchange]]


class Threads:
    """At most `most` threads that do `work`. Thread-safe."""

    def __init__(self, work: Callable[[Exchange, Copier], None], most: int) -> None:
        self._work = work
        self._most = most
        self._most_long = most - max(1, most // 4) if most > 1 else most
        # Two lines, and a wake-up for each exchange that joined one. When an exchange is taken out
        # as overdue its wake-up stays, so a thread may wake and find nothing.
        self._line: _Line = deque()
        self._long_line: _Line = deque()
        self._wake_ups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the three counts
        self._idle = 0
        self._running = 0
        self._long = 0  # of those running, how many do what may take long
        self._throttle = Throttle(log)

    @property
    def waiting(self) -> int:
        """How many stand in line because every thread that they may have is at work."""
        if not self._idle and self._running >= self._most:
            return self.standing
        return len(self._long_line) if self._long >= self._most_long else 0

    @property
    def standing(self) -> int:
        """How many stand in line, if only until a thread has woken up."""
        return len(self._line) + len(self._long_line)

    def start(self) -> None:
        """Start the first thread."""
        threading.stack_size(STACK_BYTES)
        self._keep_reserve()

    def put(self, exchange: Exchange) -> None:
        """Have a thread go on with `exchange`. Never waits; the caller gives it up."""
        line = self._long_line if exchange.may_take_long else self._line
        line.append((time.monotonic(), exchange))
        self._wake_ups.put(None)

    def take_overdue(self, now: float) -> Iterator[Exchange]:
        """Take out those that have stood in line for too long, oldest first. For one thread."""
        for line in (self._line, self._long_line):
            put_back = []
            while line:
                try:
                    since, exchange = line.popleft()
                except IndexError:
                    break
                if now - since < exchange.generation.config.timeouts.queue:
                    put_back.append((since, exchange))  # nor are those behind it overdue
                    break
                if exchange.has_started:  # it is too late to say anything else
                    put_back.append((since, exchange))
                else:
                    yield exchange
            line.extendleft(reversed(put_back))
            for _ in put_back:
                self._wake_ups.put(None)  # a thread that has looked meanwhile did not find it

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
            self._warn(self._most)

    def _warn(self, count: int) -> None:
        self._throttle.write(
            logging.WARNING,
            f"{count} at work",
            "%d threads are at work (listen.max_threads = %d); others wait",
            count,
            self._most,
        )

    def _run(self) -> None:
        copier = Copier()
        while self._wait_for_work():
            # Until there is none, not one piece for each wake-up: what was passed over before,
            # since too many long ones were under way, has used up its own.
            while (taken := self._take()) is not None:
                exchange, is_long = taken
                self._keep_reserve()
                try:
                    self._work(exchange, copier)
                finally:
                    with self._lock:
                        self._idle += 1
                        self._long -= is_long
        copier.close()

    def _take(self) -> tuple[Exchange, bool] | None:
        """Take the first in line that may be served, and whether it may take long."""
        with self._lock:
            has_room = self._long < self._most_long
            for line in (self._line, self._long_line) if has_room else (self._line,):
                is_long = line is self._long_line
                with contextlib.suppress(IndexError):  # nobody is there, or has lost patience
                    _, exchange = line.popleft()
                    self._idle -= 1
                    self._long += is_long
                    return exchange, is_long
        if self._long_line and not has_room:
            self._warn(self._most_long)
        return None

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
