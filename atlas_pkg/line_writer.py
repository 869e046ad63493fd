"""Lines on their way to a file, a pipe or a terminal, written by a thread of its own.

Nobody who serves may wait for a disk, or for the reader of a pipe that has stopped reading. So
lines are put into a queue, and a thread takes what has gathered and hands it to the system in one
piece. The queue is bounded: where writing does not keep up, lines are lost and counted.

Make a `LineWriter` in the process that uses it: its thread does not survive a fork.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Sequence

# Lines that are written at once: a tenth of a millisecond without the interpreter for others.
PORTION = 1000


class LineOutput:
    """Where lines go: an open descriptor. For one thread at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # To a pipe several processes may write, and only so much of each write stays together.
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._is_torn = False

    def write(self, lines: Sequence[bytes]) -> None:
        """Write lines, as many at once as stay together. Blocks. Raises `OSError`."""
        if not lines:
            return
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

    def takes_more(self, timeout: float) -> bool:
        """Is there room for a line of usual length, now or within `timeout`?"""
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        return bool(poller.poll(timeout * 1000))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def _write_whole(self, data: bytes) -> None:
        if self._is_torn:  # the disk was full in the middle of a line
            data = b"\n" + data
        while data:
            try:
                written = os.write(self._fd, data)
            except BlockingIOError:  # whoever started us has left it non-blocking
                self.takes_more(1.0)
                continue
            self._is_torn = data[written - 1] != 0x0A
            data = data[written:]


class LineWriter:
    """A bounded queue of lines and the thread that empties it. `put` is for any thread."""

    def __init__(
        self,
        write: Callable[[list[bytes]], None],
        end: Callable[[], None],
        *,
        name: str,
        most_waiting: int,
        gather: float = 0.0,
    ) -> None:
        """Start the thread, called `name`.

        It calls `write` with the oldest lines, or with none after `wake`, and lets lines gather for
        `gather` seconds between two calls. `write` may block, and raises nothing. Last it calls
        `end`.
        """
        self._write = write
        self._end = end
        self._most_waiting = most_waiting
        self._gather = gather
        self._waiting: deque[bytes] = deque()
        self.is_resting = False  # nothing waits, and the thread wants to be woken
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def room(self) -> int:
        """How many lines more may wait."""
        return max(0, self._most_waiting - len(self._waiting))

    def put(self, lines: Sequence[bytes]) -> None:
        """Have lines written that there is `room` for. Never waits."""
        self._waiting.extend(lines)
        if self.is_resting:
            self.is_resting = False
            self._wake.set()

    def wake(self) -> None:
        """Have `write` called soon, whether lines wait or not."""
        self._wake.set()

    def close(self, patience: float) -> int:
        """Write what waits, for `patience` seconds at most, and end; returns how many still wait.

        There is no room for any more.
        """
        self._most_waiting = 0
        self._stopping.set()
        self._wake.set()
        self._thread.join(patience)
        return len(self._waiting)

    def _run(self) -> None:
        while True:
            portion = self._take()
            self._write(portion)
            if portion:
                self._pause()
            elif self._stopping.is_set():
                break
            else:
                self._rest()
        self._end()

    def _take(self) -> list[bytes]:
        """Take the oldest lines out of the queue. Only this thread takes any."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(PORTION, len(waiting)))]

    def _pause(self) -> None:
        """Let lines gather, so that each write carries many."""
        if self._gather and len(self._waiting) < PORTION:
            self._stopping.wait(self._gather)

    def _rest(self) -> None:
        """Wait until there is something to do."""
        self.is_resting = True
        # Looked at after `is_resting` was set: whoever puts lines there from now on wakes us.
        if not self._waiting:
            self._wake.wait()
        self._wake.clear()
        self.is_resting = False
