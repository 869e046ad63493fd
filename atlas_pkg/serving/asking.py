"""One attempt at one upstream: send the request, read the head of the answer.

An idle connection is taken if there is one, else one is opened. One repetition is built in, since
it is not a retry: an idle connection that the upstream closed at the very moment of sending is
replaced by a fresh one to the *same* upstream, provided that nothing can have happened twice
(RFC 9110 §9.2.2, RFC 9112 §9.3.1).

A worker that leads may `begin` an attempt and `look` after it, which never waits; `finish` does,
and not if the attempt `is_ready`. Interim answers are passed on as they come. What `finish`
returns is the final head; the body is still to be read from the attempt's connection.
"""

from __future__ import annotations

import socket
import time

from atlas_pkg.balancing.opening import Opening, connect
from atlas_pkg.balancing.pool import FRESH, UpstreamConnection
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.errors import Side, Stage, StreamError, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.forwarding import build_interim_head
from atlas_pkg.http1.message import Response
from atlas_pkg.net.stream import RECEIVE_BYTES, Stream
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.failures import translate
from atlas_pkg.serving.retry import IDEMPOTENT
from atlas_pkg.serving.upload import Upload

# Interim answers to one request: early hints come once or twice; hundreds are an attack on us.
MAX_INTERIM = 64

# So much of a body is awaited at the gate before the answer is passed on. Larger ones are streamed
# by a worker.
LITTLE = 64 * 1024

# An answer that comes in more pieces than that is for a worker, which keeps the time.
MOST_LOOKS = 8


class Attempt:
    """One request to one upstream: `begin` it, await its answer, then `finish` it."""

    __slots__ = (
        "_exchange",
        "_failure",
        "_head",
        "_looks",
        "_opening",
        "_takes_worker",
        "_unsent",
        "_upload",
        "_upstream",
        "connection",
        "is_ready",
    )

    def __init__(self, exchange: Exchange, upstream: Upstream, upload: Upload | None) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._upload = upload
        self._head = self._unsent = b""
        self._failure: StreamError | None = None  # met while looking for the answer
        self._looks = 0
        self._takes_worker = False  # for something else than the answer's head
        self.is_ready = False  # so much has come that `finish` need not wait
        self._opening: Opening | None = None
        self.connection: UpstreamConnection  # from the moment at which there is one
        if exchange.record is not None:
            exchange.record.upstream = upstream.name
        if exchange.times is not None:
            exchange.times.chosen_at = time.monotonic()

    @property
    def is_sent(self) -> bool:
        """Has the whole request been sent?"""
        return not self._unsent and (self._upload is None or self._upload.is_done)

    def begin(self) -> None:
        """Do what needs no waiting: take or open a connection, send if that is possible at once."""
        exchange, upload = self._exchange, self._upload
        generation = exchange.generation
        forwarder = generation.forwarder
        self._head = forwarder.build_request_head(
            exchange.request,
            exchange.hop,
            fallback_host=self._upstream.host_field,
            request_id=exchange.make_request_id() if forwarder.makes_request_ids else b"",
        )
        # What may not be repeatable is not trusted to a connection that may just be going stale.
        idle_limit = generation.config.timeouts.upstream_idle
        if upload is not None or exchange.request.method not in IDEMPOTENT:
            idle_limit = min(FRESH, idle_limit)
        connection = exchange.worker.pool.checkout(
            self._upstream, generation.config.pool, idle_limit=idle_limit
        )
        if connection is None:
            self._opening = Opening(self._upstream, generation.config.timeouts.connect)
            connection = self._opening.look()
        if connection is not None:
            self._use(connection)

    def awaited(self) -> Stream | None:
        """What is to be awaited without a worker; None where it takes one."""
        if self._opening is not None:
            return self._opening.stream
        return None if self._takes_worker else self.connection.stream

    def look(self) -> None:
        """See what has come, without waiting, and go on as far as that goes."""
        if self._opening is not None:
            opened = self._opening.look()
            if opened is not None:
                self._use(opened)
        elif not self._takes_worker:
            # Its end and a failure are for `finish` to tell, and so is a head that is too large.
            has_ended = not self.fetch()
            data = self.connection.stream.buffered
            limit = self._exchange.generation.config.limits.upstream_head
            # After an interim answer another one follows, perhaps much later. And if nothing came
            # at all, `finish` may ask anew, on a connection that is not open yet.
            self._takes_worker = data[9:10] == b"1" or (has_ended and not data)
            is_told = has_ended or b"\r\n\r\n" in data or len(data) > limit
            self.is_ready = is_told and not self._takes_worker
            self._takes_worker |= self._looks >= MOST_LOOKS

    def fetch(self) -> bool:
        """Read what has come, without waiting; False when no more will come."""
        stream = self.connection.stream
        self._looks += 1
        try:
            more = stream.sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError as error:
            self._failure = stream.broken(error)
            return False
        stream.buffered += more
        return bool(more)

    def lacks_little(self, response: Response) -> bool:
        """Is a small part of the answer's body still on its way?"""
        missing = response.framing.length - len(self.connection.stream.buffered)
        is_coming = self._failure is None and self._looks < MOST_LOOKS
        return 0 < missing <= LITTLE and is_coming

    def finish(self) -> Response:
        """Do all that is left, and return the final answer's head. Blocks.

        Its body is still to be read from `connection`. Raises `ClientGone`, `UpstreamError`.
        """
        if self._opening is not None:
            self._use(self._opening.wait())
        try:
            return self._read_answer()
        except UpstreamError as error:
            upload, method = self._upload, self._exchange.request.method
            may_repeat = method in IDEMPOTENT and (upload is None or not upload.has_taken_bytes)
            if not (error.is_stale and may_repeat):
                raise
        self._failure = None
        timeouts = self._exchange.generation.config.timeouts
        self._use(connect(self._upstream, timeouts.connect))
        return self._read_answer()

    def _use(self, connection: UpstreamConnection) -> None:
        """Go on with this connection: send now what can be sent now."""
        self.connection, self._opening = connection, None
        record = self._exchange.record
        if record is not None:
            record.reused = connection.requests > 0
        times = self._exchange.times
        if times is not None:
            times.connected_at = times.chosen_at if connection.is_reused else time.monotonic()
        self._unsent = self._head
        if self._upload is not None:
            self._unsent += self._take_body(self._upload)
        if self._upload is None or self._upload.is_done:
            self._unsent = connection.stream.send_now(self._unsent)
            if times is not None:
                times.asked_at = time.monotonic()
        self._takes_worker = not self.is_sent

    def _take_body(self, upload: Upload) -> bytes:
        """What is here of the body leaves with the head. Raises `ClientError`."""
        try:
            return upload.take_buffered()
        except BaseException:
            self.connection.stream.close()
            raise

    def _read_answer(self) -> Response:
        """Send what is not sent yet, pass on interim answers, return the final answer's head."""
        try:
            if self._unsent:
                self._send()
            for count in range(MAX_INTERIM):
                if self._upload is not None:
                    self._go_on_uploading(self._upload)
                response = self._read_response(may_be_stale=count == 0)
                if response.status >= 200 or response.status == 101:
                    return response
                _pass_on_interim(self._exchange, response, self._upload)
            raise UpstreamError(Stage.HEAD, "its interim answers do not end")
        except BaseException:
            self.connection.stream.close()
            raise

    def _go_on_uploading(self, upload: Upload) -> None:
        """Send what is left of the body, until the upstream has something to say."""
        stream = self.connection.stream
        # What came behind an interim answer is already the next one: the body has to wait.
        if upload.is_done or stream.buffered:
            return
        try:
            upload.run(stream, self._exchange.worker.relay)
        except StreamError as error:
            raise translate(error, Stage.SEND) from None

    def _send(self) -> None:
        exchange, connection = self._exchange, self.connection
        stream = connection.stream
        try:
            stream.send(self._unsent, exchange.generation.config.timeouts.upstream_body)
        except StreamError as error:
            # It may have answered and closed before it read everything; it is worth a look.
            if error.timed_out or not stream.is_readable():
                raise translate(error, Stage.SEND, is_stale=connection.is_reused) from None
        self._unsent = b""
        if exchange.times is not None:
            exchange.times.asked_at = time.monotonic()

    def _read_response(self, *, may_be_stale: bool) -> Response:
        """Read and judge one head, interim or not."""
        exchange = self._exchange
        request = exchange.request
        head = self._read_head(self.connection, may_be_stale=may_be_stale)
        response = exchange.generation.parser.parse_response(head, request.method)
        if response.status == 101 and not (request.upgrade and response.fields.upgrade):
            raise UpstreamError(Stage.HEAD, "switched protocols without being asked")
        return response

    def _read_head(self, connection: UpstreamConnection, *, may_be_stale: bool) -> bytes:
        """Read one whole answer head; what follows it stays buffered. Raises `UpstreamError`.

        A connection that has brought an interim answer was not stale: the request has arrived.
        """
        exchange, stream = self._exchange, connection.stream
        config = exchange.generation.config
        timeout = config.timeouts.upstream_head
        deadline = 0.0
        data = stream.buffered
        try:
            if self._failure is not None:
                raise self._failure
            if not data:
                data = stream.receive(timeout, exchange.client)
            while True:
                end = data.find(b"\r\n\r\n") + 4
                if end >= 4:
                    break
                if not data:
                    raise StreamError(Side.UPSTREAM, "closed its connection without an answer")
                _judge_incomplete(data, config.limits.upstream_head)
                now = time.monotonic()
                deadline = deadline or now + timeout
                if now >= deadline:  # a byte now and then does not extend it
                    raise StreamError(Side.UPSTREAM, "its head did not end in time", timed_out=True)
                more = stream.receive(deadline - now, exchange.client)
                if not more:
                    raise UpstreamError(Stage.HEAD, "closed its connection in the middle of a head")
                data += more
        except StreamError as error:
            is_stale = may_be_stale and connection.is_reused and not data
            raise translate(error, Stage.HEAD, is_stale=is_stale) from None
        if end > config.limits.upstream_head:
            raise UpstreamError(Stage.HEAD, "the head of its answer is too large")
        stream.buffered = data[end:]
        return data[:end]


def _pass_on_interim(exchange: Exchange, response: Response, upload: Upload | None) -> None:
    """Relay a 1xx answer to a client that understands it (RFC 9110 §15.2)."""
    if response.status == 100 and upload is not None:
        if exchange.request.expects_continue and not upload.awaits_continue:
            return  # the client has been told already, or has begun by itself
        upload.awaits_continue = False
    if exchange.request.minor == 1:
        timeout = exchange.generation.config.timeouts.client_write
        exchange.has_sent = True
        exchange.client.send(build_interim_head(response), timeout)


def _judge_incomplete(data: bytes, limit: int) -> None:
    """Give up on a head that can no longer become a good one, instead of waiting for its end."""
    if len(data) > limit:
        raise UpstreamError(Stage.HEAD, "the head of its answer is too large")
    if not data.startswith(b"HTTP/"[: len(data)]) or syntax.BAD_LINE_END.search(data):
        raise UpstreamError(Stage.HEAD, "its answer is not HTTP")
