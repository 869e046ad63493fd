"""Clients whose other end the test holds, and exchanges of theirs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_pkg.balancing.pool import Pool, UpstreamConnection
from atlas_pkg.config.model import Config, UpstreamConfig
from atlas_pkg.errors import Side
from atlas_pkg.http1.message import Request
from atlas_pkg.net.stream import Stream, set_patience
from atlas_pkg.serving.client import Client, Lane
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.generation import Generation

LATER = float("inf")


class FakeLane:
    """A lane that notes who was put there."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self.parked: list[Client] = []

    def park(self, client: Client) -> None:
        self.parked.append(client)
        self._clients.parked[client.stream.fd] = client

    def take_back(self, exchange: Exchange) -> None:  # noqa: ARG002
        raise AssertionError("nobody forwards here")

    def ignore(self, connection: UpstreamConnection) -> None:  # noqa: ARG002
        raise AssertionError("nobody forwards here")


class Ends:
    """Makes clients, and keeps the other ends of them."""

    def __init__(self) -> None:
        self.clients = Clients()
        self.lane = FakeLane(self.clients)
        self._sockets: list[socket.socket] = []
        self._peers: dict[Client, socket.socket] = {}

    def make(
        self, deadline: float = LATER, *, has_lane: bool = True
    ) -> tuple[Client, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.settimeout(20)
        client = self.wrap(ours, self.clients, deadline, self.lane if has_lane else None)
        self._sockets += [ours, theirs]
        self._peers[client] = theirs
        return client, theirs

    @staticmethod
    def wrap(
        ours: socket.socket, clients: Clients, deadline: float = LATER, lane: Lane | None = None
    ) -> Client:
        """A client on this end of a connection."""
        set_patience(ours, receive=0.02, send=0.02)
        client = Client(Stream(ours, Side.CLIENT), "192.0.2.7", 75.0, lane, Pool())
        client.deadline = deadline
        clients.add(client)
        return client

    def peer(self, client: Client) -> socket.socket:
        """The other end of a client's connection."""
        return self._peers[client]

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def build_generation(**more: Any) -> Generation:
    """What is in force with one upstream that nobody listens for, and the default for the rest."""
    config = {"upstreams": (UpstreamConfig("a", "192.0.2.1", 80),), **more}
    return Generation(Config(Path("atlas.toml"), **config))


def build_request(line: str = "GET / HTTP/1.1", *fields: str) -> Request:
    head = "\r\n".join([line, "Host: h", *fields, "", ""])
    return build_generation().parser.parse_request(head.encode())


def build_exchange(
    client: Client, clients: Clients, generation: Generation, request: Request | None = None
) -> Exchange:
    """An exchange that has just begun."""
    client.follow(generation)
    return Exchange(request or build_request(), client, clients, generation)


def is_open(client: Client) -> bool:
    return client.stream._sock.fileno() >= 0
