"""Logging: one line an event, on standard error, and never a flood.

Levels mean what a person expects. ERROR: Atlas itself is at fault. WARNING: something that Atlas
depends on is ill, such as an upstream that cannot be reached. INFO: what an operator wants in a
quiet log. DEBUG: the rest, such as clients that hang up.

`Throttle` keeps causes that repeat for every request from filling the disk: the first event is
logged at once, those that follow are counted, and the count is told with the next line that is let
through.
"""

from __future__ import annotations

import logging
import threading
import time

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

# One line per cause in this many seconds.
THROTTLE_INTERVAL = 5.0

# Causes remembered at once; beyond it they are forgotten, which costs a line too many.
_MAX_CAUSES = 1000


def set_up(level: str) -> None:
    """Send the log of this process to standard error at `level` (debug, info, warning, error)."""
    logging.basicConfig(format=FORMAT, level=level.upper())
    # It tells of every event in a watched folder, its own lines in a log file there included.
    logging.getLogger("watchdog").setLevel(logging.WARNING)


def set_process(name: str) -> None:
    """Have every line tell which of several processes it comes from."""
    formatter = logging.Formatter(FORMAT.replace("%(name)s", f"[{name}] %(name)s"))
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def set_level(level: str) -> None:
    """Change the level while running."""
    logging.getLogger().setLevel(level.upper())


def level() -> str:
    """The level in force."""
    return logging.getLevelName(logging.getLogger().level).lower()


class Throttle:
    """Logs at most one line per cause and interval. Thread-safe."""

    def __init__(self, log: logging.Logger, interval: float = THROTTLE_INTERVAL) -> None:
        self._log = log
        self._interval = interval
        # Guards _causes: cause -> (time of its last line, events passed over since).
        self._lock = threading.Lock()
        self._causes: dict[str, tuple[float, int]] = {}

    def write(self, level: int, cause: str, message: str, *arguments: object) -> None:
        """Log `message`, unless `cause` was logged within the interval; then count it."""
        if not self._log.isEnabledFor(level):
            return
        now = time.monotonic()
        with self._lock:
            last, passed_over = self._causes.get(cause, (-self._interval, 0))
            is_due = now - last >= self._interval
            if len(self._causes) >= _MAX_CAUSES:
                self._causes.clear()
            self._causes[cause] = (now, 0) if is_due else (last, passed_over + 1)
        if is_due and passed_over:
            message += f" ({passed_over} more like this before)"
        if is_due:
            self._log.log(level, message, *arguments)
