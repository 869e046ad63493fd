"""The access log: a line for every exchange, written by a thread of its own.

Who publishes records formats their lines (`log_format.py`) and puts them into the queue of a
`LineWriter`, so no client waits for a disk. (A writer that formats as well costs three times as
much.)

Where the disk or the reader of a pipe does not keep up, lines are dropped, counted, and the log
says so. Nothing here ever fails a request.

The file is opened for appending, so several processes may share it, and `reopen` takes a new one
after logrotate has moved the old away. Make an `AccessLog` in the process that serves: its thread
does not survive a fork.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence

from atlas_pkg.errors import StartError
from atlas_pkg.line_writer import LineOutput, LineWriter
from atlas_pkg.logs import Throttle
from atlas_pkg.observing.log_format import Combined, Format, Json
from atlas_pkg.observing.record import Record
from atlas_pkg.observing.terminal import Blocks

log = logging.getLogger("atlas.access")

# Lines that may wait: two seconds of the fastest load, some 20 MB.
MOST_WAITING = 100_000

# How long lines are left to gather: whenever the writer wakes, the lane has to stop.
GATHER = 0.2

# How long `close` lets the writer finish.
CLOSE_PATIENCE = 3.0

# The formats of the configuration, and that of explanations.
EXPLAINED = "explained"
FORMATS: dict[str, type[Format]] = {"combined": Combined, "json": Json, EXPLAINED: Blocks}


def open_log(path: str) -> int:
    """Open a log for appending; "-" is standard output. Raises `StartError`."""
    try:
        if path == "-":
            return os.dup(1)
        # A named pipe without a reader is an error and not a reason to wait for one.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(path, flags, 0o644)
        os.set_blocking(fd, True)
    except OSError as error:
        raise StartError(f"log.access: cannot open {path}: {error.strerror or error}") from None
    return fd


class AccessLog:
    """Writes what `note` is given. Its methods may be called by any thread."""

    def __init__(
        self,
        path: str,
        format_name: str,
        *,
        most_waiting: int = MOST_WAITING,
        what: str = "access log",
    ) -> None:
        """Open the log and start the writer; raises `StartError`. `what` is its name for people."""
        self._what = what
        self._path = path  # for the writer's thread alone, as is the output
        self._output = LineOutput(open_log(path))
        self._format = FORMATS[format_name]()
        self._throttle = Throttle(log)
        # Guards what follows: what the writer is to turn to, what it was told last, what was lost.
        self._lock = threading.Lock()
        self._next: tuple[str, LineOutput] | None = None
        self._target = (path, format_name)
        self._dropped = 0
        self._writer = LineWriter(
            self._write,
            self._end,
            name=what.replace(" ", "-"),
            most_waiting=most_waiting,
            gather=GATHER,
        )

    @property
    def dropped(self) -> int:
        """How many lines were lost."""
        with self._lock:
            return self._dropped

    @property
    def shows_times(self) -> bool:
        """Does a line tell when each stage was reached?"""
        return self._format.shows_times

    def note(self, records: Sequence[Record]) -> None:
        """Have exchanges that have ended written; an `Observer`. Never waits."""
        room = self._writer.room
        if room < len(records):
            self._drop(len(records) - room, "they come faster than they are written")
            records = records[:room]
            if not records:
                return
        try:
            lines = self._format.format(records, time.time() - time.monotonic())
        except Exception:
            # Nothing here ever fails a request, and one line does not take others with it.
            if len(records) > 1:
                for record in records:
                    self.note([record])
                return
            log.exception("%s: a line could not be written", self._what)
            self._drop(1, "an error in Atlas")
            return
        self._writer.put(lines)

    def switch(self, path: str, format_name: str) -> None:
        """Go on at another path or in another format; raises `StartError`, and all stays as it is.

        What waits is written there, too. The same path is opened anew.
        """
        output = LineOutput(open_log(path))
        self._format = FORMATS[format_name]()
        with self._lock:
            self._target = (path, format_name)
            passed_over, self._next = self._next, (path, output)
        self._writer.wake()
        if passed_over is not None:
            passed_over[1].close()

    def reopen(self) -> None:
        """Open the path anew, since logrotate may have moved the file; on failure keep the old."""
        with self._lock:
            path, format_name = self._target
        try:
            self.switch(path, format_name)
        except StartError as error:
            log.error("%s; the file in use stays", error)

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """Write what waits, for `patience` seconds at most, and end. What comes later is lost."""
        if left := self._writer.close(patience):
            self._drop(left, "they could not be written in time")
        if dropped := self.dropped:
            log.warning("%s: %d lines were lost in all", self._what, dropped)

    def _drop(self, count: int, cause: str) -> None:
        with self._lock:
            self._dropped += count
        self._throttle.write(logging.WARNING, cause, "%s: lines are lost: %s", self._what, cause)

    def _write(self, lines: list[bytes]) -> None:
        """Write lines where they go by now. Called on the writer's thread."""
        self._turn()
        try:
            self._output.write(lines)
        except OSError as error:
            self._drop(len(lines), f"{self._path}: {error.strerror or error}")

    def _end(self) -> None:
        self._turn()
        self._output.close()

    def _turn(self) -> None:
        """Take over what `switch` has opened."""
        with self._lock:
            following, self._next = self._next, None
        if following is not None:
            self._output.close()
            self._path, self._output = following
