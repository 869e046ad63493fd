"""The access log: a line for every exchange, written by a thread of its own.

A worker only puts its record into a queue, so no client waits for a disk. The writer takes what
has gathered, formats it (`logline.py`) and hands it to the system in one piece. It works in small
portions with pauses between them: a thread that computes for long would keep the
interpreter lock from all workers.

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

from atlas_pkg.errors import StartError
from atlas_pkg.logs import Throttle
from atlas_pkg.record import Record
from atlas_pkg.serving.logline import Combined, Format, Json

log = logging.getLogger("atlas.access")

# Records that may wait: two seconds of the fastest load, some 60 MB.
MOST_WAITING = 100_000

# Lines in one portion: half a millisecond of computing. After it the writer rests, unless the
# queue is half full; an empty one is left to gather for longer.
PORTION = 100
REST = 0.001
GATHER = 0.05

# How long `close` lets the writer finish, which writes some hundred thousand lines a second.
CLOSE_PATIENCE = 3.0

FORMATS: dict[str, type[Format]] = {"combined": Combined, "json": Json}


class _Output:
    """Where lines go, and in which format. Used by the writer's thread alone once it is there."""

    def __init__(self, path: str, format_name: str) -> None:
        self.path = path
        self.format_name = format_name
        self.format = FORMATS[format_name]().format
        self._fd = open_log(path)
        # Several processes may write to one pipe. So much of one write stays together.
        is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._most_bytes = 1 << 30 if is_file else select.PIPE_BUF
        self._is_torn = False

    def write(self, lines: list[bytes]) -> None:
        """Write lines, as many at once as stay together. Raises `OSError`."""
        piece: list[bytes] = []
        size = 0
        for line in lines:
            if piece and size + len(line) > self._most_bytes:
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

    def __init__(self, path: str, format_name: str, *, most_waiting: int = MOST_WAITING) -> None:
        """Open the log and start the writer; raises `StartError`."""
        self._output = _Output(path, format_name)  # the writer's own
        self._most_waiting = most_waiting
        self._waiting: deque[Record] = deque()
        self._is_resting = False  # nothing waits, and the writer wants to be woken
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._throttle = Throttle(log)
        # Guards what follows: what the writer is to turn to, what it was told last, what was lost.
        self._lock = threading.Lock()
        self._next: _Output | None = None
        self._target = (path, format_name)
        self._dropped = 0
        self._writer = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """How many lines were lost."""
        with self._lock:
            return self._dropped

    def note(self, record: Record) -> None:
        """Have one exchange that has ended written. Never waits."""
        if len(self._waiting) >= self._most_waiting:
            self._drop(1, "they come faster than they are written")
            return
        self._waiting.append(record)
        if self._is_resting:
            self._is_resting = False
            self._wake.set()

    def switch(self, path: str, format_name: str) -> None:
        """Go on at another path or in another format; raises `StartError`, and all stays as it is.

        What waits is written there, too. The same path is opened anew.
        """
        output = _Output(path, format_name)
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
            log.warning("access log: %d lines were lost in all", dropped)

    def _drop(self, count: int, cause: str) -> None:
        with self._lock:
            self._dropped += count
        self._throttle.write(logging.WARNING, cause, "access log: lines are lost: %s", cause)

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

    def _take(self) -> list[Record]:
        """Take the oldest records out of the queue. Only the writer takes any."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(PORTION, len(waiting)))]

    def _write(self, portion: list[Record]) -> None:
        output = self._output
        # The difference may change: somebody sets the clock.
        difference = time.time() - time.monotonic()
        try:
            output.write(
                [output.format(record, record.ended_at + difference) for record in portion]
            )
        except OSError as error:
            self._drop(len(portion), f"{output.path}: {error.strerror or error}")
        except Exception:
            # A background thread: whatever is wrong with these records, others will follow.
            log.exception("access log: %d lines could not be written", len(portion))
            self._drop(len(portion), "an error in Atlas")

    def _pause(self) -> None:
        """Leave the interpreter to the workers for a moment."""
        waiting = len(self._waiting)
        if waiting < self._most_waiting // 2:
            self._stopping.wait(REST if waiting >= PORTION else GATHER)

    def _rest(self) -> None:
        """Wait until there is something to do."""
        self._is_resting = True
        # Looked at after the sign was put up: who comes now sees it.
        if not self._waiting:
            self._wake.wait()
        self._wake.clear()
        self._is_resting = False
