"""Bytes both ways between two connections, whatever they mean.

A tunnel moves bytes until both sides have ended. It runs in one thread that waits on both sockets
and writes without blocking, because two sides that each wait for the other to read would otherwise
wait for ever. A bulk transfer goes through a kernel pipe. The end of input on one side is passed
on as such (a half-close), not as the end of the tunnel. A machine that vanishes without an end is
found out by TCP's keep-alive.
"""

from __future__ import annotations

import select
import time

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.splice import HAS_SPLICE, PIPE_BYTES, KernelPipe
from atlas_pkg.net.stream import RECEIVE_BYTES, Stream

# After one side of a tunnel has ended, the other may fall silent for so long.
HALF_CLOSED_LIMIT = 30.0


class _Direction:
    """One way of a tunnel: what was read from `source` and not yet taken by `sink`.

    A read that fills the buffer is the sign of a bulk transfer: it goes on through a kernel pipe
    until less than that comes at once. Messages of a chat never need one.
    """

    __slots__ = ("_may_splice", "_pipe", "_unsent", "has_ended", "is_shut", "sink", "source")

    def __init__(self, source: Stream, sink: Stream) -> None:
        self.source = source
        self.sink = sink
        self._unsent = memoryview(b"")
        self._may_splice = HAS_SPLICE and source.is_plain and sink.is_plain
        self._pipe: KernelPipe | None = None
        self.has_ended = False  # the source has sent its last byte
        self.is_shut = False  # and the sink has been told so

    @property
    def is_pending(self) -> bool:
        """Is there something that the sink has not taken yet?"""
        return bool(self._unsent) or (self._pipe is not None and self._pipe.held > 0)

    def flush(self) -> bool:
        """Write what fits, and pass on the end of input; returns whether bytes moved."""
        moved = 0
        if self._unsent:
            moved = self.sink.send_some(self._unsent)
            self._unsent = self._unsent[moved:]
        elif self._pipe is not None and self._pipe.held:
            moved = self._pipe.held - self._pipe.drain_some(self.sink)
        if self.has_ended and not self.is_pending and not self.is_shut:
            self.sink.end_sending()
            self.is_shut = True
        return moved > 0

    def fill(self) -> None:
        """Read once; only called when the source is readable and nothing is pending."""
        if self._pipe is not None:
            received = self._pipe.fill(self.source, PIPE_BYTES, HALF_CLOSED_LIMIT)
            if received >= RECEIVE_BYTES:
                return
            self._unsent = memoryview(self._pipe.read())
            self.close()
        else:
            data = self.source.buffered or self.source.receive_now()
            self.source.buffered = b""
            if data is None:
                return
            self._unsent = memoryview(data)
            received = len(data)
            if received == RECEIVE_BYTES and self._may_splice:
                self._pipe = KernelPipe()
        self.has_ended = not received

    def close(self) -> None:
        """Release the pipe, and with it what the sink will not take any more."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


class Tunnel:
    """Bytes both ways between a client and an upstream, whatever they mean."""

    def __init__(self, client: Stream, upstream: Stream, idle_limit: float) -> None:
        for stream in (client, upstream):
            stream.stop_blocking()  # one that does not read must not stop the other way
            stream.keep_alive()  # silence may last for hours, and tell nothing
        self._up = _Direction(client, upstream)
        self._down = _Direction(upstream, client)
        self._idle_limit = idle_limit

    def run(self) -> None:
        """Relay until both sides have ended; closes neither. Raises `StreamError`."""
        try:
            self._run()
        finally:
            self._up.close()
            self._down.close()

    def _run(self) -> None:
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
        directions = (self._up, self._down)
        if full := [way.source for way in directions if way.source.buffered and not way.is_pending]:
            return full  # it has been read already
        poller = select.poll()
        readers: dict[int, Stream] = {}
        for inward, outward in ((self._up, self._down), (self._down, self._up)):
            stream = inward.source
            wanted = select.POLLOUT if outward.is_pending else 0
            if not inward.is_pending and not inward.has_ended:
                wanted |= select.POLLIN
                readers[stream.fd] = stream
            if wanted:
                poller.register(stream.fd, wanted)
        ready = poller.poll(timeout * 1000 + 1)
        return [readers[fd] for fd, seen in ready if fd in readers and seen & ~select.POLLOUT]
