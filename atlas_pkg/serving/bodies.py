"""An answer's body on its way to the client: read as the upstream framed it, sent as we frame it.

What arrived together with the head is taken apart first, so that it can leave with the head. The
rest is streamed: a piece is read only when the one before it has been written, and large stretches
of known length go through the worker's kernel pipe.

A body that ends early raises an error and is never ended cleanly (RFC 9112 §8).
"""

from __future__ import annotations

from atlas_pkg.config.model import Timeouts
from atlas_pkg.errors import MalformedMessage, Stage, UpstreamError
from atlas_pkg.http1.framing import LAST_CHUNK, BodyKind, ChunkedDecoder, Framing
from atlas_pkg.net.pipe import SPLICE_FROM
from atlas_pkg.net.relay import Relay
from atlas_pkg.net.stream import Stream


class AnswerBody:
    """Streams one answer's body from the upstream to the client."""

    def __init__(self, upstream: Stream, client: Stream, *, framing: Framing, onward: Framing):
        """`framing` is the upstream's, `onward` the one that the client was promised."""
        self.upstream = upstream
        self._client = client
        self._decoder = ChunkedDecoder() if framing.kind is BodyKind.CHUNKED else None
        self._framing = framing
        self.sent = 0  # body bytes, decoded, that have been passed on or at least tried
        self._is_chunked_onward = onward.kind is BodyKind.CHUNKED
        self._is_done = framing.kind is BodyKind.NONE or (
            framing.kind is BodyKind.LENGTH and not framing.length
        )

    def take_buffered(self) -> bytes:
        """What arrived together with the head, framed for the client. Raises `UpstreamError`."""
        data = self.upstream.buffered
        if self._is_done or not data:
            return b""
        if self._framing.kind is BodyKind.LENGTH:
            taken = data[: self._framing.length]
            self.upstream.buffered = data[self._framing.length :]
            self._is_done = len(taken) == self._framing.length
            self._framing = Framing(BodyKind.LENGTH, self._framing.length - len(taken))
            self.sent = len(taken)
            return taken
        self.upstream.buffered = b""
        return b"".join(self._reframe(data, len(data)))

    def send_rest(self, relay: Relay, timeouts: Timeouts) -> None:
        """Stream what is still to come. Blocks. Raises `StreamError`, `UpstreamError`."""
        read_timeout, write_timeout = timeouts.upstream_body, timeouts.client_write
        if self._framing.kind is BodyKind.LENGTH and not self._is_done:
            self._copy(relay, self._framing.length, timeouts)
            return
        storage = relay.storage
        while not self._is_done:
            received = self.upstream.receive_into(relay.buffer, read_timeout, self._client)
            if received:
                self._client.send_parts(self._reframe(storage, received), write_timeout)
                if self._decoder is not None and self._decoder.remaining >= SPLICE_FROM:
                    self._copy_chunk(self._decoder, relay, timeouts)
            elif self._decoder is not None:
                raise UpstreamError(Stage.BODY, "closed its connection in the middle of a body")
            else:
                # The end of input ends this body (RFC 9112 §6.3 rule 8).
                self._is_done = True
                if self._is_chunked_onward:
                    self._client.send(LAST_CHUNK, write_timeout)

    def _copy_chunk(self, decoder: ChunkedDecoder, relay: Relay, timeouts: Timeouts) -> None:
        """Move the rest of a large chunk past the decoder, as a chunk of its own."""
        count = decoder.remaining
        if self._is_chunked_onward:
            self._client.send(b"%x\r\n" % count, timeouts.client_write)
        self._copy(relay, count, timeouts)
        decoder.skip(count)
        if self._is_chunked_onward:
            self._client.send(b"\r\n", timeouts.client_write)

    def _copy(self, relay: Relay, count: int, timeouts: Timeouts) -> None:
        try:
            relay.copy(
                self.upstream,
                self._client,
                count,
                read_timeout=timeouts.upstream_body,
                write_timeout=timeouts.client_write,
            )
        finally:
            self.sent += relay.moved

    def _reframe(self, data: bytes | bytearray, end: int) -> list[bytes | memoryview]:
        """Decode the first `end` bytes as the upstream framed them, and frame them for the client.

        All data in them becomes one chunk, which leaves in one call without being copied.
        """
        pieces = [memoryview(data)[:end]]
        if self._decoder is not None:
            try:
                pieces, self.upstream.buffered = self._decoder.feed(data, end)
            except MalformedMessage as error:
                reason = f"its answer is malformed: {error.reason}"
                raise UpstreamError(Stage.BODY, reason) from None
            self._is_done = self._decoder.is_done
        size = sum(map(len, pieces))
        self.sent += size
        if not self._is_chunked_onward:
            return [*pieces]
        last = LAST_CHUNK if self._is_done else b""
        if not pieces:
            return [last]
        return [b"%x\r\n" % size, *pieces, b"\r\n", last]
