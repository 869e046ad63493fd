"""One request and the means to answer it.

The connection loop makes an `Exchange` for each request and hands it to the app. It carries the
generation that the request keeps to its end, the worker's own tools (buffer, upstream pool), and
the client's stream. `has_started` tells whether the client has been sent a byte of the final
answer: from then on a failure can only cut the connection.

Answers that Atlas makes itself are built here, so all of them carry a length and never an
exception text.
"""

from __future__ import annotations

import email.utils
import html
import http.client
import time
import uuid

from atlas_pkg.balancing.lease import Lease, Wish
from atlas_pkg.balancing.pool import Pool
from atlas_pkg.errors import NoUpstream
from atlas_pkg.http1.forwarding import Hop
from atlas_pkg.http1.message import Request
from atlas_pkg.net.relay import Relay
from atlas_pkg.net.stream import Stream
from atlas_pkg.observing.record import Record, Times
from atlas_pkg.serving.clients import ClientConnection, Clients, Steps
from atlas_pkg.serving.generation import Generation


class Worker:
    """What belongs to one worker thread alone: its pool of upstream connections and its buffer."""

    __slots__ = ("leads", "pool", "relay")

    def __init__(self) -> None:
        self.leads = False  # at the gate: it must not wait for anybody then
        self.pool = Pool()
        self.relay = Relay()

    def close(self) -> None:
        """Close what the worker kept."""
        self.pool.close()
        self.relay.close()


class Exchange:
    """One request, from its head to the end of its answer."""

    __slots__ = (
        "_clients",
        "client",
        "ends_by_closing",
        "generation",
        "has_sent",
        "has_started",
        "hop",
        "is_tunnel",
        "may_persist",
        "record",
        "request",
        "request_id",
        "times",
        "wish",
        "worker",
    )

    def __init__(
        self,
        request: Request,
        connection: ClientConnection,
        *,
        clients: Clients,
        generation: Generation,
        worker: Worker,
    ) -> None:
        self.request = request
        self.client: Stream = connection.stream
        self.hop: Hop = connection.hop(generation)
        self._clients = clients
        self.generation = generation
        self.worker = worker
        self.has_started = False
        # Has the client been sent anything, an interim answer included?
        self.has_sent = False
        # Ours for this request, if we make one: the same for each attempt.
        self.request_id = b""
        # What ties this client to an upstream, for the balancer.
        self.wish: Wish = generation.affinity.wish(request, self.hop)
        # What the observers are told of this exchange; None while nobody watches.
        self.record: Record | None = None
        # The times in it; None while nobody shows them.
        self.times: Times | None = None
        # May the client's connection carry another request after this one? Only ever turned off.
        self.may_persist = request.keep_alive
        # Closing the connection is what ends the answer's body, so a cut needs another sign.
        self.ends_by_closing = False
        # Both connections now belong to a tunnel; nobody else may touch them.
        self.is_tunnel = False

    def lease_now(self, wish: Wish) -> Lease | None:
        """Reserve an upstream for one attempt; None where it takes waiting for a place.

        Raises `NoUpstream`. Notes why, if somebody asked for that.
        """
        balancer, record = self.generation.balancer, self.record
        if record is None or record.choices is None:
            return balancer.lease_now(wish)
        lease, choice = balancer.lease_explained(wish)
        record.choices.append(choice)
        if lease is None and not choice.waits:
            raise NoUpstream
        return lease

    def queue(self, wish: Wish) -> Lease:
        """Wait for a place at an upstream. Blocks. Raises `NoUpstream`, `ClientGone`."""
        return self.generation.balancer.lease(wish, is_gone=self.client.has_ended)

    def may_wait(self) -> Steps:
        """Pause until a worker goes on that may wait."""
        while self.worker.leads:
            self.worker = yield None

    def begin_record(self) -> Record:
        """Begin to take down what happens in this exchange."""
        request, hop, forwarder = self.request, self.hop, self.generation.forwarder
        address = hop.text
        if hop.is_trusted:
            address = forwarder.client_address(request, hop).decode("ascii")
        record = Record(address, request.line, time.monotonic())
        record.origin = request.fields.origin()
        if b"x-request-id" in request.fields.notable:
            record.request_id = forwarder.kept_request_id(request, hop)
        return record

    def make_request_id(self) -> bytes:
        """The id that is sent on unless the request has one that is kept (UUID 4, RFC 9562)."""
        if not self.request_id:
            self.request_id = uuid.uuid4().hex.encode()
            if self.record is not None and not self.record.request_id:
                self.record.request_id = self.request_id
        return self.request_id

    def start(self, status: int) -> None:
        """The final answer is about to be sent: from here on a failure can only cut it."""
        self.has_started = True
        if self.record is not None:
            self.record.status = status

    def persistence(self) -> bytes:
        """The Connection line for an answer (RFC 9112 §9.3): said only where it is not implied."""
        if self._clients.is_draining:
            self.may_persist = False  # it may have begun while the request was under way
        if not self.may_persist:
            return b"Connection: close\r\n"
        return b"" if self.request.minor == 1 else b"Connection: keep-alive\r\n"

    def answer(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        """Send an answer that Atlas makes itself. Raises `StreamError`."""
        answer = build_answer(
            status,
            reason,
            accept=self.request.fields.get(b"accept") or b"",
            retry_after=retry_after,
            persistence=self.persistence(),
        )
        if self.request.method == b"HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self.start(status)
        if self.record is not None:
            self.record.body_out = len(answer) - answer.index(b"\r\n\r\n") - 4
        self.client.send(answer, self.generation.config.timeouts.client_write)


def build_answer(
    status: int,
    reason: str,
    *,
    accept: bytes = b"",
    retry_after: int | None = None,
    persistence: bytes = b"Connection: close\r\n",
) -> bytes:
    """Build a whole error answer: HTML for a client that asks for it, else one line of text.

    `reason` is our own wording and never repeats what the client sent.
    """
    phrase = http.client.responses.get(status, "Error")
    if b"text/html" in accept.lower():
        kind = "text/html; charset=utf-8"
        title = html.escape(f"{status} {phrase}")
        body = (
            f"<!DOCTYPE html>\n<html lang=en><title>{title}</title>\n"
            f"<h1>{title}</h1>\n<p>{html.escape(reason)}</p>\n</html>\n"
        )
    else:
        kind = "text/plain; charset=utf-8"
        body = f"{status} {phrase}: {reason}\n"
    payload = body.encode()
    head = [
        f"HTTP/1.1 {status} {phrase}",
        f"Date: {email.utils.formatdate(usegmt=True)}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(payload)}",
    ]
    if retry_after is not None:
        head.append(f"Retry-After: {retry_after}")
    return "\r\n".join(head).encode() + b"\r\n" + persistence + b"\r\n" + payload
