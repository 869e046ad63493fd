"""Opening a connection, over real sockets: address after address, within the time."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net import connect as connecting
from atlas_pkg.net.connect import ATTEMPT_DELAY, Endpoint, connect
from tests.fakes import black_hole
from tests.toolkit import descriptors, free_port

NEVER = 3600.0


def at(port: int, address: str = "127.0.0.1") -> Endpoint:
    return (socket.AF_INET, (address, port))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def alive(listener: socket.socket) -> Endpoint:
    return at(listener.getsockname()[1])


@pytest.fixture
def refusing() -> Endpoint:
    return at(free_port())


def fail(*endpoints: Endpoint, timeout: float = 5.0) -> StreamError:
    with pytest.raises(StreamError) as caught:
        connect(endpoints, timeout)
    assert caught.value.side is Side.UPSTREAM
    return caught.value


def test_bytes_pass_both_ways(listener: socket.socket, alive: Endpoint) -> None:
    stream = connect([alive], 5.0)
    accepted, _ = listener.accept()
    with accepted:
        stream.send(b"hello", 5.0)
        assert accepted.recv(10) == b"hello"
        accepted.send(b"world")
        assert stream.receive(5.0) == b"world"

    assert stream.side is Side.UPSTREAM
    assert stream._sock.getblocking()
    assert stream._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    stream.close()


def test_after_one_that_refuses_the_next_is_tried_at_once(
    alive: Endpoint, refusing: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", NEVER)

    stream = connect([refusing, refusing, alive], 20.0)

    assert stream._sock.getpeername() == alive[1]
    stream.close()


def test_after_one_that_is_silent_the_next_is_tried_soon(alive: Endpoint) -> None:
    with black_hole() as port:
        before, began = descriptors(), time.monotonic()
        stream = connect([at(port), alive], 30.0)
        duration = time.monotonic() - began

        assert ATTEMPT_DELAY <= duration < 15
        assert stream._sock.getpeername() == alive[1]
        assert len(descriptors() - before) <= 1, "the silent one was left open"
        stream.close()


def test_the_last_failure_is_told(refusing: Endpoint) -> None:
    error = fail(refusing, refusing)

    assert (error.reason, error.timed_out, error.is_own_fault) == (
        "connection refused",
        False,
        False,
    )


def test_the_time_is_for_all_addresses_together() -> None:
    with black_hole() as port:
        before, began = descriptors(), time.monotonic()
        error = fail(*[at(port)] * 20, timeout=1.0)

        assert 1 <= time.monotonic() - began < 15  # one after the other they would take 20
        assert (error.reason, error.timed_out) == ("connecting took too long", True)
        assert descriptors() <= before


def test_one_that_is_silent_is_still_waited_for_when_the_others_have_failed(
    refusing: Endpoint,
) -> None:
    with black_hole() as port:
        error = fail(at(port), refusing, timeout=0.5)

    assert error.timed_out


def test_what_this_machine_lacks_is_its_own_fault(
    alive: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)

    error = fail(alive, alive)

    assert error.is_own_fault
    assert error.reason == "too many open files"
