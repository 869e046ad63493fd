"""Logging: one line an event, on standard error, and never a flood.

Levels mean what a person expects. ERROR: Atlas itself is at fault. WARNING: something that Atlas
depends on is ill, such as an upstream that cannot be reached. INFO: what an operator wants in a
quiet log. DEBUG: the rest, such as clients that hang up.

Until `write_in_background`, whoever logs also writes. From then on lines wait for a thread of their
own (`line_writer.py`): nobody who serves may depend on whoever reads this log. Lines that are lost,
because their reader is too slow, are counted and told.

`Throttle` keeps causes that repeat for every request from filling the disk: the first event is
logged at once, those that follow are counted, and the count is told with the next line that is let
through.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
from types import TracebackType

from atlas_pkg.line_writer import LineOutput, LineWriter

log = logging.getLogger("atlas")

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

# One line per cause in this many seconds.
THROTTLE_INTERVAL = 5.0

# Causes remembered at once; beyond it they are forgotten, which costs a line too many.
_MAX_CAUSES = 1000

# Lines that may wait: some 10 MB of an unusually loud log.
MOST_WAITING = 50_000

# How long the end of the process waits for the log's reader.
CLOSE_PATIENCE = 1.0

# How long a process without a thread for it lets a reader keep it waiting for one line.
WRITE_PATIENCE = 0.5


class _StandardError(logging.Handler):
    """Writes to standard error, or has a thread write there. Never raises, never waits for long."""

    def __init__(self) -> None:
        super().__init__()
        # A process started without standard error must not write into whatever has its number now.
        self._output = LineOutput(sys.stderr.fileno()) if sys.stderr is not None else None
        self._writer: LineWriter | None = None
        self._counting = threading.Lock()  # guards _lost
        self._lost = 0  # and not told yet
        self._is_stuck = False

    def write_in_background(self) -> None:
        """From now on have a thread write."""
        if self._writer is None and self._output is not None:
            self._writer = LineWriter(
                self._write, lambda: None, name="log", most_waiting=MOST_WAITING
            )

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or have it written. The library holds the handler's lock."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:  # noqa: BLE001 - as the library does it: a line costs no request
            self.handleError(record)
            return
        if self._writer is not None:
            if self._writer.room:
                self._writer.put([line])
            else:
                self._lose(1)
        elif self._output is not None:
            # A reader that was waited for in vain is not waited for again.
            self._is_stuck = not self._output.takes_more(0 if self._is_stuck else WRITE_PATIENCE)
            if self._is_stuck:
                self._lose(1)
            else:
                self._write([line])

    def close(self) -> None:
        """Write what waits, within a second. Called by the library when the interpreter ends."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._is_stuck = writer.close(CLOSE_PATIENCE) > 0
        super().close()

    def _write(self, lines: list[bytes]) -> None:
        """Write lines, and how many were lost before them."""
        assert self._output is not None
        with self._counting:
            lost, self._lost = self._lost, 0
        told = b""
        if lost:
            words = f"{lost} lines of this log were lost: its reader is too slow"
            record = log.makeRecord(log.name, logging.WARNING, "", 0, words, (), None)
            told = f"{self.format(record)}\n".encode()
        try:
            self._output.write([*lines, told] if told else lines)
        except OSError:
            self._lose(lost + len(lines))  # the reader is gone, or the disk is full

    def _lose(self, count: int) -> None:
        with self._counting:
            self._lost += count


def set_up(level: str) -> None:
    """Send the log of this process to standard error at `level` (debug, info, warning, error)."""
    logging.basicConfig(format=FORMAT, level=level.upper(), handlers=[_StandardError()])
    # It tells of every event in a watched folder, its own lines in a log file there included, and
    # calls it an error when one comes while we end. What it misses, `control/reload.py` finds.
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)


def set_process(name: str) -> None:
    """Have every line tell which of several processes it comes from."""
    formatter = logging.Formatter(FORMAT.replace("%(name)s", f"[{name}] %(name)s"))
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def write_in_background() -> None:
    """From now on have lines written by a thread. In each process that serves, after its fork."""
    for handler in _handlers():
        handler.write_in_background()
    # The interpreter would write these itself, and wait for a reader that has stopped reading.
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = functools.partial(_log_unraisable, Throttle(log))


def close() -> None:
    """Write what waits, within a second. Where a process ends in another way than it usually does.

    Later lines are written by who logs them.
    """
    for handler in _handlers():
        handler.close()


def _handlers() -> list[_StandardError]:
    return [one for one in logging.getLogger().handlers if isinstance(one, _StandardError)]


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("an error that nobody met", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread is not None else "unknown"
    log.critical("an error that nobody met, in thread %s", name, exc_info=arguments.exc_value)


def _log_unraisable(throttle: Throttle, arguments: sys.UnraisableHookArgs) -> None:
    """Clients can cause one, in as many words as they like: by a name in TLS that is no text."""
    kind = arguments.exc_type.__name__
    message = "the interpreter has passed over an error: %s: %s"
    throttle.write(logging.WARNING, kind, message, kind, arguments.exc_value)


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
