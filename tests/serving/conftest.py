"""Gates, and connections to park there."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from atlas_pkg.serving.gate import Gate
from atlas_pkg.serving.gates import EpollGate, PortableGate

from atlas_pkg.errors import Side
from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.clients import ClientConnection

LATER = float("inf")


class Ends:
    """Makes connections, and keeps the clients' ends of them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def make(self, deadline: float = LATER) -> tuple[ClientConnection, socket.socket]:
        ours, theirs = socket.socketpair()
        self._sockets += [ours, theirs]
        return ClientConnection(Stream(ours, Side.CLIENT), "192.0.2.7", deadline), theirs

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@pytest.fixture(params=[EpollGate, PortableGate])
def gate(request: pytest.FixtureRequest) -> Iterator[Gate]:
    gate: Gate = request.param()
    yield gate
    gate.close()
