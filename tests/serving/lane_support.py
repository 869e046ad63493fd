"""A client and an upstream with a lane between them, whose steps the test takes by hand.

A proxy and its lane are made as always, but no thread is started. So what happens is the same each
time, and what would be handed to a thread is seen.
"""

from __future__ import annotations

import socket
from pathlib import Path

from atlas_pkg.balancing.lease import Outcome
from atlas_pkg.balancing.pool import open_connection
from atlas_pkg.config.model import Config, UpstreamConfig
from atlas_pkg.errors import Side
from atlas_pkg.net.stream import Stream
from atlas_pkg.net.tunnel import Relay
from atlas_pkg.observing.observers import Observers
from atlas_pkg.proxying.forward import Proxy
from atlas_pkg.serving.client import PARK, Client
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.frontend import Frontend
from atlas_pkg.serving.generation import ConfigHolder, Generation
from atlas_pkg.serving.lane import EpollLane

GET = b"GET /1k HTTP/1.1\r\nHost: bench.test\r\n\r\n"

# Longer than anything takes; it only keeps a broken test from hanging.
PATIENCE = 20.0


class Scene:
    """A client and an upstream, with a proxy between them whose steps the test takes."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = Config(Path("atlas.toml"), upstreams=(UpstreamConfig("a", "127.0.0.1", port),))
        generation, clients = Generation(config), Clients()
        frontend = self._frontend = Frontend(
            ConfigHolder(generation),
            clients,
            Proxy(clients, Relay()),
            Observers(),
            tidy=lambda _: None,
            lanes=1,
            max_threads=1,
        )
        self.lane: EpollLane = frontend._lanes[0]
        # To open one takes waiting, and is for a thread.
        connection = open_connection(generation.group.balancer.upstreams[0], PATIENCE)
        self.lane.pool.checkin(connection, config.pool, None)
        self.upstream, _ = listener.accept()
        self.upstream.settimeout(PATIENCE)
        listener.close()
        self._clients = clients
        self._streams: list[Stream] = []
        self.client = self.connect()

    def connect(self) -> socket.socket:
        """Have one more client wait at the lane; returns its end."""
        with socket.create_server(("127.0.0.1", 0)) as entrance:
            theirs = socket.create_connection(entrance.getsockname(), PATIENCE)
            ours, _ = entrance.accept()
        ours.settimeout(None)
        self._streams.append(Stream(ours, Side.CLIENT))
        client = Client(self._streams[-1], "192.0.2.7", float("inf"), self.lane, self.lane.pool)
        self._clients.add(client)
        self._clients.put_away(client, PARK)
        return theirs

    def step(self) -> None:
        """Let the lane wait until something has come, and do all that is to be done about it."""
        assert self.lane._serve(PATIENCE)

    def ask(self, request: bytes = GET) -> None:
        """Ask as the client, and read that as the upstream."""
        self.client.sendall(request)
        self.step()
        assert self.upstream.recv(65_536).startswith(b"GET /1k HTTP/1.1\r\n")

    def answer(self, *pieces: bytes) -> None:
        """Answer as the upstream, piece by piece; each is passed on before the next comes."""
        for piece in pieces:
            self.upstream.sendall(piece)
            self.step()
            while self.lane._serve(0.0):
                pass

    def read(self, end: bytes) -> bytes:
        """Read as the client, up to `end`."""
        received = b""
        while not received.endswith(end) and (more := self.client.recv(65_536)):
            received += more
        return received

    @property
    def handed_over(self) -> int:
        """How many exchanges would now be a thread's."""
        return self._frontend._threads.standing

    def close(self) -> None:
        threads = self._frontend._threads
        under_way = [exchange for _, exchange in (*threads._line, *threads._long_line)]
        for exchange in [*under_way, *self.lane._awaited.values()]:
            exchange.let_go(Outcome.NONE)
        for end in (self.client, self.upstream, *self._streams, self.lane.pool):
            end.close()
