"""Spoiled requests through the program: the upstream never sees more requests than Atlas sends.

The upstream reads with h11. It answers every request that it finds, and notes each; where Atlas had
taken two requests for one, the upstream would find more than the client is answered for.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import HealthCheck, given, settings

from tests.http1.samples import BASES, spoiled
from tests.wire.proxies import run_atlas

PATIENCE = 10.0
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Upstream:
    """Answers requests on every connection that is made to `listener`."""

    listener: socket.socket
    seen: int = 0
    broken: list[str] = field(default_factory=list)

    def accept(self) -> None:
        """Serve until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=[sock], daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        """Answer what h11 finds on one connection."""
        connection = h11.Connection(h11.SERVER)
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                connection.receive_data(data)
                try:
                    self.answer(connection, sock)
                except h11.RemoteProtocolError as error:
                    self.broken.append(f"{error}: {data!r}")
                    return

    def answer(self, connection: h11.Connection, sock: socket.socket) -> None:
        """Answer every whole request that has arrived."""
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.ConnectionClosed):
                return
            if event is h11.PAUSED or isinstance(event, h11.EndOfMessage):
                self.seen += 1  # whole; one whose body is cut never comes to this
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
                sock.sendall(ANSWER)


@pytest.fixture(scope="module")
def way(lanes: int) -> Iterator[tuple[Upstream, int]]:
    """An upstream, and the port of Atlas before it."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        upstream = Upstream(listener)
        thread = threading.Thread(target=upstream.accept, daemon=True)
        thread.start()
        with run_atlas(listener.getsockname()[1], lanes=lanes) as port:
            yield upstream, port
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)


@pytest.mark.rule(10)
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=spoiled())
def test_spoiled_request_never_becomes_two(way: tuple[Upstream, int], data: bytes) -> None:
    upstream, port = way
    upstream.seen = 0

    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answers = b""
        with contextlib.suppress(ConnectionResetError):
            while more := client.recv(65536):
                answers += more

    assert upstream.broken == []
    assert upstream.seen == answers.count(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.rule(10)
def test_the_upstream_would_notice(way: tuple[Upstream, int]) -> None:
    upstream, _ = way
    upstream.seen = 0

    with socket.create_connection(upstream.listener.getsockname(), timeout=PATIENCE) as sock:
        sock.sendall(BASES[0] + BASES[0])
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass

    assert upstream.seen == 2
