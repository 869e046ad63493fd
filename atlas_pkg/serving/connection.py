"""One client connection: read a head, call the app, keep alive, answer errors.

This is the HTTP/1.1 loop (RFC 9112 §9). A worker runs it for as long as the client has something to
say at once, or nobody else needs the worker; then the connection goes back to the gate. Heads
that are not complete go back there too, with what has arrived, so a slow client holds no thread.

All errors of an exchange end here, and only here are they turned into answers.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable

from atlas_pkg.errors import ClientError, ClientGone, StreamError, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.logs import Throttle
from atlas_pkg.net.stream import RECEIVE_BYTES
from atlas_pkg.observing.observers import Observers
from atlas_pkg.observing.record import NO_TIMES, End, Record
from atlas_pkg.serving.clients import ClientConnection, Clients, Steps
from atlas_pkg.serving.exchange import Exchange, Worker, build_answer
from atlas_pkg.serving.failures import explain, log_failure
from atlas_pkg.serving.farewell import Farewell
from atlas_pkg.serving.gate import Gate
from atlas_pkg.serving.generation import ConfigHolder, Generation

log = logging.getLogger("atlas.connection")

App = Callable[[Exchange], Steps]

_LINE_ENDS = re.compile(rb"(?:\r\n)++")


def _skip_line_ends(data: bytes) -> bytes:
    """Drop empty lines before a request: some old clients send one after a body (RFC 9112 §2.2)."""
    if not data.startswith(b"\r\n"):
        return data
    return _LINE_ENDS.sub(b"", data, count=1)


class HttpService:
    """Serves client connections with one app. Thread-safe."""

    def __init__(
        self, holder: ConfigHolder, gate: Gate, clients: Clients, app: App, observers: Observers
    ) -> None:
        self._holder = holder
        self._gate = gate
        self._clients = clients
        self._app = app
        self._farewell = Farewell(gate, clients)
        self._throttle = Throttle(log)
        # Told of every exchange that has ended.
        self._observers = observers

    def serve(self, client: ClientConnection, worker: Worker) -> Steps:
        """Serve `client` until it has nothing more to say; then it is parked or closed."""
        if client.is_lingering:
            self._farewell.throw_away(client)
            return
        while True:
            exchange = self._take_request(client, worker)
            if exchange is None:
                return
            failure = None
            try:
                yield from self._app(exchange)
            except Exception as error:  # noqa: BLE001 - it is logged or answered below
                failure = error
            if failure is None:
                self._observe(exchange.record)
            else:
                yield from exchange.may_wait()
                if not self._end_badly(client, exchange, failure):
                    return
            if exchange.is_tunnel or not self._goes_on(client, exchange):
                return
            worker = exchange.worker
            if not worker.leads:
                self._observers.publish()  # the next one may take long

    def expire(self, client: ClientConnection) -> None:
        """End a connection whose waiting at the gate took too long."""
        if client.head_since and not client.is_lingering:
            self._refuse(client, ClientError(408, "the request head did not come in time"))
            self._observers.publish()  # no worker is there to do it
        else:
            self._clients.close(client.stream)

    def _read_head(self, client: ClientConnection) -> bytes:
        """Read one whole head; b"" when the client was parked or closed instead.

        Raises `ClientError` as soon as what has arrived cannot become a good head.
        """
        stream = client.stream
        data = _skip_line_ends(stream.buffered)
        end = data.find(b"\r\n\r\n") + 4 if data else 3
        if end < 4:
            try:
                # There is no waiting here: the gate does that.
                more = stream.sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._keep_incomplete(client, data)
                return b""
            except OSError as error:
                log.debug("%s: connection lost: %s", client.address, error)
                more = b""
            if not more:
                self._clients.close(stream)
                return b""
            data = _skip_line_ends(data + more)
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._keep_incomplete(client, data)
                return b""
        stream.buffered = data[end:]
        return data[:end]

    def _keep_incomplete(self, client: ClientConnection, data: bytes) -> None:
        """Judge part of a head and let it wait at the gate for the rest; raises `ClientError`."""
        generation = self._holder.current()
        config = generation.config
        line_end = data.find(b"\r\n")
        if (line_end if line_end >= 0 else len(data)) > config.limits.request_line:
            raise ClientError(414, "the request line is too long")
        if len(data) > config.limits.head:
            raise ClientError(431, "the request head is too large")
        # What was judged before is not judged again, or a head byte by byte would cost its square.
        begin = max(0, len(client.stream.buffered) - 1) if client.head_since else 0
        if syntax.BAD_LINE_END.search(data, begin):
            raise ClientError(400, "a line does not end with CRLF, or holds a NUL byte")
        client.stream.buffered = data
        if not data:
            client.head_since = 0.0  # it was a line end that came in two pieces
        elif not client.head_since:
            client.head_since = time.monotonic()
            client.deadline = client.head_since + config.timeouts.client_head
        self._park(client, generation)

    def _take_request(self, client: ClientConnection, worker: Worker) -> Exchange | None:
        """Read and judge one request; None when the client was parked or closed instead."""
        head = b""
        generation = self._holder.current()
        limits = generation.config.limits
        try:
            head = self._read_head(client)
            if not head:
                return None
            client.requests += 1
            if len(head) > limits.head and head.find(b"\r\n") <= limits.request_line:
                raise ClientError(431, "the request head is too large")
            request = generation.parser.parse_request(head)
        except ClientError as error:
            self._refuse(client, error, head=head)
            if head:
                client.head_since = 0.0
            return None
        client.awaits_since, client.upstream = 0.0, None
        exchange = Exchange(
            request, client, clients=self._clients, generation=generation, worker=worker
        )
        if self._observers.are_there:
            exchange.record = record = exchange.begin_record()
            if client.head_since:
                record.began_at = client.head_since
            if self._observers.to_time > 0:
                exchange.times = self._observers.follow(record)
        client.head_since = 0.0
        if client.requests >= limits.requests_per_connection:
            exchange.may_persist = False
        return exchange

    def _goes_on(self, client: ClientConnection, exchange: Exchange) -> bool:
        """After an answer: has the client said more already? If not, it is parked or closed."""
        if not exchange.may_persist:
            self._farewell.finish(client, had_body=exchange.request.has_body)
            return False
        if client.stream.buffered:
            return True
        self._park(client, exchange.generation)
        return False

    def _end_badly(self, client: ClientConnection, exchange: Exchange, error: Exception) -> bool:
        """Answer what went wrong; False when the connection is not ours any more."""
        if not isinstance(error, (ClientGone, StreamError)):
            return self._answer_failure(client, exchange, error)
        log.debug("%s: client gone: %s", client.address, error)
        if exchange.record is not None:
            exchange.record.end = End.CLIENT_GONE
            exchange.record.status = exchange.record.status or 499
        self._observe(exchange.record)
        # A reset frees at once what a client that does not read has left in our kernel.
        client.stream.abort()
        self._farewell.close(client)
        return False

    def _answer_failure(
        self, client: ClientConnection, exchange: Exchange, error: Exception
    ) -> bool:
        """Answer what went wrong; False when the connection was closed over it."""
        failure = explain(error)
        if exchange.record is not None:
            exchange.record.end = failure.end
            if exchange.has_started and isinstance(error, UpstreamError):
                exchange.record.end = End.UPSTREAM_CUT
            exchange.record.status = exchange.record.status or failure.status
        log_failure(self._throttle, exchange.request.line, error, failure)
        if exchange.has_started:
            self._observe(exchange.record)
            self._farewell.cut(client, exchange)
            return False
        if isinstance(error, ClientError):
            self._refuse(client, error, exchange)
            return False
        if exchange.request.has_body:
            exchange.may_persist = False  # what is left of the body would be read as a request
        is_gone = False
        try:
            exchange.answer(failure.status, failure.reason, retry_after=failure.retry_after)
        except StreamError:
            is_gone = True
        self._observe(exchange.record)
        if is_gone:
            self._farewell.close(client)
        return not is_gone

    def _observe(self, record: Record | None) -> None:
        """Take note of the end of an exchange.

        Before its client is let go of: who waits for the last client finds a record of them all.
        """
        if record is not None:
            self._observers.note(record)

    def _refuse(
        self,
        client: ClientConnection,
        error: ClientError,
        exchange: Exchange | None = None,
        *,
        head: bytes = b"",
    ) -> None:
        """Answer a request that cannot be served and let go of the client.

        `head` is what there is of it where there is no exchange.
        """
        self._throttle.write(
            logging.INFO,
            f"{error}",
            "%s: refused with %d: %s",
            client.address,
            error.status,
            error.reason,
        )
        record = exchange.record if exchange else None
        if exchange is None and self._observers.are_there:
            record = Record(client.address, head[: head.find(b"\r\n")], time.monotonic())
            record.began_at = client.head_since or record.head_at
            record.status, record.end = error.status, End.REFUSED
            record.times = NO_TIMES
        accept = (exchange.request.fields.get(b"accept") if exchange else None) or b""
        answer = build_answer(error.status, error.reason, accept=accept)
        if (exchange.request.method + b" " if exchange else head).startswith(b"HEAD "):
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        if record is not None:
            record.body_out = len(answer) - answer.index(b"\r\n\r\n") - 4
        self._observe(record)
        try:
            # A few hundred bytes always fit, unless the client does not read at all.
            client.stream.send_some(answer)
        except StreamError:
            self._clients.close(client.stream)
            return
        self._farewell.linger(client)

    def _park(self, client: ClientConnection, generation: Generation) -> None:
        """Let the client wait at the gate for its next request."""
        if not client.head_since:
            if self._clients.is_draining:
                self._clients.close(client.stream)
                return
            client.deadline = time.monotonic() + generation.config.timeouts.client_idle
        self._gate.park(client)
