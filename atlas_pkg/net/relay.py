"""Move bytes between two sockets without looking at them.

`Relay.copy` moves a counted number of bytes one way: through a kernel pipe where there are many and
the system can (`pipe.py`), else through one kept buffer. Either way memory does not depend on the
size of a body, and a side that does not read stops the other: we read again only when what was read
has been written.

`Tunnel` moves bytes both ways until both sides have ended. It runs in one thread that waits on both
sockets and writes without blocking, because two sides that each wait for the other to read would
otherwise wait for ever. The end of input on one side is passed on as such (a half-close), not as
the end of the tunnel.
"""

from __future__ import annotations

import select
import time

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.pipe import HAS_SPLICE, SPLICE_FROM, KernelPipe
from atlas_pkg.net.stream import Stream

# Larger reads cost less per byte: 0.86 s of CPU per GB with 64 KB, 0.41 s with 256 KB.
BUFFER_BYTES = 256 * 1024

# What a tunnel reads at once, each way.
TUNNEL_BYTES = 64 * 1024

# After one side of a tunnel has ended, the other may fall silent for so long.
HALF_CLOSED_LIMIT = 30.0


class Relay:
    """Copies between streams through a buffer and a pipe that are kept. Not thread-safe."""

    def __init__(self) -> None:
        self._storage: bytearray | None = None
        # None where splicing is not to be had.
        self.pipe = KernelPipe() if HAS_SPLICE else None
        self.moved = 0  # bytes, by the last `copy`; also when it failed

    @property
    def buffer(self) -> memoryview:
        """A view of the kept buffer."""
        return memoryview(self.storage)

    @property
    def storage(self) -> bytearray:
        """The kept buffer itself, made on first use."""
        if self._storage is None:
            self._storage = bytearray(BUFFER_BYTES)
        return self._storage

    def copy(
        self, source: Stream, sink: Stream, count: int, *, read_timeout: float, write_timeout: float
    ) -> None:
        """Move exactly `count` bytes; raises `StreamError` for the side that fails.

        Input that ends early is a failure of `source`; `sink` leaving is noticed while waiting.
        """
        self.moved = 0
        if self.pipe is not None and count >= SPLICE_FROM:
            pipe = self.pipe
            try:
                while self.moved < count:
                    left = count - self.moved
                    received = _expect(pipe.fill(source, left, read_timeout, sink), source)
                    pipe.drain(sink, write_timeout)
                    self.moved += received
            except BaseException:
                pipe.close()  # what is left in it belongs to no other body
                raise
            return
        buffer = self.buffer
        while self.moved < count:
            view = buffer[: count - self.moved]
            received = _expect(source.receive_into(view, read_timeout, sink), source)
            sink.send(view[:received], write_timeout)
            self.moved += received

    def close(self) -> None:
        """Release what was kept."""
        self._storage = None
        if self.pipe is not None:
            self.pipe.close()


def _expect(received: int, source: Stream) -> int:
    """Pass on a count of bytes that must not be 0, the end of input."""
    if not received:
        raise StreamError(source.side, "closed its connection in the middle of a body")
    return received


class _Direction:
    """One way of a tunnel: what was read from `source` and not yet taken by `sink`."""

    __slots__ = ("has_ended", "is_shut", "pending", "sink", "source")

    def __init__(self, source: Stream, sink: Stream) -> None:
        self.source = source
        self.sink = sink
        self.pending = memoryview(source.buffered)
        source.buffered = b""
        self.has_ended = False  # the source has sent its last byte
        self.is_shut = False  # and the sink has been told so

    def flush(self) -> bool:
        """Write what fits, and pass on the end of input; returns whether bytes moved."""
        moved = 0
        if self.pending:
            moved = self.sink.send_some(self.pending)
            self.pending = self.pending[moved:]
        if self.has_ended and not self.pending and not self.is_shut:
            self.sink.end_sending()
            self.is_shut = True
        return moved > 0

    def fill(self) -> None:
        """Read once; only called when the source is readable and nothing is pending."""
        data = self.source.receive(HALF_CLOSED_LIMIT)
        self.has_ended = not data
        self.pending = memoryview(data)


class Tunnel:
    """Bytes both ways between a client and an upstream, whatever they mean."""

    def __init__(self, client: Stream, upstream: Stream, idle_limit: float) -> None:
        self._up = _Direction(client, upstream)
        self._down = _Direction(upstream, client)
        self._idle_limit = idle_limit

    def run(self) -> None:
        """Relay until both sides have ended; closes neither. Raises `StreamError`."""
        last_moved = time.monotonic()
        while not (self._up.is_shut and self._down.is_shut):
            half_closed = self._up.is_shut or self._down.is_shut
            limit = min(self._idle_limit, HALF_CLOSED_LIMIT) if half_closed else self._idle_limit
            remaining = last_moved + limit - time.monotonic()
            if remaining <= 0:
                raise StreamError(Side.CLIENT, "the tunnel was idle too long", timed_out=True)
            readable = self._wait(remaining)
            for direction in (self._up, self._down):
                if direction.source in readable:
                    direction.fill()
                    last_moved = time.monotonic()
                if direction.flush():
                    last_moved = time.monotonic()

    def _wait(self, timeout: float) -> list[Stream]:
        """Wait until a socket is ready for what it is wanted for; returns those to read from.

        A socket that is wanted for nothing is left out, since `poll` reports a hang-up even
        to those who did not ask and would turn the wait into a busy loop.
        """
        poller = select.poll()
        readers: dict[int, Stream] = {}
        for inward, outward in ((self._up, self._down), (self._down, self._up)):
            stream = inward.source
            wanted = select.POLLOUT if outward.pending else 0
            if not inward.pending and not inward.has_ended:
                wanted |= select.POLLIN
                readers[stream.sock.fileno()] = stream
            if wanted:
                poller.register(stream.sock, wanted)
        ready = poller.poll(timeout * 1000 + 1)
        return [readers[fd] for fd, seen in ready if fd in readers and seen & ~select.POLLOUT]
