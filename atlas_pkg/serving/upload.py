"""A request's body on its way to the upstream, which may be interrupted.

An upstream may answer before it has read everything: to refuse an upload (413), or because it
echoes what it reads. `Upload.run` then returns and can be taken up again later, also in another
thread (`BackgroundUpload`) while the answer flows the other way.

Nothing is ever held whole: a piece is read only when the one before it has been written. Large
bodies of known length go through the worker's kernel pipe and never enter Python.
"""

from __future__ import annotations

import threading

from atlas_pkg.config import Timeouts
from atlas_pkg.errors import (
    AtlasError,
    ClientError,
    MalformedMessage,
    StreamError,
)
from atlas_pkg.http1.forwarding import CONTINUE
from atlas_pkg.http1.framing import LAST_CHUNK, BodyKind, ChunkedDecoder, Framing, encode_chunk
from atlas_pkg.net.pipe import SPLICE_FROM
from atlas_pkg.net.relay import BUFFER_BYTES, Relay
from atlas_pkg.net.stream import Stream, wait_until_either, wait_until_taken
from atlas_pkg.observing.record import Record

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
        self._in_pipe = 0  # bytes that wait in the relay's pipe instead
        self.taken = 0  # body bytes, decoded, that the client has been read for
        self._is_read = framing.kind is not BodyKind.CHUNKED and not framing.length
        # The client holds its body back until it hears 100; answering that is done once.
        self.awaits_continue = False
        self.is_broken = False  # the upstream takes no more
        self.record: Record | None = None  # which is to know what was taken
        # Has any part of the body been taken from the client? Then it cannot be sent again.
        self.has_taken_bytes = False
        self._replay: bytes | None = None  # a body that came with its head, kept for a retry

    @property
    def is_done(self) -> bool:
        """Has the whole body been written to the upstream?"""
        return self._is_read and not self._unsent and not self._in_pipe

    def take_buffered(self) -> bytes:
        """The body bytes that arrived together with the head, framed to be sent with it.

        When asked again, for another attempt, gives the same once more; see `can_replay`.
        """
        if self._replay is not None:
            return self._replay
        if not self._is_read and self._client.buffered:
            self._take()
        first = bytes(self._unsent)
        self._unsent = memoryview(b"")
        if self._is_read:
            self._replay = first
        return first

    @property
    def can_replay(self) -> bool:
        """Can the body be sent again whole: it is all in memory, or untouched?"""
        return self._replay is not None or not self.has_taken_bytes

    def run(self, upstream: Stream, relay: Relay, *, watched: bool = True) -> None:
        """Send until the body is done or, if `watched`, until the upstream has something to say.

        Blocks. Raises `ClientError` (408, 413, malformed chunks) and `StreamError`. A failure to
        write ends it with `is_broken`, since the upstream may have answered before it closed.
        """
        try:
            while not self.is_done and not self.is_broken and self._step(upstream, relay, watched):
                pass
        finally:
            if relay.pipe is not None and relay.pipe.held:
                relay.pipe.close()  # given up: what is left in it belongs to no other body

    def _step(self, upstream: Stream, relay: Relay, watched: bool) -> bool:
        """Write or read one piece; False when the upstream has something to say instead."""
        if self._unsent or self._in_pipe:
            if self._write(upstream, relay, watched):
                return True
            self._keep_unsent(relay)
            return False
        if self._client.buffered:
            self._take()
        elif not watched or self._wait_for_client(upstream):
            self._receive(upstream, relay)
        else:
            return False
        return True

    def _keep_unsent(self, relay: Relay) -> None:
        """Take over what waits in the relay, which is going to be used for the answer."""
        held = relay.pipe.read() if relay.pipe else b""
        self._unsent = memoryview(bytes(self._unsent) + held)
        self._in_pipe = 0

    def _write(self, upstream: Stream, relay: Relay, watched: bool) -> bool:
        """Write what is pending; False when the upstream has something to say instead."""
        timeout = self._timeouts.upstream_body
        try:
            while self._unsent or self._in_pipe:
                if not watched:
                    upstream.wait_until_writable(timeout)
                elif not wait_until_taken(upstream, timeout):
                    return False
                if self._unsent:
                    self._unsent = self._unsent[upstream.send_some(self._unsent) :]
                elif relay.pipe is not None:
                    self._in_pipe = relay.pipe.drain_some(upstream)
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

    def _receive(self, upstream: Stream, relay: Relay) -> None:
        """Read the next piece from the client."""
        timeout = self._timeouts.client_body
        is_spliced = False
        buffer = relay.buffer
        if self._decoder is None and self._remaining < BUFFER_BYTES:
            buffer = buffer[: self._remaining]
        try:
            if relay.pipe is not None and self._remaining >= SPLICE_FROM:
                is_spliced = True
                received = relay.pipe.fill(self._client, self._remaining, timeout, upstream)
            else:
                received = self._client.receive_into(buffer, timeout, upstream)
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
            if is_spliced:
                self._in_pipe = received
            else:
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
        self.has_taken_bytes = True  # a last chunk counts too, though it holds no data
        self.taken += count
        if self.record is not None:
            self.record.body_in = self.taken
        if self._limit and self.taken > self._limit:
            raise ClientError(413, "the request body is too large")


class BackgroundUpload:
    """The rest of an upload, in a thread of its own while the answer already flows back."""

    def __init__(self, upload: Upload, upstream: Stream) -> None:
        self._upload = upload
        self._upstream = upstream
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        relay = Relay()
        try:
            self._upload.run(self._upstream, relay, watched=False)
        except AtlasError:
            # The answer decides how the exchange ends; all we know is that no more will be sent.
            self._upload.is_broken = True
        finally:
            relay.close()

    def stop(self) -> bool:
        """The answer is complete: end the upload too; returns whether it had been finished."""
        if not self._upload.is_done:
            self._upstream.shut_down()  # wakes the thread, wherever it waits
        self._thread.join()
        return self._upload.is_done
