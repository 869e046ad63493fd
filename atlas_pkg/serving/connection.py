"""HTTP/1.1 on a client's connection: read a head, call the app, answer errors, keep alive.

This is RFC 9112 §9. `read` makes an exchange of what a client has said. `wait` is the road: it
serves that exchange to its end, and blocks wherever it has to. `ask` and `answer` are the shortcut,
for a thread that serves many clients and must not wait for any (`lane.py`); what they cannot
finish, `wait` finishes, from wherever they have stopped. While a head is incomplete, the client is
parked with what has arrived of it, and so it is during a PROXY header or a TLS handshake before the
first head: a slow client holds nobody up.

A request that is refused takes the road of a good one: it becomes an exchange that has failed. All
errors of an exchange end here, in `_fail`, and only there are they turned into answers.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from typing import Protocol

from atlas_pkg.errors import ClientError, Side, Stage, StreamError, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.message import Request, refused_request
from atlas_pkg.logs import Throttle
from atlas_pkg.net.certificates import Certificates
from atlas_pkg.net.copy import Copier
from atlas_pkg.net.proxy_protocol import read_header
from atlas_pkg.net.tls import TlsStream
from atlas_pkg.observing.observers import Observers
from atlas_pkg.observing.record import NO_TIMES, RAW_LINE, End, Record
from atlas_pkg.serving.client import ABORT, CLOSE, FINISH, PARK, TAKEN, Client, Next, Opening
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.exchange import AWAIT, DONE, WAIT, Exchange, Step
from atlas_pkg.serving.failures import find_failure, judge, log_failure
from atlas_pkg.serving.generation import ConfigHolder, Generation

log = logging.getLogger("atlas.connection")

# What stands for the request where none is read.
_RAW = refused_request(RAW_LINE + b"\r\n")

# What a client's first record in TLS begins with (RFC 8446 §5.1).
_TLS_HANDSHAKE = b"\x16"

_LINE_ENDS = re.compile(rb"(?:\r\n)+")


class App(Protocol):
    """Answers exchanges. Thread-safe."""

    def forward(self, exchange: Exchange) -> Step:
        """Do all that is left. Blocks. `AWAIT` where a lane is to await the upstream instead."""

    def ask(self, exchange: Exchange) -> Step:
        """Do what can be done until an upstream has to say something. Never waits."""

    def answer(self, exchange: Exchange) -> Step:
        """The upstream has said something: pass it on. Never waits."""


class HttpService:
    """Serves clients with one app. Thread-safe."""

    def __init__(
        self,
        holder: ConfigHolder,
        clients: Clients,
        app: App,
        observers: Observers,
        *,
        has_lane: bool,
        is_raw: bool,
    ) -> None:
        """The `observers` are told of every exchange that has ended, by the lane if there is one.

        `is_raw`: what clients say is not read, and the app is called as soon as they come.
        """
        self._has_lane = has_lane
        self._is_raw = is_raw
        self._holder = holder
        self._clients = clients
        self._app = app
        self._observers = observers
        self._throttle = Throttle(log)
        self._has_hinted = False

    def wait(self, exchange: Exchange, copier: Copier) -> Next:
        """Serve `exchange` from where it is, until it has ended or its lane can go on. Blocks."""
        exchange.copier = copier
        try:
            exchange.send_rest()
            if not exchange.is_complete and self._forward(exchange) is AWAIT:
                return TAKEN
        except Exception as error:  # noqa: BLE001 - it is logged or answered
            self._fail(exchange, error)
            self._send_failure(exchange)
        if exchange.record is not None:
            self.note(exchange.record)
        return exchange.following

    def read(self, client: Client) -> Exchange | Next:
        """Begin an exchange with what the client has said, or say what becomes of it.

        Never waits.
        """
        if client.is_lingering:
            return self._clients.throw_away_input(client)
        stream, generation = client.stream, self._holder.generation
        if client.generation is not generation:
            client.follow(generation)
        request: Request | None = None
        failure: ClientError | None = None
        data, judged = stream.buffered, 0
        try:
            if client.awaits is not None:
                if not self._open(client, generation):
                    return PARK
                if self._is_raw:
                    return self._begin(client, _RAW)
                stream, data = client.stream, b""
            if not data or client.head_since:
                more = stream.receive_now()
                if more is None:
                    return PARK
                if not more:
                    return CLOSE
                if not data:
                    # Most heads have come before, and come whole, with nothing behind them.
                    request = generation.parser.known_request(more)
                data, judged = data + more, len(data)
            if request is None:
                request = self._find_request(client, generation, data, judged)
                if request is None:
                    return PARK
        except StreamError as error:
            log.debug("%s: connection lost: %s", client.address, error)
            return CLOSE
        except ClientError as error:
            request, failure = refused_request(data or stream.buffered), error
        exchange = Exchange(request, client, self._clients, generation, failure)
        if self._observers.are_there:
            self._begin_record(exchange)
        client.head_since = 0.0
        client.is_sending = request.has_body
        client.requests += 1
        if client.requests >= generation.config.limits.requests_per_connection:
            exchange.following = FINISH
        return exchange

    def welcome(self, client: Client) -> Exchange | Next:
        """Let a new client wait for its first bytes; where they are not read here, begin at once.

        But not before a PROXY header or a handshake that is due. Never waits.
        """
        return PARK if client.awaits or not self._is_raw else self._begin(client, _RAW)

    def ask(self, exchange: Exchange) -> Step:
        """Have the app begin. Never waits."""
        if exchange.failure is not None:
            return self.meet(exchange, exchange.failure)
        try:
            return self._app.ask(exchange)
        except Exception as error:  # noqa: BLE001 - it is logged or answered
            return self.meet(exchange, error)

    def answer(self, exchange: Exchange) -> Step:
        """Have the app pass on what the upstream says. Never waits."""
        try:
            return self._app.answer(exchange)
        except Exception as error:  # noqa: BLE001 - it is logged or answered
            return self.meet(exchange, error)

    def note(self, record: Record) -> None:
        """An exchange has ended: have it told to the observers.

        To be called before its client is let go: whoever waits until no client is left, a drain for
        example, then finds all records noted.
        """
        self._observers.note(record)
        if not self._has_lane:
            self._observers.publish()  # nobody else would do it

    def expire(self, client: Client) -> Exchange | Next:
        """A client has waited too long: what becomes of it, or the exchange that tells it so."""
        if not client.head_since or client.is_lingering or client.awaits is Opening.HANDSHAKE:
            return CLOSE
        failure = ClientError(408, "the request head did not come in time")
        return self._begin(client, refused_request(client.stream.buffered), failure)

    def meet(self, exchange: Exchange, error: Exception) -> Step:
        """Answer an error at once, or leave it to a thread where another attempt may help.

        Never waits.
        """
        if isinstance(error, UpstreamError) and error.stage is not Stage.BODY:
            exchange.failure = error  # another attempt may help
            return WAIT
        self._fail(exchange, error)
        return WAIT if exchange.rest else DONE

    def _forward(self, exchange: Exchange) -> Step:
        """Have the app do the rest, or give it back to its lane."""
        if exchange.failure is not None and not isinstance(exchange.failure, UpstreamError):
            raise exchange.failure
        step = self._app.forward(exchange)
        if step is AWAIT and exchange.client.lane is not None:
            exchange.client.lane.take_back(exchange)
        return step

    def _begin(
        self, client: Client, request: Request, failure: ClientError | None = None
    ) -> Exchange:
        """Begin an exchange for which nothing, or not enough, was read. Never waits."""
        generation = self._holder.generation
        client.follow(generation)
        exchange = Exchange(request, client, self._clients, generation, failure)
        if self._observers.are_there:
            self._begin_record(exchange)
        return exchange

    def _open(self, client: Client, generation: Generation) -> bool:
        """Do what comes before the first request; False where the client has to say more.

        Never waits. Raises `ClientError` and `StreamError`.
        """
        if client.awaits is Opening.HEADER:
            if not self._read_proxy_header(client, generation):
                return False
            if generation.tls is not None:
                client.expect(Opening.HANDSHAKE, generation.config.timeouts.tls_handshake)
        if generation.tls is not None and not self._shake_hands(client, generation.tls):
            return False
        client.begin()
        client.follow(generation)
        return True

    def _shake_hands(self, client: Client, certificates: Certificates) -> bool:
        """Go on with the TLS handshake; whether it is complete. Otherwise as `_open`."""
        stream = client.stream
        if not isinstance(stream, TlsStream):
            first = stream.peek_now()
            if first is None:
                return False
            if not first:
                raise StreamError(Side.CLIENT, "closed its connection")
            if first != _TLS_HANDSHAKE:
                raise ClientError(400, "this port speaks TLS: https, not http")
            stream = client.stream = TlsStream(stream, certificates.front)
        try:
            return stream.shake_hands_now()
        except StreamError as error:
            self._throttle.write(
                logging.INFO, error.reason, "%s: no TLS handshake: %s", client.address, error.reason
            )
            raise

    @staticmethod
    def _read_proxy_header(client: Client, generation: Generation) -> bool:
        """Learn from the proxy in front who the client is; False where it has to say more.

        Raises `ClientError`, to a stranger whatever he says, and `StreamError`.
        """
        settings = generation.config.listen.proxy_protocol
        address = ipaddress.ip_address(client.address)
        if settings is None or not any(address in network for network in settings.from_):
            raise ClientError(403, "connections come through a proxy here")
        ends = read_header(client.stream)
        if ends is None:
            return False
        client.introduce(ends)
        return True

    def _find_request(
        self, client: Client, generation: Generation, data: bytes, judged: int
    ) -> Request | None:
        """Find a whole head in `data` and judge it; None where the client has to say more.

        Raises `ClientError` as soon as what has arrived cannot become a good head. The first
        `judged` bytes have been looked at before.
        """
        stream, config = client.stream, generation.config
        # Some old clients send an empty line after a body (RFC 9112 §2.2).
        if data.startswith(b"\r\n"):
            data = _LINE_ENDS.sub(b"", data, count=1)
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._judge_incomplete(data, judged, generation)
            stream.buffered = data
            if not data:  # it was a line end, perhaps one that came in two pieces
                client.head_since = 0.0
            elif not client.head_since:
                client.head_since = time.monotonic()
                client.deadline = client.head_since + config.timeouts.client_head
            return None
        stream.buffered = data[end:]
        if end > config.limits.head and data.find(b"\r\n") <= config.limits.request_line:
            raise ClientError(431, "the request head is too large")
        return generation.parser.parse_request(data[:end])

    @staticmethod
    def _judge_incomplete(data: bytes, judged: int, generation: Generation) -> None:
        """Raise `ClientError` where a part of a head cannot become a good one.

        What was `judged` before is not judged again, or a head byte by byte would cost its square.
        """
        limits = generation.config.limits
        if data.startswith(_TLS_HANDSHAKE):
            raise ClientError(400, "this port speaks http: TLS was sent")
        line_end = data.find(b"\r\n")
        if (line_end if line_end >= 0 else len(data)) > limits.request_line:
            raise ClientError(414, "the request line is too long")
        if len(data) > limits.head:
            raise ClientError(431, "the request head is too large")
        if syntax.BAD_LINE_END.search(data, max(0, judged - 1)):
            raise ClientError(400, "a line does not end with CRLF, or holds a NUL byte")

    def _begin_record(self, exchange: Exchange) -> None:
        record = exchange.begin_record()
        if exchange.client.head_since:
            record.began_at = exchange.client.head_since
        if exchange.failure is not None:
            record.times = NO_TIMES
        elif self._observers.to_time > 0:
            exchange.times = self._observers.follow(record)
            exchange.choices = record.choices

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        """Turn an error into its answer, or into a cut. Never waits: see `exchange.rest`."""
        failure = find_failure(error, has_started=exchange.has_started)
        if isinstance(error, UpstreamError) and exchange.lease is not None:
            error.upstream = exchange.lease.upstream.label
        exchange.let_go(judge(error))
        exchange.rest = b""
        if (record := exchange.record) is not None:
            record.end = failure.end
            record.status = record.status or failure.status
            if exchange.response_body is not None:
                record.body_out = exchange.response_body.moved
        log_failure(
            self._throttle,
            exchange.client.address,
            exchange.request.line,
            error,
            failure,
            group=exchange.group.name,
        )
        if isinstance(error, UpstreamError) and error.stage is Stage.CONNECT:
            self._hint(exchange)
        exchange.is_complete = True
        if failure.end is End.CLIENT_GONE:
            # A reset frees at once what a client that does not read has left in our kernel.
            exchange.following = ABORT
        elif exchange.has_started or self._is_raw:
            exchange.following = ABORT if exchange.ends_by_closing else CLOSE
        else:
            # What is left of a body would be read as a request.
            if failure.closes or exchange.request.has_body:
                exchange.following = FINISH
            exchange.client.is_sending |= failure.closes
            exchange.answer(failure.status, failure.reason)

    def _hint(self, exchange: Exchange) -> None:
        """Say once what keeps clients from meeting an upstream that is gone, if nothing does."""
        upstreams = exchange.group.balancer.upstreams
        is_checked = any(upstream.health_check is not None for upstream in upstreams)
        if self._has_hinted or is_checked or exchange.group.retries or len(upstreams) < 2:
            return
        self._has_hinted = True
        log.info(
            "clients see that an upstream is unreachable: with routing.retries = 1 another one is "
            "asked instead, and [health_check] takes it out of rotation"
        )

    def _send_failure(self, exchange: Exchange) -> None:
        """Send what is left of an answer to an error. Blocks."""
        try:
            exchange.send_rest()
        except StreamError:
            exchange.following = CLOSE
