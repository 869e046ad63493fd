"""The final answer on its way to the client: head and body, as the client gets them.

`begin_response` and `next_piece` give what has come, framed for the client, and never wait. With
the last piece the upstream is given back *before* that piece is sent: who has read the answer finds
it counted as finished. `stream_response` does the rest for a thread that may wait.

A body that ends early raises an error and is never ended cleanly (RFC 9112 §8).
"""

from __future__ import annotations

import email.utils
import functools
import time

from atlas_pkg.balancing.lease import FAILURE, SUCCESS
from atlas_pkg.errors import (
    ClientGone,
    MalformedMessage,
    Side,
    Stage,
    StreamError,
    TruncatedMessage,
    UpstreamError,
)
from atlas_pkg.http1.body import Body
from atlas_pkg.http1.chunked import size_of_one_chunk
from atlas_pkg.http1.framing import CHUNKED, UNTIL_CLOSE
from atlas_pkg.http1.message import Response
from atlas_pkg.net.stream import Stream
from atlas_pkg.proxying.attempt import is_sent
from atlas_pkg.proxying.request_body import BackgroundUpload
from atlas_pkg.serving.client import FINISH
from atlas_pkg.serving.exchange import Exchange


def begin_response(exchange: Exchange, response: Response) -> bytes:
    """Decide how the answer is framed for the client; returns what has come of it. Never waits.

    Raises `UpstreamError`; then nothing of the answer has been sent.
    """
    connection, generation = exchange.connection, exchange.generation
    assert connection is not None
    stream = connection.stream
    exchange.response = response
    onward = framing = response.framing
    size: int | None = None  # of the body, if all of it is here and may pass as it is
    if framing is CHUNKED or framing is UNTIL_CLOSE:
        # A 1.0 client does not know chunks: its body ends with the connection (RFC 9112 §6.1).
        onward = CHUNKED if exchange.request.minor == 1 else UNTIL_CLOSE
        exchange.ends_by_closing = onward is UNTIL_CLOSE
        if framing is onward is CHUNKED:
            size = size_of_one_chunk(stream.buffered)
    else:
        if len(stream.buffered) < framing.length:
            _look_for_more(stream)
        if len(stream.buffered) == framing.length:
            size = framing.length
    if exchange.ends_by_closing or (exchange.request_body is not None and not is_sent(exchange)):
        exchange.following = FINISH
    persistence = exchange.persistence()
    head = response.onward.get(persistence) if onward is framing else None
    if head is None:
        head = generation.forwarder.build_response_head(response, onward, persistence)
    if response.fields.lacks_date and generation.forwarder.dates:
        head = head[:-2] + _date_line(int(time.time()))
    if (affinity := exchange.group.affinity) is not None:
        mark = affinity.mark(exchange.affinity, connection.upstream)
        head = head[:-2] + mark + b"\r\n"
    if size is not None:  # the common road
        piece, stream.buffered = head + stream.buffered, b""
        finish_response(exchange, response, size)
    else:
        exchange.response_body = Body(framing, onward, is_answer=True)
        piece = head + next_piece(exchange)
        if exchange.lease is not None:  # not whole yet, and perhaps without an end
            if response.status in generation.failure_statuses:
                exchange.lease.settle(FAILURE)
            else:
                exchange.lease.note_head()
    exchange.has_started = True
    if exchange.record is not None:
        exchange.record.status = response.status
    return piece


def next_piece(exchange: Exchange) -> bytes:
    """What has come of the body, framed for the client. Never waits. Raises `UpstreamError`."""
    connection, body, response = exchange.connection, exchange.response_body, exchange.response
    assert connection is not None
    assert body is not None
    assert response is not None
    stream, piece = connection.stream, b""
    if stream.buffered and not body.is_done:
        try:
            parts, stream.buffered = body.feed(stream.buffered, len(stream.buffered))
        except MalformedMessage as error:
            raise _body_failed(error) from None
        piece = b"".join(parts)
    if body.is_done:
        finish_response(exchange, response, body.moved)
    return piece


def end_of_input(exchange: Exchange) -> bytes:
    """The upstream has closed its connection: what that means for the body. Never waits."""
    body, response = exchange.response_body, exchange.response
    assert body is not None
    assert response is not None
    try:
        piece = b"".join(body.end())
    except MalformedMessage as error:
        raise _body_failed(error) from None
    finish_response(exchange, response, body.moved)
    return piece


def stream_response(exchange: Exchange, piece: bytes) -> bool:
    """Send `piece` and all that is still to come of the answer. Blocks.

    False where there is a lane and the answer only trickles: the lane goes on with it. Otherwise an
    endless stream of events, once here because its client had been slow, would keep the thread.
    Meanwhile the request goes on, if the upstream has answered before it had read all of it.
    Raises `ClientGone` and `UpstreamError`.
    """
    connection, body, response = exchange.connection, exchange.response_body, exchange.response
    if exchange.is_complete or connection is None or body is None or response is None:
        exchange.send(piece)
        return True
    timeouts, upload = exchange.generation.config.timeouts, None
    if exchange.request_body is not None and not (
        exchange.request_body.is_through or exchange.is_deaf
    ):
        upload = BackgroundUpload(exchange, exchange.request_body, connection.stream)
    try:
        if piece:
            exchange.send(piece)
        is_whole = exchange.copier.copy(
            body,
            connection.stream,
            exchange.client.stream,
            read_timeout=timeouts.upstream_body,
            write_timeout=timeouts.client_write,
            until_quiet=upload is None and exchange.client.lane is not None,
        )
    except StreamError as error:
        if error.side is Side.CLIENT:
            raise ClientGone(error.reason) from None
        raise UpstreamError(Stage.BODY, error.reason, timed_out=error.timed_out) from None
    except MalformedMessage as error:
        raise _body_failed(error) from None
    finally:
        if upload is not None:
            upload.stop()
    if is_whole:
        finish_response(exchange, response, body.moved)
    return is_whole


def finish_response(exchange: Exchange, response: Response, size: int) -> None:
    """The answer is whole: give the upstream back, with its connection if that may be used again.

    `size` is that of the body.
    """
    connection, lease, generation = exchange.connection, exchange.lease, exchange.generation
    assert connection is not None
    assert lease is not None
    exchange.connection = exchange.lease = None
    exchange.is_complete = True
    is_whole = exchange.request_body is None or is_sent(exchange)
    if exchange.request.upgrade:
        is_whole = False  # who knows which protocol the upstream expects there now
    if not (response.keep_alive and not connection.stream.buffered and is_whole):
        connection.stream.close()
    elif (
        response.fields.carries_identity
        or exchange.request.fields.carries_identity
        or connection.is_bound
    ):
        exchange.client.bind(connection)  # whoever else used it would be taken for this client
    else:
        client = exchange.client
        pool = client.own_pool if connection.upstream.proxy_protocol else client.pool
        pool.checkin(connection, generation.config.pool, response.fields.keep_alive_timeout)
    lease.release(FAILURE if response.status in generation.failure_statuses else SUCCESS)
    if exchange.is_retry:
        exchange.is_retry = False
        exchange.group.balancer.end_retry()
    if exchange.record is not None:
        exchange.record.body_out = size


@functools.lru_cache(maxsize=1)
def _date_line(now: int) -> bytes:
    """The Date of an answer (RFC 9110 §6.6.1) and the end of its head; the same for a second."""
    return b"Date: %b\r\n\r\n" % email.utils.formatdate(now, usegmt=True).encode("ascii")


def _look_for_more(stream: Stream) -> None:
    """Head and body often come in two writes. An end or a failure is met again by who reads on."""
    try:
        stream.buffered += stream.receive_now() or b""
    except StreamError:
        return


def _body_failed(error: MalformedMessage) -> UpstreamError:
    """The upstream's answer was cut, or what came is no body."""
    is_cut = isinstance(error, TruncatedMessage)
    reason = error.reason if is_cut else f"its answer is malformed: {error.reason}"
    return UpstreamError(Stage.BODY, reason)
