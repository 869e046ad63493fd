"""Listening sockets, and one sentence for each way in which opening one fails."""

from __future__ import annotations

import socket

import pytest

from atlas_pkg.errors import StartError
from atlas_pkg.net.listener import Inherited, open_listener, open_listeners


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


def test_what_is_inherited_is_adopted_by_its_address() -> None:
    with open_listener("127.0.0.1", 0) as one, open_listener("127.0.0.1", 0) as other:
        inherited = Inherited([("admin", one), ("listen", other)])

        assert open_listener(*other.getsockname(), use="admin", inherited=inherited) is other
        # Any port will do: that which had the same use.
        assert open_listener("127.0.0.1", 0, use="admin", inherited=inherited) is one
        with open_listener("127.0.0.1", 0, use="admin", inherited=inherited) as third:
            assert third.getsockname() not in (one.getsockname(), other.getsockname())


def test_more_sockets_than_wanted_are_all_adopted_and_missing_ones_opened() -> None:
    sockets = open_listeners("127.0.0.1", 0, 2)
    address, port = sockets[0].getsockname()

    assert open_listeners(address, port, 1, inherited=as_listen(sockets)) == sockets
    all_three = open_listeners(address, port, 3, inherited=as_listen(sockets))

    assert all_three[:2] == sockets
    assert {sock.getsockname() for sock in all_three} == {(address, port)}
    for sock in all_three:
        sock.close()


def test_what_nobody_adopts_is_closed_and_does_not_stand_in_the_way() -> None:
    sockets = open_listeners("127.0.0.1", 0, 1)
    inherited = as_listen(sockets)

    with open_listener("0.0.0.0", sockets[0].getsockname()[1], inherited=inherited):
        inherited.close()

        assert sockets[0].fileno() == -1


def as_listen(sockets: list[socket.socket]) -> Inherited:
    return Inherited([("listen", sock) for sock in sockets])
