"""App: forward one exchange to an upstream and its answer to the client.

The road is straight: reserve an upstream, take an idle connection or open one, send the head and
the body, read the answer's head, stream its body, give everything back. Each request is balanced
by itself, whatever connection it came on.

What fails may be tried on another upstream (`retry.py`), and the circuit breaker hears of it.
"""

from __future__ import annotations

import time

from atlas_pkg.balancing.lease import Lease, Outcome
from atlas_pkg.balancing.pool import UpstreamConnection
from atlas_pkg.errors import ClientError, Stage, StreamError, UpstreamError
from atlas_pkg.http1.forwarding import build_switching_head
from atlas_pkg.http1.framing import CHUNKED, UNTIL_CLOSE, Framing
from atlas_pkg.http1.message import Response
from atlas_pkg.observing.record import End
from atlas_pkg.serving.asking import Attempt
from atlas_pkg.serving.bodies import AnswerBody
from atlas_pkg.serving.clients import Steps
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.failures import translate
from atlas_pkg.serving.retry import Retries
from atlas_pkg.serving.tunnels import Tunnels
from atlas_pkg.serving.upload import BackgroundUpload, Upload


class Proxy:
    """Forwards exchanges. Thread-safe: all state belongs to the exchange and its worker."""

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels

    def forward(self, exchange: Exchange) -> Steps:
        """Answer `exchange` from an upstream, in steps.

        Raises `ClientError`, `ClientGone`, `NoUpstream`, `UpstreamError`, and `StreamError` for the
        client's side.
        """
        upload = _begin_upload(exchange) if exchange.request.has_body else None
        lease = exchange.lease_now(exchange.wish)
        if lease is None:
            yield from exchange.may_wait()
            lease = exchange.queue(exchange.wish)
        try:
            attempt = Attempt(exchange, lease.upstream, upload)
            attempt.begin()
            while exchange.worker.leads and not attempt.is_ready:
                exchange.worker = yield attempt.awaited()
                attempt.look()
            response = attempt.finish()
        except UpstreamError as error:
            yield from exchange.may_wait()
            lease, attempt, response = _ask_others(exchange, lease, error, upload)
        except BaseException:
            lease.release()
            raise
        if exchange.times is not None:
            exchange.times.first_byte_at = time.monotonic()
        # Looked at before it is awaited: the gate tells only of what comes from then on.
        while exchange.worker.leads and attempt.lacks_little(response) and attempt.fetch():
            if attempt.lacks_little(response):
                exchange.worker = yield attempt.awaited()
        unsent = _answer_at_once(exchange, lease, attempt, response)
        if unsent is None:
            yield from exchange.may_wait()
            self._conclude(exchange, lease, attempt, response, upload)
        elif unsent:
            yield from exchange.may_wait()
            exchange.client.send(unsent, exchange.generation.config.timeouts.client_write)

    def _conclude(
        self,
        exchange: Exchange,
        lease: Lease,
        attempt: Attempt,
        response: Response,
        upload: Upload | None,
    ) -> None:
        """Pass the answer on and give the upstream back with what it deserves. Blocks."""
        outcome = Outcome.NONE
        connection = attempt.connection
        try:
            if response.status == 101:
                self._switch(exchange, connection, response, lease)
            else:
                _stream_answer(exchange, connection, response, upload)
                outcome = exchange.generation.judge(response.status)
        except StreamError as error:
            connection.stream.close()
            translated = translate(error, Stage.BODY)
            if isinstance(translated, UpstreamError):
                outcome, translated.upstream = Outcome.FAILURE, lease.upstream.name
            raise translated from None
        except UpstreamError as error:
            connection.stream.close()
            outcome, error.upstream = Outcome.FAILURE, lease.upstream.name
            raise
        except BaseException:
            connection.stream.close()
            raise
        finally:
            if not exchange.is_tunnel:
                lease.release(outcome)

    def _switch(
        self, exchange: Exchange, connection: UpstreamConnection, response: Response, lease: Lease
    ) -> None:
        """Pass on 101 and turn both connections into a tunnel (RFC 9110 §7.8)."""
        timeouts = exchange.generation.config.timeouts
        exchange.start(101)
        exchange.client.send(build_switching_head(response), timeouts.client_write)
        exchange.is_tunnel = True
        if exchange.record is not None:
            exchange.record.end = End.TUNNEL
        lease.settle(Outcome.SUCCESS)  # it may be hours until the tunnel ends
        self._tunnels.start(
            exchange.client,
            connection.stream,
            idle_limit=timeouts.tunnel_idle,
            on_end=lease.release,
        )


def _ask_others(
    exchange: Exchange, lease: Lease, error: UpstreamError, upload: Upload | None
) -> tuple[Lease, Attempt, Response]:
    """Give `lease` back after `error` and ask other upstreams until one answers. Blocks."""
    retries = Retries(exchange, upload)
    record = exchange.record
    try:
        while True:
            if record is not None:
                failure = (lease.upstream.name, error.stage.value)
                record.failures = (*record.failures, failure)
            lease = retries.next_lease(lease, error)
            if record is not None:
                record.retries += 1
            try:
                attempt = Attempt(exchange, lease.upstream, upload)
                attempt.begin()
                return lease, attempt, attempt.finish()
            except UpstreamError as another:
                error = another
            except BaseException:
                lease.release()
                raise
    finally:
        retries.close()


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
    upload.record = exchange.record
    return upload


def _answer_at_once(
    exchange: Exchange, lease: Lease, attempt: Attempt, response: Response
) -> bytes | None:
    """The common road: the whole answer is here, and leaves without waiting.

    The upstream is given back first: who has read the answer finds it counted as finished.
    Returns what the client did not take at once, or None where there is more to do than that.
    """
    connection, framing = attempt.connection, response.framing
    stream = connection.stream
    if (
        len(stream.buffered) != framing.length
        or framing is CHUNKED
        or framing is UNTIL_CLOSE
        or response.status == 101
        or not attempt.is_sent
    ):
        return None
    try:
        answer = _build_head(exchange, connection, response, framing) + stream.buffered
        stream.buffered = b""
        _give_back(exchange, connection, response)
    except BaseException:
        stream.close()
        lease.release()
        raise
    lease.release(exchange.generation.judge(response.status))
    exchange.start(response.status)
    if exchange.record is not None:
        exchange.record.body_out = framing.length
    return exchange.client.send_now(answer)


def _stream_answer(
    exchange: Exchange, connection: UpstreamConnection, response: Response, upload: Upload | None
) -> None:
    """Pass the final answer on and give the connection back if it may be used again. Blocks."""
    stream = connection.stream
    onward = framing = response.framing
    if framing is CHUNKED or framing is UNTIL_CLOSE:
        # A 1.0 client does not know chunks: its body ends with the connection (RFC 9112 §6.1).
        onward = CHUNKED if exchange.request.minor == 1 else UNTIL_CLOSE
        exchange.ends_by_closing = onward is UNTIL_CLOSE
    is_early = upload is not None and not upload.is_done
    if exchange.ends_by_closing or is_early:
        exchange.may_persist = False
    head = _build_head(exchange, connection, response, onward)
    body = AnswerBody(stream, exchange.client, framing=framing, onward=onward)
    if _send_answer(exchange, response.status, head, body, upload if is_early else None):
        _give_back(exchange, connection, response)
    else:
        stream.close()


def _send_answer(
    exchange: Exchange, status: int, head: bytes, body: AnswerBody, upload: Upload | None
) -> bool:
    """Send head and body while `upload`, if given, goes on; was the request sent whole too?"""
    timeouts = exchange.generation.config.timeouts
    first = head + body.take_buffered()
    background = None
    if upload is not None and not upload.is_broken:
        background = BackgroundUpload(upload, body.upstream)
    try:
        exchange.start(status)
        exchange.client.send(first, timeouts.client_write)
        body.send_rest(exchange.worker.relay, timeouts)
    finally:
        is_sent = background.stop() if background else upload is None
        if exchange.record is not None:
            exchange.record.body_out = body.sent
    return is_sent


def _build_head(
    exchange: Exchange, connection: UpstreamConnection, response: Response, onward: Framing
) -> bytes:
    """The answer's head as the client gets it, with the cookie that keeps it where it is."""
    generation = exchange.generation
    head = generation.forwarder.build_response_head(
        response, onward, persistence=exchange.persistence()
    )
    if mark := generation.affinity.mark(exchange.wish, connection.upstream):
        head = head[:-2] + mark + b"\r\n"
    return head


def _give_back(exchange: Exchange, connection: UpstreamConnection, response: Response) -> None:
    """Keep a connection on which both messages have ended, if it may be used again."""
    if not response.keep_alive or connection.stream.buffered:
        connection.stream.close()
        return
    timeout = response.fields.keep_alive_timeout
    if timeout is not None:
        connection.note_keep_alive(timeout)
    exchange.worker.pool.checkin(connection, exchange.generation.config.pool)
