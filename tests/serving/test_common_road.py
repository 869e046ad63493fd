"""The common road is short: so few calls of Python functions make a small GET on kept connections.

A proxy and its lane are made as always, but no thread is started: the test takes the lane's steps
itself, in its own thread, and counts. Counts are the same on every machine; times are not.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Self

import pytest

from atlas_pkg.balancing.pool import open_connection
from atlas_pkg.config import Config, UpstreamConfig
from atlas_pkg.errors import Side
from atlas_pkg.net.stream import Stream
from atlas_pkg.proxying.forward import Proxy
from atlas_pkg.serving.client import PARK, Client
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.frontend import Frontend
from atlas_pkg.serving.generation import ConfigHolder, Generation
from atlas_pkg.serving.lane import HAS_EPOLL, EpollLane
from tests.fakes import build_answer

pytestmark = [
    pytest.mark.skipif(not HAS_EPOLL, reason="without an epoll every client has a thread"),
    pytest.mark.no_cover,  # whoever traces calls cannot count them
]

MOST_CALLS = 30

GET = b"GET /1k HTTP/1.1\r\nHost: bench.test\r\n\r\n"
ANSWER = build_answer(b"x" * 1024, fields="Server: nginx\r\nContent-Type: text/plain\r\n")

# Longer than anything takes; it only keeps a broken test from hanging.
PATIENCE = 20.0


class Scene:
    """A client and an upstream, with a proxy between them whose steps the test takes."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = Config(Path("atlas.toml"), upstreams=(UpstreamConfig("a", "127.0.0.1", port),))
        generation, clients = Generation(config), Clients()
        frontend = Frontend(
            ConfigHolder(generation),
            clients,
            Proxy(clients),
            tidy=lambda _: None,
            lanes=1,
            max_threads=1,
        )
        self.lane: EpollLane = frontend._lanes[0]
        # To open one takes waiting, and is for a thread.
        connection = open_connection(generation.balancer.upstreams[0], PATIENCE)
        self.lane.pool.checkin(connection, config.pool, None)
        self.upstream, _ = listener.accept()
        self.upstream.settimeout(PATIENCE)
        listener.close()
        with socket.create_server(("127.0.0.1", 0)) as entrance:
            self.client = socket.create_connection(entrance.getsockname(), PATIENCE)
            ours, _ = entrance.accept()
        ours.settimeout(None)
        self._stream = Stream(ours, Side.CLIENT)
        client = Client(self._stream, "192.0.2.7", float("inf"), self.lane, self.lane.pool)
        clients.add(client)
        clients.put_away(client, PARK)

    def step(self) -> None:
        """Let the lane wait until something has come, and do all that is to be done about it."""
        assert self.lane._serve(PATIENCE)

    def exchange(self) -> None:
        """Ask as the client, answer as the upstream, and read that as the client."""
        self.client.sendall(GET)
        self.step()
        assert self.upstream.recv(65_536).startswith(b"GET /1k HTTP/1.1\r\n")
        self.upstream.sendall(ANSWER)
        self.step()
        received = b""
        while not received.endswith(b"\r\n\r\n" + b"x" * 1024):
            received += self.client.recv(65_536)

    def close(self) -> None:
        for end in (self.client, self.upstream, self._stream, self.lane.pool):
            end.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


class Calls:
    """Notes each Python function of Atlas that is called in this thread, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/atlas_pkg/" in frame.f_code.co_filename:
            place = frame.f_code.co_filename.rpartition("/atlas_pkg/")[2]
            self.names.append(f"{place} {frame.f_code.co_qualname}")


def test_a_small_get_takes_few_calls(scene: Scene) -> None:
    for _ in range(3):  # what is remembered is remembered from the second time on
        scene.exchange()

    with Calls() as calls:
        scene.exchange()

    assert len(calls.names) <= MOST_CALLS, "\n".join(["too many calls:", *calls.names])
