"""Listening sockets, and one sentence for each way in which opening one fails."""

from __future__ import annotations

import socket

import pytest

from atlas_pkg.errors import StartError
from atlas_pkg.net.listener import open_listener


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_clients_can_connect(address: str) -> None:
    with open_listener(address, 0) as listener:
        port = listener.getsockname()[1]

        with socket.create_connection(("127.0.0.1", port), 10) as client:
            accepted, _ = listener.accept()
            accepted.close()
            assert client.recv(1) == b""


def test_accepted_sockets_do_not_delay_what_they_send() -> None:
    with (
        open_listener("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname(), 10),
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_in_use_is_told() -> None:
    with open_listener("127.0.0.1", 0) as first:
        port = first.getsockname()[1]

        with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}: the port is in use"):
            open_listener("127.0.0.1", port)


def test_a_port_can_be_opened_again_at_once() -> None:
    with open_listener("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 10):
            accepted, _ = first.accept()
            accepted.close()  # our side closes first, and so waits out the connection's end

    open_listener("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("192.0.2.1", "192.0.2.1:0: this machine does not have that address"),
        ("no-such-host.invalid", "no-such-host.invalid:0: the host name is unknown"),
        ("a" * 70 + ".example", "the host name is unknown"),
    ],
)
def test_an_impossible_address_is_told(address: str, sentence: str) -> None:
    with pytest.raises(StartError) as caught:
        open_listener(address, 0)

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
