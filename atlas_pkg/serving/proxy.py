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
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.errors import ClientError, Stage, StreamError, UpstreamError
from atlas_pkg.http1.forwarding import build_switching_head
from atlas_pkg.http1.framing import CHUNKED, UNTIL_CLOSE
from atlas_pkg.http1.message import Response
from atlas_pkg.record import End, Record
from atlas_pkg.serving.asking import ask, translate
from atlas_pkg.serving.bodies import AnswerBody
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.retry import Retries
from atlas_pkg.serving.tunnels import Tunnels
from atlas_pkg.serving.upload import BackgroundUpload, Upload


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
        try:
            lease, connection, response = _ask_until_answered(exchange, upload)
            self._conclude(exchange, lease, connection, response, upload)
        finally:
            if exchange.record is not None and upload is not None:
                exchange.record.body_in = upload.taken

    def _conclude(
        self,
        exchange: Exchange,
        lease: Lease,
        connection: UpstreamConnection,
        response: Response,
        upload: Upload | None,
    ) -> None:
        """Pass the answer on and give the upstream back with what it deserves."""
        outcome = Outcome.NONE
        if exchange.record is not None:
            exchange.record.first_byte_at = time.monotonic()
        try:
            if response.status == 101:
                self._switch(exchange, connection, response, lease)
            else:
                _answer(exchange, connection, response, upload)
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


def _ask_until_answered(
    exchange: Exchange, upload: Upload | None
) -> tuple[Lease, UpstreamConnection, Response]:
    """Ask one upstream, and others after it if that is allowed, until one answers."""
    balancer = exchange.generation.balancer
    lease = balancer.lease(exchange.wish, is_gone=exchange.client.has_ended)
    try:
        if exchange.record is not None:
            _note_choice(exchange.record, lease.upstream)
        return lease, *ask(exchange, lease.upstream, upload)
    except UpstreamError as error:
        return _ask_others(exchange, lease, error, upload)
    except BaseException:
        lease.release()
        raise


def _ask_others(
    exchange: Exchange, lease: Lease, error: UpstreamError, upload: Upload | None
) -> tuple[Lease, UpstreamConnection, Response]:
    """Give `lease` back after `error` and ask other upstreams until one answers."""
    retries = Retries(exchange, upload)
    record = exchange.record
    try:
        while True:
            if record is not None:
                record.failures.append((lease.upstream.name, error.stage.value))
            lease = retries.next_lease(lease, error)
            if record is not None:
                record.retries += 1
                _note_choice(record, lease.upstream)
            try:
                return lease, *ask(exchange, lease.upstream, upload)
            except UpstreamError as another:
                error = another
            except BaseException:
                lease.release()
                raise
    finally:
        retries.close()


def _note_choice(record: Record, upstream: Upstream) -> None:
    record.upstream = upstream.name
    record.chosen_at = time.monotonic()


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
    if mark := generation.affinity.mark(exchange.wish, connection.upstream):
        head = head[:-2] + mark + b"\r\n"
    if framing.length and len(stream.buffered) == framing.length and not is_early:
        # The common road: the whole answer is here, and leaves at once.
        head += stream.buffered
        stream.buffered = b""
        exchange.start(response.status)
        if exchange.record is not None:
            exchange.record.body_out = framing.length
        exchange.client.send(head, generation.config.timeouts.client_write)
        is_sent = True
    else:
        body = AnswerBody(stream, exchange.client, framing=framing, onward=onward)
        rest = upload if is_early else None
        is_sent = _stream_answer(exchange, response.status, head, body, rest)
    if is_sent and response.keep_alive and not stream.buffered:
        timeout = response.fields.keep_alive_timeout
        if timeout is not None:
            connection.note_keep_alive(timeout)
        exchange.worker.pool.checkin(connection, generation.config.pool)
    else:
        stream.close()


def _stream_answer(
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
