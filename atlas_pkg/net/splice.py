"""A kernel pipe through which bytes pass from socket to socket without entering Python.

`splice` (Linux) moves pages from a socket's receive queue into a pipe and from the pipe into
another socket's send queue. Nothing is copied to user space, so a gigabyte costs about 0.28 s of
CPU where reading and writing 256 KB at a time costs 0.41 s. A pipe takes 64 KB by default; ours is
enlarged to 1 MiB, so that one round trip moves more.

A thread that moves bodies keeps one pipe. It is empty between two bodies; after a failure it is
thrown away, since bytes of the failed body may be left in it.
"""

from __future__ import annotations

import fcntl
import os

from atlas_pkg.net.stream import Stream

# The most that an unprivileged process may ask for (fs.pipe-max-size).
PIPE_BYTES = 1 << 20

# Below this, two system calls more cost as much as they save.
SPLICE_FROM = 128 * 1024

HAS_SPLICE = hasattr(os, "splice")


class KernelPipe:
    """One pipe, opened on first use. Not thread-safe."""

    __slots__ = ("_ends", "held")

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None
        self.held = 0  # bytes inside

    def fill(self, source: Stream, count: int, timeout: float, other: Stream | None = None) -> int:
        """Take up to `count` bytes from `source`; returns how many, 0 at the end of input.

        The pipe must be empty, else this would wait for a reader that is ourselves. Blocks and
        raises as `Stream.receive` does.
        """
        while (held := self.fill_now(source, count)) is None:
            source.wait_until_readable(timeout, other)
        return held

    def fill_now(self, source: Stream, count: int) -> int | None:
        """As `fill`, but None where nothing has come. Waits no longer than the socket does."""
        writer = self.open()[1]
        try:
            self.held = os.splice(source.fd, writer, min(count, PIPE_BYTES))
        except BlockingIOError:
            return None
        except OSError as error:
            raise source.broken(error) from None
        return self.held

    def drain_some(self, sink: Stream) -> int:
        """Write what `sink` takes within its patience; returns how much is left in the pipe.

        Raises `StreamError`.
        """
        reader = self.open()[0]
        try:
            self.held -= os.splice(reader, sink.fd, self.held)
        except BlockingIOError:
            return self.held
        except OSError as error:
            raise sink.broken(error) from None
        return self.held

    def drain(self, sink: Stream, timeout: float) -> None:
        """Write all that is held; raises `StreamError` when nothing can be written for
        `timeout`."""
        while self.held:
            before = self.held
            if self.drain_some(sink) == before:
                sink.wait_until_writable(timeout)

    def read(self) -> bytes:
        """Take what is held into memory after all; at most `PIPE_BYTES`."""
        data = os.read(self.open()[0], self.held) if self.held else b""
        self.held -= len(data)
        return data

    def close(self) -> None:
        """Throw the pipe away with what is in it; the next use opens another."""
        if self._ends is not None:
            for end in self._ends:
                os.close(end)
        self._ends = None
        self.held = 0

    def open(self) -> tuple[int, int]:
        """Open it where it is not yet; returns its ends. Raises `OSError`."""
        if self._ends is None:
            self._ends = os.pipe()
            try:
                fcntl.fcntl(self._ends[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                # The user's share of pipe memory is used up: a small pipe works too.
                return self._ends
        return self._ends
