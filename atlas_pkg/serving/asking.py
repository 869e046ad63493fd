"""One attempt at one upstream: send the request, read the head of the answer.

An idle connection is taken if there is one, else one is opened. One repetition is built in, since
it is not a retry: an idle connection that the upstream closed at the very moment of sending is
replaced by a fresh one to the *same* upstream, provided that nothing can have happened twice
(RFC 9110 §9.2.2, RFC 9112 §9.3.1).

Interim answers are passed on as they come. What is returned is the final head, and the connection
from which its body is still to be read.
"""

from __future__ import annotations

import time
import uuid

from atlas_pkg.balancing.pool import FRESH, UpstreamConnection, connect
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.errors import ClientGone, Side, Stage, StreamError, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.forwarding import build_interim_head
from atlas_pkg.http1.message import Response
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.retry import IDEMPOTENT
from atlas_pkg.serving.upload import Upload

# Interim answers to one request: early hints come once or twice; hundreds are an attack on us.
MAX_INTERIM = 64


def ask(
    exchange: Exchange, upstream: Upstream, upload: Upload | None
) -> tuple[UpstreamConnection, Response]:
    """Send the request and read the answer's head, on an idle connection or a fresh one."""
    generation = exchange.generation
    request = exchange.request
    forwarder = generation.forwarder
    head = forwarder.build_request_head(
        request,
        exchange.hop,
        fallback_host=upstream.host_field,
        request_id=uuid.uuid4().hex.encode() if forwarder.makes_request_ids else b"",
    )
    is_idempotent = request.method in IDEMPOTENT
    timeouts = generation.config.timeouts
    # What may not be repeatable is not trusted to a connection that may just be going stale.
    idle_limit = timeouts.upstream_idle
    if upload is not None or not is_idempotent:
        idle_limit = min(FRESH, idle_limit)
    connection = exchange.worker.pool.checkout(
        upstream, generation.config.pool, idle_limit=idle_limit
    )
    if connection is None:
        connection = connect(upstream, timeouts.connect)
    if exchange.record is not None:
        exchange.record.connected_at = time.monotonic()
        exchange.record.reused = connection.is_reused
    try:
        return connection, _converse(exchange, connection, head, upload)
    except UpstreamError as error:
        connection.stream.close()
        may_repeat = is_idempotent and (upload is None or not upload.has_taken_bytes)
        if not (error.is_stale and may_repeat):
            raise
    except BaseException:
        connection.stream.close()
        raise
    connection = connect(upstream, timeouts.connect)
    try:
        return connection, _converse(exchange, connection, head, upload)
    except BaseException:
        connection.stream.close()
        raise


def _converse(
    exchange: Exchange, connection: UpstreamConnection, head: bytes, upload: Upload | None
) -> Response:
    """Send head and body, pass on interim answers, and return the final answer's head."""
    stream = connection.stream
    try:
        stream.send(
            head + upload.take_buffered() if upload else head,
            exchange.generation.config.timeouts.upstream_body,
        )
    except StreamError as error:
        # It may have answered and closed before it read everything; the answer is worth a look.
        if error.timed_out or not stream.is_readable():
            raise translate(error, Stage.SEND, is_stale=connection.is_reused) from None
    if exchange.record is not None:
        exchange.record.asked_at = time.monotonic()
    for count in range(MAX_INTERIM):
        # What came behind an interim answer is already the next one: the body has to wait for it.
        if upload is not None and not upload.is_done and not stream.buffered:
            try:
                upload.run(stream, exchange.worker.relay)
            except StreamError as error:
                raise translate(error, Stage.SEND) from None
        response = exchange.generation.parser.parse_response(
            _read_head(exchange, connection, may_be_stale=count == 0), exchange.request.method
        )
        if response.status >= 200:
            return response
        if response.status == 101:
            if not exchange.request.upgrade or not response.fields.upgrade:
                raise UpstreamError(Stage.HEAD, "switched protocols without being asked")
            return response
        _pass_on_interim(exchange, response, upload)
    raise UpstreamError(Stage.HEAD, "its interim answers do not end")


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


def _read_head(exchange: Exchange, connection: UpstreamConnection, *, may_be_stale: bool) -> bytes:
    """Read one whole answer head; what follows it stays buffered. Raises `UpstreamError`.

    A connection that has brought an interim answer was not stale: the request has arrived.
    """
    stream = connection.stream
    config = exchange.generation.config
    timeout = config.timeouts.upstream_head
    deadline = 0.0
    data = stream.buffered
    try:
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


def _judge_incomplete(data: bytes, limit: int) -> None:
    """Give up on a head that can no longer become a good one, instead of waiting for its end."""
    if len(data) > limit:
        raise UpstreamError(Stage.HEAD, "the head of its answer is too large")
    if not data.startswith(b"HTTP/"[: len(data)]) or syntax.BAD_LINE_END.search(data):
        raise UpstreamError(Stage.HEAD, "its answer is not HTTP")


def translate(
    error: StreamError, stage: Stage, *, is_stale: bool = False
) -> ClientGone | UpstreamError:
    """Give a stream's failure its meaning: whose it was, and at which stage."""
    if error.side is Side.CLIENT:
        return ClientGone(error.reason)
    # Silence is no sign of a stale connection: asking again would only wait as long again.
    is_stale = is_stale and not error.timed_out
    return UpstreamError(stage, error.reason, timed_out=error.timed_out, is_stale=is_stale)
