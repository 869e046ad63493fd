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

from atlas_pkg.errors import ClientError, ClientGone, NoUpstream, StreamError, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.message import Request
from atlas_pkg.logs import Throttle
from atlas_pkg.net.stream import RECEIVE_BYTES
from atlas_pkg.serving.clients import ClientConnection, Clients
from atlas_pkg.serving.exchange import Exchange, Worker, build_answer
from atlas_pkg.serving.gate import Gate
from atlas_pkg.serving.generation import ConfigHolder

log = logging.getLogger("atlas.connection")

App = Callable[[Exchange], None]

# After a last answer the client may still be sending. Closing at once would make its kernel drop
# the answer unread (RFC 9112 §9.6), so we read on for a moment and throw away what comes.
LINGER = 2.0
LINGER_READS = 16

_LINE_ENDS = re.compile(rb"(?:\r\n)++")


def _skip_line_ends(data: bytes) -> bytes:
    """Drop empty lines before a request: some old clients send one after a body (RFC 9112 §2.2)."""
    if not data.startswith(b"\r\n"):
        return data
    return _LINE_ENDS.sub(b"", data, count=1)


class HttpService:
    """Serves client connections with one app. Thread-safe."""

    def __init__(self, holder: ConfigHolder, gate: Gate, clients: Clients, app: App) -> None:
        self._holder = holder
        self._gate = gate
        self._clients = clients
        self._app = app
        self._throttle = Throttle(log)

    def serve(self, client: ClientConnection, worker: Worker) -> None:
        """Serve `client` until it pauses or ends; then it is parked or closed."""
        if client.is_lingering:
            self._linger(client)
            return
        stream = client.stream
        while True:
            try:
                head = self._read_head(client)
            except ClientError as error:
                self._refuse(client, error)
                return
            if head is None or not self._serve_request(client, worker, head):
                return
            if not stream.buffered and not self._gate.has_free_worker:
                self._park(client)  # others may be waiting for this worker
                return

    def expire(self, client: ClientConnection) -> None:
        """End a connection whose waiting at the gate took too long."""
        if client.has_begun_head and not client.is_lingering:
            self._refuse(client, ClientError(408, "the request head did not come in time"))
        else:
            self._clients.close(client.stream)

    def _read_head(self, client: ClientConnection) -> bytes | None:
        """Read one whole head; None when the client was parked or closed instead.

        Raises `ClientError` as soon as what has arrived cannot become a good head.
        """
        stream = client.stream
        data = _skip_line_ends(stream.buffered)
        end = data.find(b"\r\n\r\n") + 4 if data else 3
        if end < 4:
            try:
                # With part of a head here there is no waiting: the gate does that.
                more = stream.sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT if data else 0)
            except BlockingIOError:
                self._keep_incomplete(client, data)
                return None
            except OSError as error:
                log.debug("%s: connection lost: %s", client.address, error)
                more = b""
            if not more:
                self._clients.close(stream)
                return None
            data = _skip_line_ends(data + more)
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._keep_incomplete(client, data)
                return None
        stream.buffered = data[end:]
        client.has_begun_head = False
        return data[:end]

    def _keep_incomplete(self, client: ClientConnection, data: bytes) -> None:
        """Judge part of a head and let it wait at the gate for the rest; raises `ClientError`."""
        config = self._holder.current().config
        line_end = data.find(b"\r\n")
        if (line_end if line_end >= 0 else len(data)) > config.limits.request_line:
            raise ClientError(414, "the request line is too long")
        if len(data) > config.limits.head:
            raise ClientError(431, "the request head is too large")
        # What was judged before is not judged again, or a head byte by byte would cost its square.
        begin = max(0, len(client.stream.buffered) - 1) if client.has_begun_head else 0
        if syntax.BAD_LINE_END.search(data, begin):
            raise ClientError(400, "a line does not end with CRLF, or holds a NUL byte")
        client.stream.buffered = data
        if data and not client.has_begun_head:
            client.has_begun_head = True
            client.deadline = time.monotonic() + config.timeouts.client_head
        self._park(client)

    def _serve_request(self, client: ClientConnection, worker: Worker, head: bytes) -> bool:
        """Answer one request; True when the connection may carry another."""
        generation = self._holder.current()
        limits = generation.config.limits
        client.requests += 1
        if len(head) > limits.head and head.find(b"\r\n") <= limits.request_line:
            error = ClientError(431, "the request head is too large")
            self._refuse(client, error, head=head)
            return False
        try:
            request = generation.parser.parse_request(head)
        except ClientError as error:
            self._refuse(client, error, head=head)
            return False
        exchange = Exchange(
            request, client, clients=self._clients, generation=generation, worker=worker
        )
        if client.requests >= limits.requests_per_connection:
            exchange.may_persist = False
        try:
            self._app(exchange)
        except ClientError as error:
            if exchange.has_started:
                self._cut(client, exchange)
            else:
                self._refuse(client, error, exchange)
            return False
        except (ClientGone, StreamError) as error:
            log.debug("%s: client gone: %s", client.address, error)
            self._clients.close(client.stream)
            return False
        except Exception as error:  # noqa: BLE001 - it is logged or answered below
            if not self._answer_failure(client, exchange, error):
                return False
        if exchange.is_tunnel:
            return False
        if exchange.may_persist:
            return True
        self._finish(client, request)
        return False

    def _answer_failure(
        self, client: ClientConnection, exchange: Exchange, error: Exception
    ) -> bool:
        """Answer what went wrong on our side or behind it; False when the client was cut off."""
        line = exchange.request.line.decode("latin-1")
        if isinstance(error, NoUpstream):
            self._throttle.write(logging.WARNING, "none", "503 for %s: %s", line, error)
            status, reason, retry_after = 503, "no upstream is available", error.retry_after
        elif isinstance(error, UpstreamError):
            self._log_upstream_error(line, error)
            reason = "the upstream did not answer in time"
            if not error.timed_out:
                reason = "the upstream failed"
            status, retry_after = error.status, None
        else:
            log.error("500 for %s: an error in Atlas", line, exc_info=error)
            status, reason, retry_after = 500, "an error in Atlas", None
        if exchange.has_started:
            self._cut(client, exchange)
            return False
        if exchange.request.has_body:
            exchange.may_persist = False  # what is left of the body would be read as a request
        try:
            exchange.answer(status, reason, retry_after=retry_after)
        except StreamError:
            self._clients.close(client.stream)
            return False
        return True

    def _log_upstream_error(self, line: str, error: UpstreamError) -> None:
        upstream = error.upstream or "an upstream"
        cause = f"{upstream} {error}"
        self._throttle.write(
            logging.WARNING, cause, "%d for %s: upstream %s %s", error.status, line, upstream, error
        )

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
        accept = (exchange.request.fields.get(b"accept") if exchange else None) or b""
        answer = build_answer(error.status, error.reason, accept=accept)
        if (exchange.request.method + b" " if exchange else head).startswith(b"HEAD "):
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        try:
            # A few hundred bytes always fit, unless the client does not read at all.
            client.stream.send_some(answer)
        except StreamError:
            self._clients.close(client.stream)
            return
        self._begin_lingering(client)

    def _finish(self, client: ClientConnection, request: Request) -> None:
        """Close after a complete answer, gently if the client is or may be still sending."""
        if request.has_body or client.stream.buffered or client.stream.is_readable():
            self._begin_lingering(client)
        else:
            self._clients.close(client.stream)

    def _cut(self, client: ClientConnection, exchange: Exchange) -> None:
        """End an answer that cannot be completed, so that nobody takes it for complete."""
        if exchange.ends_by_closing:
            client.stream.abort()
        self._clients.close(client.stream)

    def _begin_lingering(self, client: ClientConnection) -> None:
        client.stream.end_sending()
        client.stream.buffered = b""
        client.is_lingering = True
        client.deadline = time.monotonic() + LINGER
        self._linger(client)

    def _linger(self, client: ClientConnection) -> None:
        """Throw away what the client still sends; close at its end, or wait at the gate for it."""
        try:
            for _ in range(LINGER_READS):
                if not client.stream.sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT):
                    self._clients.close(client.stream)
                    return
        except BlockingIOError:
            pass
        except OSError:
            self._clients.close(client.stream)
            return
        if time.monotonic() >= client.deadline:
            self._clients.close(client.stream)
        else:
            self._gate.park(client)

    def _park(self, client: ClientConnection) -> None:
        """Let the client wait at the gate for its next request."""
        if not client.has_begun_head:
            if self._clients.is_draining:
                self._clients.close(client.stream)
                return
            timeouts = self._holder.current().config.timeouts
            client.deadline = time.monotonic() + timeouts.client_idle
        self._gate.park(client)
