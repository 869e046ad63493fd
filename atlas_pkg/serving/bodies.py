"""Bodies under way: read as the sender framed them, sent on as we frame them.

`send_answer` streams an upstream's answer to the client. `Upload` streams a request's body to the
upstream, and can be interrupted: an upstream may answer before it has read everything, to refuse
an upload (413) or because it echoes what it reads. `Upload.run` then returns, and can be taken
up again later, also in another thread, while the answer flows the other way.

Nothing is ever held whole: a piece is read only when the one before it has been written.
"""

from __future__ import annotations

import threading

from atlas_pkg.config import Timeouts
from atlas_pkg.errors import (
    AtlasError,
    ClientError,
    MalformedMessage,
    Stage,
    StreamError,
    UpstreamError,
)
from atlas_pkg.http1.forwarding import CONTINUE
from atlas_pkg.http1.framing import LAST_CHUNK, BodyKind, ChunkedDecoder, Framing, encode_chunk
from atlas_pkg.net.relay import BUFFER_BYTES, Relay
from atlas_pkg.net.stream import Stream, wait_until_either, wait_until_taken

# A client that waits for 100 (Continue) gets ours when the upstream has said nothing for so long.
CONTINUE_DELAY = 1.0


class Upload:
    """One request's body on its way to the upstream. Used by one thread at a time."""

    def __init__(
        self, client: Stream, framing: Framing, *, limit: int, max_fields: int, timeouts: Timeouts
    ) -> None:
        """`limit` is the most body bytes to accept (0 = any number), beyond which 413 is raised."""
        self._client = client
        self._limit = limit
        self._timeouts = timeouts
        self._remaining = framing.length
        self._decoder = ChunkedDecoder(max_fields) if framing.kind is BodyKind.CHUNKED else None
        self._unsent = memoryview(b"")
        self._taken = 0
        self._is_read = framing.kind is not BodyKind.CHUNKED and not framing.length
        # The client holds its body back until it hears 100; answering that is done once.
        self.awaits_continue = False
        self.is_broken = False  # the upstream takes no more

    @property
    def is_done(self) -> bool:
        """Has the whole body been written to the upstream?"""
        return self._is_read and not self._unsent

    @property
    def has_taken_bytes(self) -> bool:
        """Has any body byte been taken from the client? Then the request cannot be repeated."""
        return self._taken > 0

    def take_buffered(self) -> bytes:
        """The body bytes that arrived together with the head, framed to be sent with it."""
        if not self._is_read and self._client.buffered:
            self._take()
        first = bytes(self._unsent)
        self._unsent = memoryview(b"")
        return first

    def run(self, upstream: Stream, buffer: memoryview, *, watched: bool = True) -> None:
        """Send until the body is done or, if `watched`, until the upstream has something to say.

        Blocks. Raises `ClientError` (408, 413, malformed chunks) and `StreamError`. A failure to
        write ends it with `is_broken`, since the upstream may have answered before it closed.
        """
        while not self.is_done and not self.is_broken:
            if self._unsent:
                if not self._write(upstream, watched):
                    # The buffer is the worker's, who is going to use it for the answer.
                    self._unsent = memoryview(bytes(self._unsent))
                    return
            elif self._client.buffered:
                self._take()
            else:
                if watched and not self._wait_for_client(upstream):
                    return
                self._receive(upstream, buffer)

    def _write(self, upstream: Stream, watched: bool) -> bool:
        """Write what is pending; False when the upstream has something to say instead."""
        timeout = self._timeouts.upstream_body
        try:
            if not watched:
                upstream.send(self._unsent, timeout)
                self._unsent = memoryview(b"")
                return True
            while self._unsent:
                if not wait_until_taken(upstream, timeout):
                    return False
                self._unsent = self._unsent[upstream.send_some(self._unsent) :]
        except StreamError as error:
            if error.timed_out:
                raise
            self.is_broken = True
        return True

    def _wait_for_client(self, upstream: Stream) -> bool:
        """Wait for more of the body; False when the upstream has something to say first."""
        timeout = self._timeouts.client_body
        if self.awaits_continue:
            ready = wait_until_either(self._client, upstream, min(CONTINUE_DELAY, timeout))
            if ready is None:
                self.awaits_continue = False
                self._client.send(CONTINUE, self._timeouts.client_write)
                return self._wait_for_client(upstream)
        else:
            ready = wait_until_either(self._client, upstream, timeout)
        if ready is None:
            raise ClientError(408, "the request body did not come in time")
        if ready is self._client:
            self.awaits_continue = False
        return ready is self._client

    def _receive(self, upstream: Stream, buffer: memoryview) -> None:
        """Read the next piece from the client."""
        if self._decoder is None and self._remaining < BUFFER_BYTES:
            buffer = buffer[: self._remaining]
        try:
            received = self._client.receive_into(buffer, self._timeouts.client_body, upstream)
        except StreamError as error:
            if error.side is self._client.side and error.timed_out:
                raise ClientError(408, "the request body did not come in time") from None
            raise
        if not received:
            raise StreamError(self._client.side, "closed its connection in the middle of a body")
        if self._decoder is None:
            self._note_taken(received)
            self._remaining -= received
            self._is_read = not self._remaining
            self._unsent = buffer[:received]
        else:
            self._client.buffered = bytes(buffer[:received])
            self._take()

    def _take(self) -> None:
        """Turn what is buffered into what is to be written."""
        data = self._client.buffered
        if self._decoder is None:
            taken, self._client.buffered = data[: self._remaining], data[self._remaining :]
            self._note_taken(len(taken))
            self._remaining -= len(taken)
            self._is_read = not self._remaining
            self._unsent = memoryview(taken)
            return
        try:
            payload, self._client.buffered = self._decoder.decode(data)
        except MalformedMessage as error:
            raise ClientError(error.status, error.reason) from None
        self._note_taken(len(payload))
        framed = encode_chunk(payload) if payload else b""
        self._is_read = self._decoder.is_done
        self._unsent = memoryview(framed + LAST_CHUNK if self._is_read else framed)

    def _note_taken(self, count: int) -> None:
        self._taken += count
        if self._limit and self._taken > self._limit:
            raise ClientError(413, "the request body is too large")


class BackgroundUpload:
    """The rest of an upload, in a thread of its own while the answer already flows back."""

    def __init__(self, upload: Upload, upstream: Stream) -> None:
        self._upload = upload
        self._upstream = upstream
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._upload.run(self._upstream, memoryview(bytearray(BUFFER_BYTES)), watched=False)
        except AtlasError:
            # The answer decides how the exchange ends; all we know is that no more will be sent.
            self._upload.is_broken = True

    def stop(self) -> bool:
        """The answer is complete: end the upload too; returns whether it had been finished."""
        if not self._upload.is_done:
            self._upstream.shut_down()  # wakes the thread, wherever it waits
        self._thread.join()
        return self._upload.is_done


class AnswerBody:
    """Streams one answer's body from the upstream to the client."""

    def __init__(self, upstream: Stream, client: Stream, *, framing: Framing, onward: Framing):
        """`framing` is the upstream's, `onward` the one that the client was promised."""
        self.upstream = upstream
        self._client = client
        self._decoder = ChunkedDecoder() if framing.kind is BodyKind.CHUNKED else None
        self._framing = framing
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
            return taken
        self.upstream.buffered = b""
        return self._reframe(data)

    def send_rest(self, relay: Relay, timeouts: Timeouts) -> None:
        """Stream what is still to come. Blocks. Raises `StreamError`, `UpstreamError`."""
        read_timeout, write_timeout = timeouts.upstream_body, timeouts.client_write
        if self._framing.kind is BodyKind.LENGTH and not self._is_done:
            relay.copy(
                self.upstream,
                self._client,
                self._framing.length,
                read_timeout=read_timeout,
                write_timeout=write_timeout,
            )
            return
        buffer = relay.buffer
        while not self._is_done:
            received = self.upstream.receive_into(buffer, read_timeout, self._client)
            if received:
                framed = self._reframe(bytes(buffer[:received]))
            elif self._decoder is not None:
                raise UpstreamError(Stage.BODY, "closed its connection in the middle of a body")
            else:
                # The end of input ends this body (RFC 9112 §6.3 rule 8).
                self._is_done = True
                framed = LAST_CHUNK if self._is_chunked_onward else b""
            if framed:
                self._client.send(framed, write_timeout)

    def _reframe(self, data: bytes) -> bytes:
        """Decode a piece as the upstream framed it and frame it for the client."""
        if self._decoder is None:
            return encode_chunk(data) if self._is_chunked_onward else data
        try:
            payload, self.upstream.buffered = self._decoder.decode(data)
        except MalformedMessage as error:
            raise UpstreamError(Stage.BODY, f"its answer is malformed: {error.reason}") from None
        self._is_done = self._decoder.is_done
        if not self._is_chunked_onward:
            return payload
        framed = encode_chunk(payload) if payload else b""
        return framed + LAST_CHUNK if self._is_done else framed
