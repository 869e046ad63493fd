"""Bytes both ways between two connections."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.stream import Stream, set_patience
from atlas_pkg.net.tunnel import Relay, Tunnel
from tests.toolkit import descriptors


@dataclass
class Line:
    """Client and upstream, with Atlas's ends of both connections between them."""

    client: socket.socket
    near_client: Stream
    near_upstream: Stream
    upstream: socket.socket


@pytest.fixture
def line() -> Iterator[Line]:
    client, near_client = socket.socketpair()
    near_upstream, upstream = socket.socketpair()
    for near in (near_client, near_upstream):
        set_patience(near, receive=0.02, send=0.02)
    for far in (client, upstream):
        far.settimeout(20)
    yield Line(
        client, Stream(near_client, Side.CLIENT), Stream(near_upstream, Side.UPSTREAM), upstream
    )
    for sock in (client, near_client, near_upstream, upstream):
        sock.close()


def read_all(sock: socket.socket, count: int) -> bytes:
    """Read `count` bytes, or fewer at the end of input."""
    received = bytearray()
    while len(received) < count and (piece := sock.recv(count - len(received))):
        received += piece
    return bytes(received)


@pytest.fixture(params=["epoll", "poll"])
def relay(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """One as it is here, and one as it is where there is no `epoll`."""
    if request.param == "poll":
        monkeypatch.delattr(select, "epoll", raising=False)
    relay = Relay()
    relay.start()
    yield relay
    relay.stop()


class Running:
    """A tunnel that a relay serves; `error` is what ended it, if not both sides."""

    def __init__(
        self, relay: Relay, line: Line, idle_limit: float = 30.0, half_closed_limit: float = 30.0
    ) -> None:
        self.error: StreamError | None = None
        self.has_ended = threading.Event()
        self.tunnel = Tunnel(
            line.near_client,
            line.near_upstream,
            idle_limit,
            self._note,
            half_closed_limit=half_closed_limit,
        )
        relay.add(self.tunnel)

    def _note(self, _: Tunnel, error: StreamError | None) -> None:
        self.error = error
        self.has_ended.set()

    def join(self, timeout: float = 20.0) -> None:
        assert self.has_ended.wait(timeout)


def test_a_tunnel_carries_both_ways_and_ends_with_both(relay: Relay, line: Line) -> None:
    tunnel = Running(relay, line)

    line.client.sendall(b"ping")
    assert read_all(line.upstream, 4) == b"ping"
    line.upstream.sendall(b"pong")
    assert read_all(line.client, 4) == b"pong"
    line.client.shutdown(socket.SHUT_WR)
    assert line.upstream.recv(1) == b""
    line.upstream.sendall(b"last")
    line.upstream.shutdown(socket.SHUT_WR)

    assert read_all(line.client, 99) == b"last"
    tunnel.join()
    assert tunnel.error is None


def test_what_was_read_too_early_goes_first(relay: Relay, line: Line) -> None:
    line.near_client.buffered, line.near_upstream.buffered = b"from client ", b"from upstream "
    tunnel = Running(relay, line)
    line.client.sendall(b"more")
    line.upstream.sendall(b"more")

    assert read_all(line.upstream, 16) == b"from client more"
    assert read_all(line.client, 18) == b"from upstream more"
    line.client.close()
    line.upstream.close()
    tunnel.join()


def test_sides_that_both_send_before_they_read_do_not_lock_up(relay: Relay, line: Line) -> None:
    data = bytes(range(256)) * 20_000
    tunnel = Running(relay, line)
    writers = [
        threading.Thread(target=sock.sendall, args=(data,)) for sock in (line.client, line.upstream)
    ]
    for writer in writers:
        writer.start()

    assert read_all(line.client, len(data)) == data
    assert read_all(line.upstream, len(data)) == data
    for writer in writers:
        writer.join(20)
    line.client.close()
    line.upstream.close()
    tunnel.join()


def test_bulk_and_messages_may_take_turns(relay: Relay, line: Line) -> None:
    # Large stretches go through a pipe, small ones do not, and no byte may overtake another.
    sizes = [10, 3_000_000, 5, 65_536, 1, 2_000_000, 100]
    data = [bytes([number]) * size for number, size in enumerate(sizes, start=65)]
    tunnel = Running(relay, line)
    before = descriptors()

    for piece in data:
        writing = threading.Thread(target=line.upstream.sendall, args=(piece,))
        writing.start()
        assert read_all(line.client, len(piece)) == piece
        writing.join(20)
    line.upstream.shutdown(socket.SHUT_WR)
    line.client.shutdown(socket.SHUT_WR)
    tunnel.join()

    assert tunnel.error is None
    assert descriptors() <= before


def test_a_side_that_does_not_read_leaves_the_other_way_open(relay: Relay, line: Line) -> None:
    tunnel = Running(relay, line)
    line.upstream.settimeout(0.2)
    with pytest.raises(TimeoutError):  # nobody reads it: sooner or later no more fits
        line.upstream.sendall(b"x" * 100_000_000)
    line.upstream.settimeout(20)

    for number in range(50):
        word = b"%03d" % number
        line.client.sendall(word)
        assert read_all(line.upstream, 3) == word

    line.client.close()
    line.upstream.close()
    tunnel.join()


def test_a_side_that_closes_is_heard_to_its_end(relay: Relay, line: Line) -> None:
    # It takes nothing any more while what it has sent still waits for a slow reader.
    data = bytes(range(256)) * 4_000
    tunnel = Running(relay, line)
    writing = threading.Thread(target=line.upstream.sendall, args=(data,))
    writing.start()
    assert line.client.recv(1, socket.MSG_PEEK)
    began = time.process_time()
    assert not tunnel.has_ended.wait(0.3)  # nothing fits any more
    assert read_all(line.client, 800_000) == data[:800_000]
    writing.join(20)  # what is left fits between the two
    assert not writing.is_alive()
    line.upstream.close()

    assert not tunnel.has_ended.wait(0.3)
    assert time.process_time() - began < 0.5

    assert read_all(line.client, len(data)) == data[800_000:]
    line.client.close()
    tunnel.join()
    assert tunnel.error is None


def test_a_silent_tunnel_ends_in_time(relay: Relay, line: Line) -> None:
    began = time.monotonic()
    tunnel = Running(relay, line, idle_limit=0.2)

    tunnel.join()

    assert tunnel.error is not None
    assert tunnel.error.timed_out
    assert 0.15 < time.monotonic() - began < 15


def test_a_tunnel_of_which_one_side_has_ended_has_a_limit_of_its_own(
    relay: Relay, line: Line
) -> None:
    tunnel = Running(relay, line, half_closed_limit=0.2)
    line.client.shutdown(socket.SHUT_WR)

    tunnel.join()

    assert tunnel.error is not None
    assert tunnel.error.timed_out


def test_a_busy_tunnel_is_not_idle(relay: Relay, line: Line) -> None:
    tunnel = Running(relay, line, idle_limit=2.0)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        line.client.sendall(b"!")
        assert line.upstream.recv(1) == b"!"
        tunnel.has_ended.wait(0.05)

    assert not tunnel.has_ended.is_set()
    line.client.close()
    line.upstream.close()
    tunnel.join()


def test_a_waiting_tunnel_uses_no_cpu(relay: Relay, line: Line) -> None:
    # One side has ended and the other is silent: nothing to do, and nothing to spin on.
    line.client.shutdown(socket.SHUT_WR)
    began = time.process_time()
    tunnel = Running(relay, line)

    tunnel.has_ended.wait(0.5)

    assert not tunnel.has_ended.is_set()
    assert time.process_time() - began < 0.2
    line.upstream.close()
    tunnel.join()
