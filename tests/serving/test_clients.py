"""Who is connected, and waiting for room."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from atlas_pkg.errors import Side
from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.clients import Clients


@pytest.fixture
def streams() -> Iterator[list[Stream]]:
    """Three streams; the other ends of them are in `sockets` of the same order."""
    pairs = [socket.socketpair() for _ in range(3)]
    yield [Stream(ours, Side.CLIENT) for ours, _ in pairs]
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_clients_are_counted(streams: list[Stream]) -> None:
    clients = Clients()
    for stream in streams:
        clients.add(stream)
    assert len(clients) == 3

    clients.close(streams[0])
    clients.close(streams[0])  # twice is once

    assert len(clients) == 2
    assert streams[0].sock.fileno() < 0


def test_there_is_room_below_the_limit(streams: list[Stream]) -> None:
    clients = Clients()
    clients.add(streams[0])

    assert clients.wait_until_below(2, 0)
    assert not clients.wait_until_below(1, 0)


def test_waiting_for_room_ends_when_one_leaves(streams: list[Stream]) -> None:
    clients = Clients()
    for stream in streams:
        clients.add(stream)
    seen: list[bool] = []
    waiting = threading.Thread(target=lambda: seen.append(clients.wait_until_below(3, 20)))
    began = time.monotonic()
    waiting.start()

    clients.close(streams[1])
    waiting.join(20)

    assert seen == [True]
    assert time.monotonic() - began < 10


def test_waiting_for_room_ends_in_time(streams: list[Stream]) -> None:
    clients = Clients()
    clients.add(streams[0])
    began = time.monotonic()

    assert not clients.wait_until_below(1, 0.1)
    assert 0.05 < time.monotonic() - began < 5


def test_cutting_wakes_whoever_reads_and_leaves_closing_to_the_owner(
    streams: list[Stream],
) -> None:
    clients = Clients()
    for stream in streams:
        clients.add(stream)
    received: list[bytes] = []
    reading = threading.Thread(target=lambda: received.append(streams[0].sock.recv(1)))
    reading.start()

    assert clients.cut() == 3

    reading.join(20)
    assert received == [b""]
    assert all(stream.sock.fileno() >= 0 for stream in streams)
