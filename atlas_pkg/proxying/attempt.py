"""One attempt at one upstream: send the request, read the head of the answer.

An idle connection is taken if there is one, else one is opened. `send_at_once` and `find_response`
never wait; `send_request` and `read_response` do whatever is left. Interim answers are passed on as
they come. The body of an answer is still to be read: what has come of it is buffered.
"""

from __future__ import annotations

import time

from atlas_pkg.balancing.pool import FRESH, SPEAKS_TLS, UpstreamConnection, open_connection
from atlas_pkg.errors import ClientGone, Side, Stage, StreamError, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.message import Request, Response
from atlas_pkg.proxying.request_body import send_body, take_first
from atlas_pkg.proxying.retry import IDEMPOTENT
from atlas_pkg.serving.exchange import Exchange

# Interim answers to one request: early hints come once or twice; hundreds are an attack on us.
MAX_INTERIM = 64

_SWITCHING = 101


def send_at_once(exchange: Exchange) -> bool:
    """Send the request on an idle connection; False where there is none, or not all can be sent.

    Never waits. Raises `ClientError` for the body that came with the head.
    """
    lease, request, generation = exchange.lease, exchange.request, exchange.generation
    assert lease is not None
    client = exchange.client
    if client.bound and (bound := client.take_bound(lease.upstream)) is not None:
        return _send_head(exchange, bound)  # another connection would not know the client
    # What may not be repeatable is not trusted to a connection that may just be going stale.
    idle_limit = generation.config.timeouts.upstream_idle
    if exchange.request_body is not None or request.method not in IDEMPOTENT:
        idle_limit = min(FRESH, idle_limit)
    pool = client.own_pool if lease.upstream.proxy_protocol else client.pool
    connection = pool.checkout(lease.upstream, generation.config.pool, idle_limit)
    return connection is not None and _send_head(exchange, connection)


def send_request(exchange: Exchange) -> None:
    """Send what has not been sent, until the upstream has something to say. Blocks.

    Raises `ClientError`, `ClientGone` and `UpstreamError`.
    """
    timeouts = exchange.generation.config.timeouts
    if exchange.connection is None and not exchange.wants_fresh:
        send_at_once(exchange)
    if exchange.connection is None:
        _send_head(exchange, open_for(exchange))
    connection = exchange.connection
    assert connection is not None
    if exchange.unsent:
        unsent, exchange.unsent = exchange.unsent, b""
        try:
            connection.stream.send(unsent, timeouts.upstream_body)
        except StreamError as error:
            # It may have answered and closed before it read everything; it is worth a look.
            if error.timed_out or not connection.stream.is_readable():
                raise translate(error, Stage.SEND, exchange, connection) from None
            exchange.is_deaf = True
        exchange.deadline = time.monotonic() + timeouts.upstream_head
    _go_on_sending(exchange, connection)


def open_for(exchange: Exchange) -> UpstreamConnection:
    """Connect to the upstream that is leased. Blocks. Raises `UpstreamError`."""
    assert exchange.lease is not None
    upstream, timeouts = exchange.lease.upstream, exchange.generation.config.timeouts
    ends = exchange.client.find_ends() if upstream.proxy_protocol else None
    return open_connection(upstream, timeouts.connect, ends)


def is_sent(exchange: Exchange) -> bool:
    """Has the whole request been sent?"""
    body = exchange.request_body
    is_whole = not exchange.unsent and (body is None or body.is_through)
    return is_whole and not exchange.is_deaf


def read_response(exchange: Exchange) -> Response:
    """Read the head of the final answer, and pass on interim ones. Blocks.

    Raises `ClientError`, `ClientGone` and `UpstreamError`.
    """
    connection = exchange.connection
    assert connection is not None
    for _ in range(MAX_INTERIM):
        try:
            response = find_response(exchange, connection)
            while response is None:
                _receive(exchange, connection)
                response = find_response(exchange, connection)
        except StreamError as error:
            raise translate(error, Stage.HEAD, exchange, connection) from None
        if response.status == _SWITCHING and not is_sent(exchange):
            # What is left of the body would be taken for the other protocol, by whoever reads it.
            raise UpstreamError(Stage.HEAD, "switched protocols before it had read the request")
        if response.status >= 200 or response.status == _SWITCHING:
            return response
        _pass_on_interim(exchange, response)
        exchange.deadline = time.monotonic() + exchange.generation.config.timeouts.upstream_head
        _go_on_sending(exchange, connection)
    raise UpstreamError(Stage.HEAD, "its interim answers do not end")


def find_response(exchange: Exchange, connection: UpstreamConnection) -> Response | None:
    """Find and judge a head, interim or not, in what is buffered; None if it is not whole yet.

    What follows it stays buffered. Never waits. Raises `UpstreamError`.
    """
    stream, generation = connection.stream, exchange.generation
    data = stream.buffered
    end = data.find(b"\r\n\r\n") + 4
    if end > generation.config.limits.upstream_head:
        raise UpstreamError(Stage.HEAD, "the head of its answer is too large")
    if end < 4:
        if data:
            _judge_incomplete(data, generation.config.limits.upstream_head)
        return None
    request = exchange.request
    response = generation.parser.parse_response(data[:end], request.method)
    if response.status == _SWITCHING and not _is_asked_for(response, request):
        raise UpstreamError(Stage.HEAD, "switched protocols without being asked")
    stream.buffered = data[end:]
    return response


def _is_asked_for(response: Response, request: Request) -> bool:
    """Does a 101 switch to what the client has offered, in whatever version? (RFC 9110 §7.8)"""
    offered, chosen = (
        {protocol.partition(b"/")[0] for protocol in syntax.split_list([protocols])}
        for protocols in (request.upgrade, response.fields.upgrade)
    )
    return bool(chosen) and chosen <= offered


def translate(
    error: StreamError, stage: Stage, exchange: Exchange, connection: UpstreamConnection
) -> ClientGone | UpstreamError:
    """Give a stream's failure its meaning: whose it was, at which stage, and whether that is the
    ordinary end of an idle connection.

    Silence is no sign of that: asking again would only wait as long again. Nor is anything after
    the first byte of an answer, in its head or in its body: then the request has arrived.
    """
    if error.side is Side.CLIENT:
        return ClientGone(error.reason)
    has_heard = connection.stream.buffered or exchange.has_heard or stage is Stage.BODY
    return UpstreamError(
        stage,
        error.reason,
        timed_out=error.timed_out,
        is_stale=not (has_heard or error.timed_out) and connection.requests > 0,
    )


def ended_in_head(connection: UpstreamConnection) -> StreamError:
    """The upstream has closed its connection where a head should have come."""
    place = "in the middle of a head" if connection.stream.buffered else "without an answer"
    return StreamError(Side.UPSTREAM, f"closed its connection {place}")


def _send_head(exchange: Exchange, connection: UpstreamConnection) -> bool:
    """Send the head, and what has come of the body; False where more is to be sent. Never waits."""
    generation, body = exchange.generation, exchange.request_body
    forwarder = generation.forwarder
    exchange.connection = connection
    if exchange.record is not None:
        exchange.note_connection(connection)
    head = forwarder.build_request_head(
        exchange.request,
        exchange.client.info,
        connection.upstream.host_field,
        exchange.make_request_id() if forwarder.makes_request_ids else b"",
        b"" if exchange.route is None else exchange.route.strip,
    )
    if body is not None:
        head += take_first(exchange)
    exchange.deadline = time.monotonic() + generation.config.timeouts.upstream_head
    exchange.unsent = connection.stream.send_now(head)
    if exchange.times is not None:
        exchange.times.asked_at = time.monotonic()
    return not exchange.unsent and (body is None or body.is_through)


def _go_on_sending(exchange: Exchange, connection: UpstreamConnection) -> None:
    """Send what is left of the body, until the upstream has something to say."""
    body = exchange.request_body
    # What came behind an interim answer is already the next one: the body has to wait.
    if body is None or body.is_through or connection.stream.buffered:
        return
    send_body(exchange, connection.stream)
    exchange.deadline = time.monotonic() + exchange.generation.config.timeouts.upstream_head


def _receive(exchange: Exchange, connection: UpstreamConnection) -> None:
    """Read more of a head. Blocks."""
    stream = connection.stream
    left = exchange.deadline - time.monotonic()
    if left <= 0:  # a byte now and then does not extend it
        raise StreamError(Side.UPSTREAM, "its head did not end in time", timed_out=True)
    more = stream.receive(left, exchange.client.stream)
    if not more:
        raise ended_in_head(connection)
    stream.buffered += more


def _pass_on_interim(exchange: Exchange, response: Response) -> None:
    """Relay a 1xx answer to a client that understands it (RFC 9110 §15.2)."""
    exchange.has_heard = True
    if response.status == 100 and exchange.request_body is not None:
        if exchange.request.expects_continue and not exchange.awaits_continue:
            return  # the client has been told already, or has begun by itself
        exchange.awaits_continue = False
    if exchange.request.minor == 1:
        exchange.has_sent = True
        exchange.send(exchange.generation.forwarder.build_interim_head(response))


def _judge_incomplete(data: bytes, limit: int) -> None:
    """Give up on a head that can no longer become a good one, instead of waiting for its end."""
    if len(data) > limit:
        raise UpstreamError(Stage.HEAD, "the head of its answer is too large")
    if data.startswith(syntax.TLS_ALERT):
        raise UpstreamError(Stage.HEAD, SPEAKS_TLS)
    if not data.startswith(b"HTTP/"[: len(data)]) or syntax.BAD_LINE_END.search(data):
        raise UpstreamError(Stage.HEAD, "its answer is not HTTP")
