"""A request's body on its way to the upstream, which may be interrupted.

What arrived together with the head leaves with it. The rest is copied (`net/copy.py`) until the
upstream has something to say: it may answer before it has read everything, to refuse an upload
(413), or because it echoes what it reads. Then the rest goes on in a thread of its own while the
answer flows the other way.
"""

from __future__ import annotations

import threading

from atlas_pkg.errors import (
    AtlasError,
    ClientError,
    ClientGone,
    MalformedMessage,
    Side,
    Stage,
    StreamError,
    TruncatedMessage,
    UpstreamError,
)
from atlas_pkg.http1.body import Body
from atlas_pkg.http1.forwarding import CONTINUE
from atlas_pkg.net.copy import Copier
from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.exchange import Exchange

# A client that waits for 100 (Continue) gets ours when the upstream has said nothing for so long.
CONTINUE_DELAY = 1.0

_LATE = "the request body did not come in time"


def begin_body(exchange: Exchange) -> None:
    """Prepare to send the body; raises `ClientError` (413) if it is said to be too big."""
    limits, framing = exchange.generation.config.limits, exchange.request.framing
    if limits.body and framing.length > limits.body:
        raise ClientError(413, "the request body is too large")
    exchange.request_body = Body(
        framing, framing, limit=limits.body, max_trailer_fields=limits.fields
    )
    exchange.awaits_continue = exchange.request.expects_continue


def take_first(exchange: Exchange) -> bytes:
    """Take what arrived of the body together with its head, framed to be sent with it.

    Another attempt gets the same once more, if that was all of it (`replay`).
    """
    body, client = exchange.request_body, exchange.client.stream
    if body is None:
        return b""
    if exchange.replay is not None:
        return exchange.replay
    first = b""
    if client.buffered and not body.is_done:
        try:
            parts, client.buffered = body.feed(client.buffered, len(client.buffered))
        except MalformedMessage as error:
            raise ClientError(error.status, error.reason) from None
        first = b"".join(parts)
        _note(exchange, body)
    if body.is_done:
        exchange.replay = first
    return first


def send_body(exchange: Exchange, upstream: Stream) -> None:
    """Send what is left of the body, until the upstream has something to say. Blocks.

    Raises `ClientError` (408, 413, malformed chunks), `ClientGone` and `UpstreamError`. An upstream
    that cannot be written to any more may have answered first: then it is merely deaf.
    """
    body = exchange.request_body
    if body is None or exchange.is_deaf:
        return
    try:
        if exchange.awaits_continue and not _await_continue(exchange, upstream):
            return
        _copy(exchange, body, upstream, exchange.copier, heeds_upstream=True)
    except StreamError as error:
        if error.side is Side.UPSTREAM and not error.timed_out:
            exchange.is_deaf = True
        elif error.side is Side.UPSTREAM:
            raise UpstreamError(Stage.SEND, error.reason, timed_out=True) from None
        elif error.timed_out:
            raise ClientError(408, _LATE) from None
        else:
            raise ClientGone(error.reason) from None
    finally:
        _note(exchange, body)


class BackgroundUpload:
    """The rest of an upload, in a thread of its own while the answer already flows back."""

    def __init__(self, exchange: Exchange, body: Body, upstream: Stream) -> None:
        self._exchange = exchange
        self._body = body
        self._upstream = upstream
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """The answer is complete: end the upload too; returns whether it had been finished."""
        if not self._body.is_through:
            self._upstream.shut_down()  # wakes the thread, wherever it waits
        self._thread.join()
        _note(self._exchange, self._body)
        return self._body.is_through

    def _run(self) -> None:
        copier = Copier()
        try:
            _copy(self._exchange, self._body, self._upstream, copier, heeds_upstream=False)
        except AtlasError:
            # The answer decides how the exchange ends; all we know is that no more will be sent.
            self._exchange.is_deaf = True
        finally:
            copier.close()


def _copy(
    exchange: Exchange, body: Body, upstream: Stream, copier: Copier, *, heeds_upstream: bool
) -> None:
    timeouts = exchange.generation.config.timeouts
    try:
        copier.copy(
            body,
            exchange.client.stream,
            upstream,
            read_timeout=timeouts.client_body,
            write_timeout=timeouts.upstream_body,
            heeds_sink=heeds_upstream,
        )
    except TruncatedMessage as error:
        raise ClientGone(error.reason) from None
    except MalformedMessage as error:
        raise ClientError(error.status, error.reason) from None


def _await_continue(exchange: Exchange, upstream: Stream) -> bool:
    """Wait for the body of a client that waits for 100; False if the upstream speaks first."""
    timeouts = exchange.generation.config.timeouts
    client = exchange.client.stream
    if client.buffered:
        exchange.awaits_continue = False
        return True
    try:
        has_come = client.wait_until_readable(
            min(CONTINUE_DELAY, timeouts.client_body), upstream, heeds_other=True
        )
        if not has_come:
            return False
    except StreamError as error:
        if not error.timed_out:
            raise
        exchange.has_sent = True
        exchange.send(CONTINUE)
    exchange.awaits_continue = False
    return True


def _note(exchange: Exchange, body: Body) -> None:
    if exchange.record is not None:
        exchange.record.body_in = body.moved
