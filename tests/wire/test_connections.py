"""Wire rules that need more than a script: connections that go stale, time, and much data.

The client and the upstream are plain sockets of the test; Atlas is the program itself. Every wait
is bounded by the sockets' own timeout.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.toolkit import free_port
from tests.wire.proxies import run_atlas

PATIENCE = 10.0
OK = b"HTTP/1.1 200 OK\r\nDate: Sun, 29 Nov 2026 10:00:00 GMT\r\nContent-Length: 2\r\n\r\nok"


def _kernel_buffers() -> int:
    """The most that the kernel holds for one connection, both ends; it decides by itself."""
    sizes = [Path(f"/proc/sys/net/ipv4/tcp_{name}mem").read_text().split() for name in "rw"]
    return sum(int(size[2]) for size in sizes)


# Between the kernel's buffers of two connections and ours, a few megabytes may be under way.
MOST_IN_FLIGHT = 2 * _kernel_buffers() + 4 * 1024 * 1024


class Bench:
    """A listening upstream, Atlas before it, and clients that connect to Atlas."""

    def __init__(self, listener: socket.socket, port: int, stack: contextlib.ExitStack) -> None:
        self._listener = listener
        self._stack = stack
        self.port = port
        self.upstream_port: int = listener.getsockname()[1]

    def client(self, data: bytes = b"") -> socket.socket:
        """Connect a client and send `data`."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        self._stack.enter_context(sock)
        sock.sendall(data)
        return sock

    def accept(self, timeout: float = PATIENCE) -> socket.socket:
        """Take the next connection that Atlas opens to the upstream."""
        self._listener.settimeout(timeout)
        sock, _ = self._listener.accept()
        sock.settimeout(PATIENCE)
        return self._stack.enter_context(sock)

    def warm(self, client: socket.socket) -> socket.socket:
        """Exchange one request, so that an idle connection is kept; returns the upstream's end."""
        client.sendall(b"GET /warm HTTP/1.1\r\nHost: a\r\n\r\n")
        upstream = self.accept()
        read_until(upstream, b"\r\n\r\n")
        upstream.sendall(OK)
        read_until(client, b"ok")
        return upstream


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Read until `end` has come, or the connection ends."""
    data = b""
    while end not in data and (more := sock.recv(65536)):
        data += more
    return data


def read_all(sock: socket.socket) -> bytes:
    """Read until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(65536):
            data += more
    return data


@pytest.fixture(scope="module")
def start(lanes: int) -> Iterator[Callable[[str], Bench]]:
    """Run Atlas in a configuration, once for all tests that want it."""
    with contextlib.ExitStack() as stack:
        benches: dict[str, Bench] = {}

        def get(config: str) -> Bench:
            if config not in benches:
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                program = run_atlas(listener.getsockname()[1], config, lanes=lanes)
                port = stack.enter_context(program)
                sockets = stack.enter_context(contextlib.ExitStack())
                benches[config] = Bench(listener, port, sockets)
            return benches[config]

        yield get


@pytest.fixture
def bench(start: Callable[[str], Bench]) -> Iterator[Bench]:
    """Atlas, and a fresh set of sockets."""
    plain = start("plain")
    with contextlib.ExitStack() as stack:
        yield Bench(plain._listener, plain.port, stack)


@pytest.fixture
def quick_bench(start: Callable[[str], Bench]) -> Iterator[Bench]:
    """Atlas with short timeouts."""
    quick = start("quick")
    with contextlib.ExitStack() as stack:
        yield Bench(quick._listener, quick.port, stack)


@pytest.mark.rule(5)
def test_old_request_without_host_gets_the_upstreams(bench: Bench) -> None:
    bench.client(b"GET / HTTP/1.0\r\n\r\n")

    head = read_until(bench.accept(), b"\r\n\r\n")

    host = f"Host: 127.0.0.1:{bench.upstream_port}\r\n".encode()
    assert head == b"GET / HTTP/1.1\r\n" + host + b"\r\n"


@pytest.mark.rule(20)
def test_reading_stops_when_the_client_stops(bench: Bench) -> None:
    bench.client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    upstream = bench.accept()
    read_until(upstream, b"\r\n\r\n")

    upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    taken = write_until_it_stops(upstream)

    assert taken < MOST_IN_FLIGHT


@pytest.mark.rule(20)
@pytest.mark.parametrize("framing", [b"Content-Length: 100000000", b"Transfer-Encoding: chunked"])
def test_reading_stops_when_the_upstream_stops(bench: Bench, framing: bytes) -> None:
    client = bench.client(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
    read_until(bench.accept(), b"\r\n\r\n")

    if b"chunked" in framing:
        client.sendall(b"5F5E100\r\n")
    taken = write_until_it_stops(client)

    assert taken < MOST_IN_FLIGHT


def write_until_it_stops(sock: socket.socket) -> int:
    """Write until nothing has been taken for half a second; returns how much was."""
    sock.settimeout(0.5)
    taken = 0
    piece = b"x" * 65536
    with contextlib.suppress(TimeoutError):
        while taken < 2 * MOST_IN_FLIGHT:
            taken += sock.send(piece)
    return taken


@pytest.mark.rule(20)
def test_client_that_leaves_frees_a_thinking_upstream(bench: Bench) -> None:
    client = bench.client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    upstream = bench.accept()
    read_until(upstream, b"\r\n\r\n")

    client.close()

    assert upstream.recv(1) == b""


@pytest.mark.rule(26)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "DELETE", "PUT"])
def test_idempotent_request_on_a_stale_connection_goes_once_more(bench: Bench, method: str) -> None:
    client = bench.client()
    stale = bench.warm(client)

    client.sendall(f"{method} /again HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    read_until(stale, b"\r\n\r\n")
    stale.close()
    fresh = bench.accept()
    head = read_until(fresh, b"\r\n\r\n")
    fresh.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    assert head.startswith(f"{method} /again HTTP/1.1\r\n".encode())
    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 204 ")


@pytest.mark.rule(26)
def test_it_does_not_go_a_third_time(bench: Bench) -> None:
    client = bench.client()
    stale = bench.warm(client)

    client.sendall(b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n")
    read_until(stale, b"\r\n\r\n")
    stale.close()
    fresh = bench.accept()
    read_until(fresh, b"\r\n\r\n")
    fresh.close()

    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    with pytest.raises(TimeoutError):
        bench.accept(timeout=0.2)


@pytest.mark.rule(26)
@pytest.mark.parametrize("method", ["POST", "PATCH", "BREW"])
def test_other_request_on_a_stale_connection_is_a_failure(bench: Bench, method: str) -> None:
    client = bench.client()
    stale = bench.warm(client)

    client.sendall(f"{method} /again HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    read_until(stale, b"\r\n\r\n")
    stale.close()

    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    with pytest.raises(TimeoutError):
        bench.accept(timeout=0.2)


@pytest.mark.rule(26)
@pytest.mark.parametrize("body", [b"hello", b"h"])
def test_request_whose_body_was_taken_does_not_go_again(bench: Bench, body: bytes) -> None:
    client = bench.client()
    stale = bench.warm(client)

    client.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n" + body)
    read_until(stale, body)
    stale.close()

    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    with pytest.raises(TimeoutError):
        bench.accept(timeout=0.2)


@pytest.mark.rule(26)
def test_last_chunk_counts_as_taken(bench: Bench) -> None:
    client = bench.client()
    stale = bench.warm(client)

    client.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    read_until(stale, b"0\r\n\r\n")
    stale.close()

    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")


@pytest.mark.rule(26)
def test_request_whose_body_has_not_come_goes_once_more(bench: Bench) -> None:
    client = bench.client()
    stale = bench.warm(client)
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"

    client.sendall(head)
    read_until(stale, b"\r\n\r\n")
    stale.close()
    fresh = bench.accept()
    forwarded = read_until(fresh, b"\r\n\r\n")
    fresh.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    interim = read_until(client, b"\r\n\r\n")
    client.sendall(b"hello")
    body = read_until(fresh, b"hello")
    fresh.sendall(OK)

    assert (forwarded, body) == (head, b"hello")
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert read_until(client, b"ok") == OK


@pytest.mark.rule(26)
def test_request_does_not_go_again_after_a_byte_of_its_answer(bench: Bench) -> None:
    client = bench.client()
    stale = bench.warm(client)

    client.sendall(b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n")
    read_until(stale, b"\r\n\r\n")
    stale.sendall(b"H")
    stale.close()

    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    with pytest.raises(TimeoutError):
        bench.accept(timeout=0.2)


@pytest.mark.rule(26)
def test_request_does_not_go_again_after_an_interim_answer(bench: Bench) -> None:
    client = bench.client()
    kept = bench.warm(client)
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n"

    client.sendall(b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n")
    read_until(kept, b"\r\n\r\n")
    kept.sendall(hint)
    received = read_until(client, hint)
    kept.close()

    assert received == hint
    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    with pytest.raises(TimeoutError):
        bench.accept(timeout=0.2)


@pytest.mark.rule(26)
def test_silence_of_a_reused_connection_is_not_staleness(quick_bench: Bench) -> None:
    client = quick_bench.client()
    silent = quick_bench.warm(client)

    client.sendall(b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n")
    read_until(silent, b"\r\n\r\n")

    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 504 ")
    with pytest.raises(TimeoutError):
        quick_bench.accept(timeout=0.2)


@pytest.mark.rule(28)
@pytest.mark.parametrize("begin", [b"", b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_dripping_does_not_extend_a_heads_deadline(quick_bench: Bench, begin: bytes) -> None:
    client = quick_bench.client(begin + b"GET / HTTP/1.1\r\nX: ")
    if begin:
        upstream = quick_bench.accept()
        read_until(upstream, b"\r\n\r\n")
        upstream.sendall(OK)
        read_until(client, b"ok")

    began = time.monotonic()
    answer = b""
    client.settimeout(0.1)
    while not answer and time.monotonic() < began + PATIENCE:
        client.sendall(b"y")
        with contextlib.suppress(TimeoutError):
            answer = client.recv(4096)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < PATIENCE - 1


@pytest.mark.rule(28)
def test_dripping_does_not_extend_an_answer_heads_deadline(quick_bench: Bench) -> None:
    client = quick_bench.client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    upstream = quick_bench.accept()
    read_until(upstream, b"\r\n\r\n")

    began = time.monotonic()
    upstream.settimeout(0.1)
    with contextlib.suppress(ConnectionError):
        upstream.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while time.monotonic() < began + PATIENCE:
            upstream.sendall(b"y")
            with contextlib.suppress(TimeoutError):
                if not upstream.recv(1):
                    break

    assert time.monotonic() - began < PATIENCE - 1
    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 504 ")


@pytest.mark.rule(29)
def test_refused_connection_is_answered_at_once() -> None:
    with (
        run_atlas(free_port()) as port,
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client,
    ):
        began = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = client.recv(4096)
        took = time.monotonic() - began

    assert answer.startswith(b"HTTP/1.1 502 ")
    assert took < 4  # and not after `timeouts.connect`


@pytest.mark.rule(29)
def test_answer_reaches_a_client_that_is_still_sending() -> None:
    with (
        run_atlas(free_port()) as port,
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n")
        head = client.recv(20)
        # A connection that had been closed would answer this with a reset, and the reset
        # would take away what the client has not read yet.
        client.sendall(b"x" * 100_000)
        client.sendall(b"x" * 100_000)
        answer = head + read_all(client)

    assert answer.startswith(b"HTTP/1.1 502 ")
    assert answer.endswith(b"\n")


@pytest.mark.rule(29)
def test_thirty_bad_answers_do_not_stop_the_next_good_one(bench: Bench) -> None:
    client = bench.client()
    statuses = []

    for _ in range(30):
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
        upstream = bench.accept()
        read_until(upstream, b"\r\n\r\n")
        upstream.sendall(b"garbage\r\n\r\n")
        upstream.close()
        statuses.append(read_until(client, b"failed\n")[9:12])
    bench.warm(client)

    assert statuses == [b"502"] * 30
