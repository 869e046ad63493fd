"""The access log: a line for every exchange, written by a thread of its own.

Who publishes records formats their lines (`log_format.py`) and puts them into a queue. So no client
waits for a disk: the writer takes what has gathered and hands it to the system in one piece. (A
writer that formats as well costs three times as much.)

The queue is bounded. Where the disk or the reader of a pipe does not keep up, lines are dropped,
counted, and the log says so. Nothing here ever fails a request.

The file is opened for appending, so several processes may share it, and `reopen` takes a new one
after logrotate has moved the old away. Make an `AccessLog` in the process that serves: its thread
does not survive a fork.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Sequence

from atlas_pkg.errors import StartError
from atlas_pkg.logs import Throttle
from atlas_pkg.observing.log_format import Combined, Format, Json
from atlas_pkg.observing.record import Record
from atlas_pkg.observing.terminal import Blocks

log = logging.getLogger("atlas.access")

# Lines that may wait: two seconds of the fastest load, some 20 MB.
MOST_WAITING = 100_000

# Lines that are written at once: a tenth of a millisecond without the interpreter for the lane.
PORTION = 1000

# How long lines are left to gather: whenever the writer wakes, the lane has to stop.
GATHER = 0.2

# How long `close` lets the writer finish.
CLOSE_PATIENCE = 3.0

# The formats of the configuration, and that of explanations.
EXPLAINED = "explained"
FORMATS: dict[str, type[Format]] = {"combined": Combined, "json": Json, EXPLAINED: Blocks}


class _Output:
    """Where lines go. Used by the writer's thread alone once it is there."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = open_log(path)
        # Several processes may write to one pipe. So much of one write stays together.
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._is_torn = False

    def write(self, lines: list[bytes]) -> None:
        """Write lines, as many at once as stay together. Raises `OSError`."""
        if self._is_file:
            self._write_whole(b"".join(lines))
            return
        piece: list[bytes] = []
        size = 0
        for line in lines:
            if piece and size + len(line) > select.PIPE_BUF:
                self._write_whole(b"".join(piece))
                piece, size = [], 0
            piece.append(line)
            size += len(line)
        self._write_whole(b"".join(piece))

    def _write_whole(self, data: bytes) -> None:
        if self._is_torn:  # the disk was full in the middle of a line
            data = b"\n" + data
        while data:
            written = os.write(self._fd, data)
            self._is_torn = data[written - 1] != 0x0A
            data = data[written:]

    def close(self) -> None:
        """Close what was opened."""
        os.close(self._fd)


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
        self._output = _Output(path)  # the writer's own
        self._format = FORMATS[format_name]()
        self._most_waiting = most_waiting
        self._waiting: deque[bytes] = deque()
        self._is_resting = False  # nothing waits, and the writer wants to be woken
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._throttle = Throttle(log)
        # Guards what follows: what the writer is to turn to, what it was told last, what was lost.
        self._lock = threading.Lock()
        self._next: _Output | None = None
        self._target = (path, format_name)
        self._dropped = 0
        self._writer = threading.Thread(target=self._run, name=what.replace(" ", "-"), daemon=True)
        self._writer.start()

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
        room = max(0, self._most_waiting - len(self._waiting))
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
        self._waiting.extend(lines)
        if self._is_resting:
            self._is_resting = False
            self._wake.set()

    def switch(self, path: str, format_name: str) -> None:
        """Go on at another path or in another format; raises `StartError`, and all stays as it is.

        What waits is written there, too. The same path is opened anew.
        """
        output = _Output(path)
        self._format = FORMATS[format_name]()
        with self._lock:
            self._target = (path, format_name)
            passed_over, self._next = self._next, output
        self._wake.set()
        if passed_over is not None:
            passed_over.close()

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
        self._most_waiting = 0
        self._stopping.set()
        self._wake.set()
        self._writer.join(patience)
        if self._writer.is_alive():
            self._drop(len(self._waiting), "they could not be written in time")
        if dropped := self.dropped:
            log.warning("%s: %d lines were lost in all", self._what, dropped)

    def _drop(self, count: int, cause: str) -> None:
        with self._lock:
            self._dropped += count
        self._throttle.write(logging.WARNING, cause, "%s: lines are lost: %s", self._what, cause)

    def _run(self) -> None:
        while True:
            self._turn()
            portion = self._take()
            if portion:
                self._write(portion)
                self._pause()
            elif self._stopping.is_set():
                break
            else:
                self._rest()
        self._turn()
        self._output.close()

    def _turn(self) -> None:
        """Take over what `switch` has opened."""
        with self._lock:
            output, self._next = self._next, None
        if output is not None:
            self._output.close()
            self._output = output

    def _take(self) -> list[bytes]:
        """Take the oldest lines out of the queue. Only the writer takes any."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(PORTION, len(waiting)))]

    def _write(self, portion: list[bytes]) -> None:
        try:
            self._output.write(portion)
        except OSError as error:
            self._drop(len(portion), f"{self._output.path}: {error.strerror or error}")

    def _pause(self) -> None:
        """Let lines gather, so that each write carries many."""
        if len(self._waiting) < PORTION:
            self._stopping.wait(GATHER)

    def _rest(self) -> None:
        """Wait until there is something to do."""
        self._is_resting = True
        # Looked at after the sign was put up: who comes now sees it.
        if not self._waiting:
            self._wake.wait()
        self._wake.clear()
        self._is_resting = False
