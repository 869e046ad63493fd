"""App: forward one exchange to an upstream and its answer to the client.

The road is straight: reserve an upstream, take an idle connection or open one, send the head and
the body, read the answer's head, stream its body, give everything back. Each request is balanced
by itself, whatever connection it came on.

One repetition is built in, since it is not a retry: an idle connection that the upstream closed at
the very moment of sending is replaced by a fresh one to the *same* upstream, provided that nothing
can have happened twice (RFC 9110 §9.2.2, RFC 9112 §9.3.1).
"""

from __future__ import annotations

import time
import uuid

from atlas_pkg.balancing.balancer import Lease
from atlas_pkg.balancing.pool import FRESH, UpstreamConnection, connect
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.errors import ClientError, ClientGone, Side, Stage, StreamError, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.forwarding import build_interim_head, build_switching_head
from atlas_pkg.http1.framing import CHUNKED, UNTIL_CLOSE
from atlas_pkg.http1.message import Response
from atlas_pkg.serving.bodies import AnswerBody
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.tunnels import Tunnels
from atlas_pkg.serving.upload import BackgroundUpload, Upload

# RFC 9110 §9.2.2. Sending one of these twice has the effect of sending it once.
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))

# Interim answers to one request: early hints come once or twice; hundreds are an attack on us.
MAX_INTERIM = 64


class Proxy:
    """Forwards exchanges. Thread-safe: all state belongs to the exchange and its worker."""

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels

    def forward(self, exchange: Exchange) -> None:
        """Answer `exchange` from an upstream.

        Blocks. Raises `ClientError`, `ClientGone`, `NoUpstream`, `UpstreamError`, and
        `StreamError` for the client's side.
        """
        upload = _begin_upload(exchange) if exchange.request.has_body else None
        lease = exchange.generation.balancer.lease()
        try:
            connection, response = _ask(exchange, lease.upstream, upload)
            try:
                if response.status == 101:
                    self._switch(exchange, connection, response, lease)
                else:
                    _answer(exchange, connection, response, upload)
            except StreamError as error:
                connection.stream.close()
                raise _translate(error, Stage.BODY) from None
            except BaseException:
                connection.stream.close()
                raise
        except UpstreamError as error:
            error.upstream = lease.upstream.name
            raise
        finally:
            if not exchange.is_tunnel:
                lease.release()

    def _switch(
        self, exchange: Exchange, connection: UpstreamConnection, response: Response, lease: Lease
    ) -> None:
        """Pass on 101 and turn both connections into a tunnel (RFC 9110 §7.8)."""
        timeouts = exchange.generation.config.timeouts
        exchange.has_started = True
        exchange.client.send(build_switching_head(response), timeouts.client_write)
        exchange.is_tunnel = True
        self._tunnels.start(
            exchange.client,
            connection.stream,
            idle_limit=timeouts.tunnel_idle,
            on_end=lease.release,
        )


def _begin_upload(exchange: Exchange) -> Upload:
    """Prepare to send the request's body; raises `ClientError` (413) if it is said to be too
    big."""
    config = exchange.generation.config
    framing = exchange.request.framing
    if config.limits.body and framing.length > config.limits.body:
        raise ClientError(413, "the request body is too large")
    upload = Upload(
        exchange.client,
        framing,
        limit=config.limits.body,
        max_fields=config.limits.fields,
        timeouts=config.timeouts,
    )
    upload.awaits_continue = exchange.request.expects_continue
    return upload


def _ask(
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
    may_repeat = request.method in IDEMPOTENT and upload is None
    timeouts = generation.config.timeouts
    # What cannot be repeated is not trusted to a connection that may just be going stale.
    idle_limit = timeouts.upstream_idle if may_repeat else min(FRESH, timeouts.upstream_idle)
    connection = exchange.worker.pool.checkout(
        upstream, generation.config.pool, idle_limit=idle_limit
    )
    if connection is None:
        connection = connect(upstream, timeouts.connect)
    try:
        return connection, _converse(exchange, connection, head, upload)
    except UpstreamError as error:
        connection.stream.close()
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
            raise _translate(error, Stage.SEND, is_stale=connection.is_reused) from None
    for _ in range(MAX_INTERIM):
        if upload is not None and not upload.is_done:
            try:
                upload.run(stream, exchange.worker.relay)
            except StreamError as error:
                raise _translate(error, Stage.SEND) from None
        response = exchange.generation.parser.parse_response(
            _read_head(exchange, connection), exchange.request.method
        )
        if response.status >= 200:
            return response
        if response.status == 101:
            if not exchange.request.upgrade:
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
        exchange.client.send(build_interim_head(response), timeout)


def _read_head(exchange: Exchange, connection: UpstreamConnection) -> bytes:
    """Read one whole answer head; what follows it stays buffered. Raises `UpstreamError`."""
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
            more = stream.receive(max(0.0, deadline - now), exchange.client)
            if not more:
                raise UpstreamError(Stage.HEAD, "closed its connection in the middle of a head")
            data += more
    except StreamError as error:
        raise _translate(error, Stage.HEAD, is_stale=connection.is_reused and not data) from None
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


def _answer(
    exchange: Exchange, connection: UpstreamConnection, response: Response, upload: Upload | None
) -> None:
    """Pass the final answer on and give the connection back if it may be used again."""
    generation, stream = exchange.generation, connection.stream
    onward = framing = response.framing
    if framing is CHUNKED or framing is UNTIL_CLOSE:
        # A 1.0 client does not know chunks: its body ends with the connection (RFC 9112 §6.1).
        onward = CHUNKED if exchange.request.minor == 1 else UNTIL_CLOSE
        exchange.ends_by_closing = onward is UNTIL_CLOSE
    is_early = upload is not None and not upload.is_done
    if exchange.ends_by_closing or is_early:
        exchange.may_persist = False
    head = generation.forwarder.build_response_head(
        response, onward, persistence=exchange.persistence()
    )
    if framing.length and len(stream.buffered) == framing.length and not is_early:
        # The common road: the whole answer is here, and leaves at once.
        head += stream.buffered
        stream.buffered = b""
        exchange.has_started = True
        exchange.client.send(head, generation.config.timeouts.client_write)
        is_sent = True
    else:
        body = AnswerBody(stream, exchange.client, framing=framing, onward=onward)
        is_sent = _stream_answer(exchange, head, body, upload if is_early else None)
    if is_sent and response.keep_alive and not stream.buffered:
        timeout = response.fields.keep_alive_timeout
        if timeout is not None:
            connection.note_keep_alive(timeout)
        exchange.worker.pool.checkin(connection, generation.config.pool)
    else:
        stream.close()


def _stream_answer(
    exchange: Exchange, head: bytes, body: AnswerBody, upload: Upload | None
) -> bool:
    """Send head and body while `upload`, if given, goes on; was the request sent whole too?"""
    timeouts = exchange.generation.config.timeouts
    first = head + body.take_buffered()
    background = None
    if upload is not None and not upload.is_broken:
        background = BackgroundUpload(upload, body.upstream)
    try:
        exchange.has_started = True
        exchange.client.send(first, timeouts.client_write)
        body.send_rest(exchange.worker.relay, timeouts)
    finally:
        is_sent = background.stop() if background else upload is None
    return is_sent


def _translate(
    error: StreamError, stage: Stage, *, is_stale: bool = False
) -> ClientGone | UpstreamError:
    """Give a stream's failure its meaning: whose it was, and at which stage."""
    if error.side is Side.CLIENT:
        return ClientGone(error.reason)
    return UpstreamError(stage, error.reason, timed_out=error.timed_out, is_stale=is_stale)
