"""One body under way: read as its sender framed it, written as we frame it for the other side.

Requests and answers alike. A body is fed with what has arrived, in pieces cut anywhere, and gives
back the parts that are to be sent on: for a body of known length or until close the data itself,
towards a chunked message the data of each piece as one chunk. Nothing is copied and nothing is
held. Long stretches that need no look (`bulk`) may be moved past it, and are told of afterwards.

A body that ends before it is whole is an error, and is never ended cleanly (RFC 9112 §8).
"""

from __future__ import annotations

from collections.abc import Sequence

from atlas_pkg.errors import MalformedMessage, TruncatedMessage
from atlas_pkg.http1.chunked import LAST_CHUNK, ChunkedDecoder
from atlas_pkg.http1.framing import BodyKind, Framing

Parts = Sequence[bytes | memoryview]

_NO_PARTS: Parts = ()


class Body:
    """One message's body. Used by one thread at a time."""

    __slots__ = (
        "_decoder",
        "_is_chunked_onward",
        "_left",
        "_limit",
        "is_done",
        "is_touched",
        "moved",
        "unsent",
    )

    def __init__(
        self,
        framing: Framing,
        onward: Framing,
        *,
        limit: int = 0,
        max_trailer_fields: int = 100,
        is_answer: bool = False,
    ) -> None:
        """`framing` is the sender's, `onward` is ours. Over `limit` bytes, if any, is an error."""
        self._decoder = None
        self._left: int | None = framing.length  # None: as many as come
        if framing.kind is BodyKind.CHUNKED:
            self._decoder = ChunkedDecoder(max_trailer_fields, may_be_padded=is_answer)
            self._left = None
        elif framing.kind is BodyKind.UNTIL_CLOSE:
            self._left = None
        self._is_chunked_onward = onward.kind is BodyKind.CHUNKED
        self._limit = limit
        self.is_done = self._left == 0  # all of it has been read
        self.is_touched = False  # something of it has been taken, if only its end
        self.moved = 0  # bytes of data so far, decoded
        self.unsent = b""  # parts that were read, but that the other side has not taken yet

    @property
    def most(self) -> int | None:
        """How many bytes may be read without touching what follows the body; None: any number."""
        return self._left

    @property
    def bulk(self) -> int:
        """How many of the next bytes are data for certain."""
        if self._decoder is not None:
            return self._decoder.remaining
        return self._left or 0

    def feed(self, data: bytes | bytearray, end: int) -> tuple[Parts, bytes]:
        """Take the first `end` bytes of `data`; returns what to send, and what follows the body.

        The parts are views of `data`, valid as long as that is not written again. Raises
        `MalformedMessage`, with status 413 where the body is over its limit.
        """
        pieces: list[memoryview]
        rest = b""
        if self._decoder is not None:
            pieces, rest = self._decoder.feed(data, end)
            self.is_done = self._decoder.is_done
        elif self._left is None:
            pieces = [memoryview(data)[:end]]
        else:
            taken = min(self._left, end)
            pieces = [memoryview(data)[:taken]]
            if taken < end:
                rest = bytes(memoryview(data)[taken:end])
            self._left -= taken
            self.is_done = not self._left
        size = sum(map(len, pieces))
        self._count(size)
        if not self._is_chunked_onward:
            return pieces, rest
        last = LAST_CHUNK if self.is_done else b""
        if not size:
            return ([last] if last else _NO_PARTS), rest
        return [b"%x\r\n" % size, *pieces, b"\r\n", last], rest

    def skip(self, count: int) -> tuple[bytes, bytes]:
        """Take note of `count` bytes of the bulk that passed by; returns what goes around them."""
        if self._decoder is not None:
            self._decoder.skip(count)
        elif self._left is not None:
            self._left -= count
            self.is_done = not self._left
        self._count(count)
        if not self._is_chunked_onward:
            return b"", b""
        return b"%x\r\n" % count, b"\r\n"

    def end(self) -> Parts:
        """The sender has closed its connection: the end of a body until close, else an error.

        Raises `TruncatedMessage`.
        """
        if self._decoder is not None or self._left is not None:
            raise TruncatedMessage("closed its connection in the middle of a body")
        self.is_done = True
        return [LAST_CHUNK] if self._is_chunked_onward else _NO_PARTS

    @property
    def is_through(self) -> bool:
        """Has all of it been read, and been taken by the other side?"""
        return self.is_done and not self.unsent

    def _count(self, size: int) -> None:
        self.is_touched = True
        self.moved += size
        if self._limit and self.moved > self._limit:
            raise MalformedMessage("the request body is too large", status=413)
