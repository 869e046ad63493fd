"""Move a body from one connection to another: the one loop for downloads and uploads.

A piece is read only when the one before it has been written, so memory does not depend on the size
of a body, and a side that does not read stops the other. What needs no look goes through a kernel
pipe where there is much of it and the system can (`splice.py`), else through one kept buffer.

An upload has to stop as soon as its upstream says something: it may refuse the rest (413), or echo
what it reads. Then the copy returns, and what was read and not written waits in the body. It may
be taken up again later, also by another thread.

Not done here: what the bytes mean. The body says how they are framed (`http1/body.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from atlas_pkg.net.splice import HAS_SPLICE, SPLICE_FROM, KernelPipe
from atlas_pkg.net.stream import Stream

# Larger reads cost less per byte: 0.86 s of CPU per GB with 64 KB, 0.41 s with 256 KB.
BUFFER_BYTES = 256 * 1024

# A body of which nothing comes for so long is one that trickles, such as a stream of events.
QUIET_AFTER = 0.01


class Body(Protocol):
    """What is moved; see `http1/body.py`, which this room must not know."""

    is_done: bool
    unsent: bytes

    @property
    def most(self) -> int | None:
        """How many bytes may be read; None: any number."""

    @property
    def bulk(self) -> int:
        """How many of the next bytes need no look."""

    def feed(self, data: bytes | bytearray, end: int) -> tuple[Sequence[bytes | memoryview], bytes]:
        """Take what was read; returns what to send, and what follows the body."""

    def skip(self, count: int) -> tuple[bytes, bytes]:
        """So much of the bulk has passed by; returns what goes around it."""

    def end(self) -> Sequence[bytes | memoryview]:
        """The source has ended; returns what to send."""


class Copier:
    """Copies bodies through a buffer and a pipe that are kept. Belongs to one thread."""

    def __init__(self) -> None:
        self._storage: bytearray | None = None
        self._pipe = KernelPipe() if HAS_SPLICE else None

    def copy(
        self,
        body: Body,
        source: Stream,
        sink: Stream,
        *,
        read_timeout: float,
        write_timeout: float,
        heeds_sink: bool = False,
        until_quiet: bool = False,
    ) -> bool:
        """Move what is left of `body`; False if `heeds_sink` and `sink` has something to say, or if
        `until_quiet` and nothing comes for a moment, where that is no bulk transfer.

        Blocks. Raises `StreamError` for the side that fails (that `sink` leaves is noticed while
        waiting for `source`), and what the body raises.
        """
        timeouts = (read_timeout, write_timeout)
        try:
            while body.unsent or not body.is_done:
                if body.unsent:
                    unsent, body.unsent = body.unsent, b""
                    parts: Sequence[bytes | memoryview] = (unsent,)
                elif source.buffered:
                    parts = self._read(body, source, sink, read_timeout)
                elif heeds_sink and not source.wait_until_readable(
                    read_timeout, sink, heeds_other=True
                ):
                    return False
                elif (
                    self._pipe is not None
                    and body.bulk >= SPLICE_FROM
                    and source.is_plain
                    and sink.is_plain
                ):
                    if not self._splice(body, source, sink, timeouts, heeds_sink=heeds_sink):
                        return False
                    continue
                elif until_quiet and not source.is_readable(QUIET_AFTER):
                    return False
                else:
                    parts = self._read(body, source, sink, read_timeout)
                if not heeds_sink:
                    sink.send_parts(parts, write_timeout)
                elif not _send_unless_answered(body, parts, sink, write_timeout):
                    return False
        finally:
            if self._pipe is not None and self._pipe.held:
                self._pipe.close()  # given up: what is left in it belongs to no other body
        return True

    def close(self) -> None:
        """Release what was kept."""
        self._storage = None
        if self._pipe is not None:
            self._pipe.close()

    def _read(
        self, body: Body, source: Stream, sink: Stream, timeout: float
    ) -> Sequence[bytes | memoryview]:
        """Read one piece, if there is none yet; returns what of it is to be sent."""
        if source.buffered:  # perhaps only now: a look at a TLS connection reads
            parts, source.buffered = body.feed(source.buffered, len(source.buffered))
            return parts
        if self._storage is None:
            self._storage = bytearray(BUFFER_BYTES)
        view = memoryview(self._storage)
        received = source.receive_into(view[: body.most], timeout, sink)
        if not received:
            return body.end()
        parts, after = body.feed(self._storage, received)
        # TLS comes in whole records, of which the last may hold more than was to be read.
        source.buffered = after + source.buffered
        return parts

    def _splice(
        self,
        body: Body,
        source: Stream,
        sink: Stream,
        timeouts: tuple[float, float],
        *,
        heeds_sink: bool,
    ) -> bool:
        """Move one pipeful, as a chunk of its own where the message is chunked."""
        pipe, (read_timeout, write_timeout) = self._pipe, timeouts
        assert pipe is not None
        count = pipe.fill(source, body.bulk, read_timeout, sink)
        if not count:
            body.end()
        before, after = body.skip(count)
        if not heeds_sink:
            if before:
                sink.send(before, write_timeout)
            pipe.drain(sink, write_timeout)
            if after:
                sink.send(after, write_timeout)
            return True
        if before and not _send_unless_answered(body, (before,), sink, write_timeout):
            body.unsent += pipe.read() + after
            return False
        while pipe.held:
            if not sink.wait_until_writable(write_timeout, heeds_input=True):
                body.unsent = pipe.read() + after
                return False
            pipe.drain_some(sink)
        return not after or _send_unless_answered(body, (after,), sink, write_timeout)


def _send_unless_answered(
    body: Body, parts: Sequence[bytes | memoryview], sink: Stream, timeout: float
) -> bool:
    """Send `parts`; False if `sink` has something to say first: then the rest is kept."""
    for index, part in enumerate(parts):
        rest = memoryview(part)
        while rest:
            if not sink.wait_until_writable(timeout, heeds_input=True):
                body.unsent = b"".join((rest, *parts[index + 1 :]))
                return False
            rest = rest[sink.send_some(rest) :]
    return True
