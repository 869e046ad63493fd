"""Opening connections to upstreams: address after address, waiting or not, within the time."""

from __future__ import annotations

import socket
import time

import pytest
from atlas_pkg.balancing.opening import Opening, connect

from atlas_pkg.balancing.pool import UpstreamConnection
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import UpstreamConfig
from atlas_pkg.errors import Stage, UpstreamError
from tests.fakes import black_hole
from tests.toolkit import wait_until


def reachable(*ports: int) -> Upstream:
    """An upstream with several addresses, as a host name may have."""
    upstream = Upstream(UpstreamConfig("a", "name.example", 80))
    upstream.endpoints = tuple((socket.AF_INET, ("127.0.0.1", port)) for port in ports)
    return upstream


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def test_each_address_is_tried_in_turn() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = connect(reachable(closed_port(), listener.getsockname()[1]), 5.0)

        assert connection.stream.sock.getpeername() == listener.getsockname()
        connection.stream.close()


def test_a_refusal_is_told_as_such() -> None:
    with pytest.raises(UpstreamError) as caught:
        connect(reachable(closed_port(), closed_port()), 5.0)

    error = caught.value
    assert (error.stage, error.reason) == (Stage.CONNECT, "connection refused")
    assert (error.status, error.is_stale) == (502, False)


def test_a_name_without_addresses_is_told_as_such() -> None:
    with pytest.raises(UpstreamError) as caught:
        connect(reachable(), 5.0)

    assert caught.value.reason == "host name name.example is not resolved"
    assert caught.value.status == 502


def test_connecting_ends_in_time() -> None:
    began = time.monotonic()
    with black_hole() as port, pytest.raises(UpstreamError) as caught:
        connect(reachable(port, port), 0.3)

    assert caught.value.status == 504
    assert 0.2 < time.monotonic() - began < 2  # for all addresses together


def look_until_open(opening: Opening) -> UpstreamConnection:
    connection = wait_until(opening.look, "the connection")
    assert connection is not None
    return connection


def test_it_can_be_looked_at_without_waiting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = look_until_open(Opening(reachable(listener.getsockname()[1]), 5.0))
        accepted, _ = listener.accept()

        connection.stream.send(b"hello", 5.0)

        assert accepted.recv(10) == b"hello"
        assert not connection.stream.is_connecting
        assert not connection.is_reused
        accepted.close()
        connection.stream.close()


def test_looking_tries_the_next_address_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connection = look_until_open(Opening(reachable(closed_port(), closed_port(), port), 5.0))

        assert connection.stream.sock.getpeername() == listener.getsockname()
        connection.stream.close()


def test_looking_tells_a_refusal() -> None:
    with pytest.raises(UpstreamError, match="connection refused"):
        look_until_open(Opening(reachable(closed_port()), 5.0))


def test_looking_does_not_wait_but_knows_the_time() -> None:
    with black_hole() as port:
        opening = Opening(reachable(port), 0.3)
        began = time.monotonic()
        assert opening.look() is None
        assert time.monotonic() - began < 0.2

        with pytest.raises(UpstreamError) as caught:
            look_until_open(opening)

    assert caught.value.status == 504
    assert opening.stream.sock.fileno() < 0


def test_who_has_time_goes_on_from_a_look() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        opening = Opening(reachable(listener.getsockname()[1]), 5.0)
        connection = opening.look() or opening.wait()

        assert connection.stream.sock.getpeername() == listener.getsockname()
        connection.stream.close()
