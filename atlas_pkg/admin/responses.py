"""Whole answers that Atlas makes itself, beyond error answers, and small bodies that it reads.

For apps whose answers fit into memory, such as the admin app. A `Reply` is a value; sending it
adds what every such answer has: its length, and fields that keep browsers from storing it, guessing
its type or showing it inside a page of somebody else.

Not done here: error answers of the proxy (`serving/failures.py`), and anything that streams.
"""

from __future__ import annotations

import email.utils
import http.client
import time
from dataclasses import dataclass

from atlas_pkg.errors import ClientError, MalformedMessage, Side, StreamError
from atlas_pkg.http1.body import Body
from atlas_pkg.http1.forwarding import CONTINUE
from atlas_pkg.http1.framing import NO_BODY
from atlas_pkg.serving.client import FINISH
from atlas_pkg.serving.exchange import Exchange

TEXT = "text/plain; charset=utf-8"

# For everything but a page, which brings a policy of its own: nothing in it may be run or loaded.
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `fields` must be safe to send: our own wording, no line ends."""

    status: int
    body: bytes
    kind: str = TEXT
    policy: str = _NOTHING  # its Content-Security-Policy
    fields: tuple[tuple[str, str], ...] = ()


def send_reply(exchange: Exchange, reply: Reply, *, has_read_body: bool = False) -> None:
    """Send `reply`, for HEAD without its body. Raises `StreamError`. Blocks.

    Unless `has_read_body`, a request with a body ends its connection: what is left of the body
    would be taken for the next request.
    """
    request = exchange.request
    if request.has_body and not has_read_body:
        exchange.following = FINISH
    head = [
        f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, 'Unknown')}",
        f"Date: {email.utils.formatdate(usegmt=True)}",
        f"Content-Type: {reply.kind}",
        f"Content-Length: {len(reply.body)}",
        "Cache-Control: no-store",
        f"Content-Security-Policy: {reply.policy}",
        "Cross-Origin-Resource-Policy: same-origin",
        "Referrer-Policy: no-referrer",
        "X-Content-Type-Options: nosniff",
        "X-Frame-Options: DENY",
        *(f"{name}: {value}" for name, value in reply.fields),
    ]
    answer = "\r\n".join(head).encode("ascii") + b"\r\n" + exchange.persistence() + b"\r\n"
    exchange.answer_whole(reply.status, answer + reply.body)
    if exchange.rest:
        exchange.send_rest()


def read_small_body(exchange: Exchange, most: int) -> bytes:
    """Read the request's whole body, of at most `most` bytes. Blocks.

    All of it must come within `timeouts.client_body`, so a slow client cannot hold a thread. Raises
    `ClientError` (408, 413, malformed chunks) and `StreamError`.
    """
    framing, client = exchange.request.framing, exchange.client.stream
    config = exchange.generation.config
    if framing.length > most:
        raise ClientError(413, "the request body is too large")
    if exchange.request.expects_continue and not client.buffered:
        exchange.has_sent = True
        exchange.send(CONTINUE)
    # It is sent on to nobody, so not as chunks: what it is fed with comes out decoded.
    body = Body(framing, NO_BODY, limit=most, max_trailer_fields=config.limits.fields)
    deadline = time.monotonic() + config.timeouts.client_body
    data = b""
    while not body.is_done:
        if not client.buffered:
            client.buffered = _receive(exchange, deadline - time.monotonic())
        try:
            parts, client.buffered = body.feed(client.buffered, len(client.buffered))
        except MalformedMessage as error:
            raise ClientError(error.status, error.reason) from None
        data += b"".join(parts)
    return data


def _receive(exchange: Exchange, timeout: float) -> bytes:
    """Read more from the client; `timeout` is what is left of its time."""
    late = ClientError(408, "the request body did not come in time")
    if timeout <= 0:
        raise late
    try:
        data = exchange.client.stream.receive(timeout)
    except StreamError as error:
        if error.timed_out:
            raise late from None
        raise
    if not data:
        raise StreamError(Side.CLIENT, "closed its connection in the middle of a body")
    return data
