"""Both gates keep the same promises, so each test runs with both."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from atlas_pkg.errors import Side
from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.clients import ClientConnection
from atlas_pkg.serving.gate import EpollGate, Gate, PortableGate, open_gate
from tests.toolkit import wait_until

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


def test_a_connection_is_taken_when_it_says_something(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    gate.park(connection)
    assert gate.take(0.02) is None

    client.send(b"!")

    assert gate.take(10) is connection


@pytest.mark.parametrize("word", [b"!", b""], ids=["bytes", "end of input"])
def test_what_came_before_the_parking_is_not_missed(word: bytes, gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    client.send(word) if word else client.close()

    gate.park(connection)

    assert gate.take(10) is connection


def test_it_is_taken_once_until_it_is_parked_again(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    gate.park(connection)
    client.send(b"!")
    assert gate.take(10) is connection
    assert gate.take(0.02) is None  # although it is still readable

    gate.park(connection)

    assert gate.take(10) is connection


def test_each_connection_goes_to_one_worker(gate: Gate, ends: Ends) -> None:
    pairs = [ends.make() for _ in range(100)]
    taken: list[ClientConnection] = []

    def work() -> None:
        while connection := gate.take(0.3):
            taken.append(connection)

    for connection, _ in pairs:
        gate.park(connection)
    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for _, client in pairs:
        client.send(b"!")
    for worker in workers:
        worker.join(20)

    assert len(taken) == 100
    assert set(taken) == {connection for connection, _ in pairs}


def test_those_whose_time_is_up_can_be_taken(gate: Gate, ends: Ends) -> None:
    late, _ = ends.make(deadline=10.0)
    early, client = ends.make(deadline=20.0)
    gate.park(late)
    gate.park(early)

    assert gate.take_expired(9.0) == []
    assert gate.take_expired(10.0) == [late]
    assert gate.take_expired(10.0) == []

    client.send(b"!")
    assert gate.take(10) is early


def test_one_that_has_expired_is_not_taken_by_a_worker(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make(deadline=10.0)
    gate.park(connection)
    assert gate.take_expired(10.0) == [connection]

    client.send(b"!")

    assert gate.take(0.05) is None


def test_a_number_that_is_used_again_is_a_connection_of_its_own(gate: Gate, ends: Ends) -> None:
    # The system gives a new connection the lowest free number, which an expired one had.
    for _ in range(5):
        old, _ = ends.make(deadline=10.0)
        gate.park(old)
        gate.take(0.02)  # the gate knows it by now
        gate.take_expired(10.0)
        number = old.stream.sock.fileno()
        old.stream.sock.close()
        ours, client = socket.socketpair()
        if ours.fileno() != number:
            os.dup2(ours.fileno(), number)
            ours.close()
            ours = socket.socket(fileno=number)
        new = ClientConnection(Stream(ours, Side.CLIENT), "192.0.2.8", LATER)

        gate.park(new)
        client.send(b"!")

        assert gate.take(10) is new
        ours.close()
        client.close()


def test_the_idle_are_those_without_a_word(gate: Gate, ends: Ends) -> None:
    idle, _ = ends.make()
    half, _ = ends.make()
    half.has_begun_head = True
    speaking, client = ends.make()
    client.send(b"!")
    for connection in (idle, half, speaking):
        gate.park(connection)

    assert gate.take_idle() == [idle]
    assert gate.take_idle() == []
    assert gate.take(10) is speaking


def test_looking_for_the_idle_loses_nobody(gate: Gate, ends: Ends) -> None:
    # While workers take, close and park, as they do when a busy Atlas drains.
    pairs = [ends.make() for _ in range(30)]
    for connection, client in pairs:
        client.send(b"!" * 20)
        gate.park(connection)
    closed: list[ClientConnection] = []
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            connection = gate.take(0.1)
            if connection is None:
                continue
            if connection.stream.sock.recv(1):
                gate.park(connection)
            else:
                connection.stream.close()
                closed.append(connection)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _, client in pairs:
        client.shutdown(socket.SHUT_WR)
    idle: list[ClientConnection] = []
    deadline = time.monotonic() + 20
    while len(closed) < len(pairs) and time.monotonic() < deadline:
        idle += gate.take_idle()
    is_over.set()
    for worker in workers:
        worker.join(20)

    assert idle == []  # they all had something to read at any time
    assert len(closed) == len(pairs)


def test_the_crowd_is_noticed_when_the_last_worker_leaves(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    gate.park(connection)
    gate.crowded.clear()
    worker = threading.Thread(target=gate.take, args=(20,))
    worker.start()
    wait_until(lambda: gate.has_free_worker, "the worker to wait")
    assert not gate.crowded.is_set()

    client.send(b"!")
    worker.join(10)

    assert gate.crowded.is_set()
    assert not gate.has_free_worker


def test_it_tells_that_somebody_waits_for_a_worker(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    gate.park(connection)
    assert not gate.has_ready()

    client.send(b"!")
    wait_until(gate.has_ready, "the gate to see it")

    assert gate.take(10) is connection
    assert not gate.has_ready()


def test_taking_ends_in_time(gate: Gate) -> None:
    began = time.monotonic()

    assert gate.take(0.1) is None
    assert 0.05 < time.monotonic() - began < 5


@pytest.mark.parametrize(("asked", "kind"), [("", EpollGate), ("1", PortableGate)])
def test_the_portable_gate_can_be_asked_for(
    asked: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_PORTABLE", asked)

    gate = open_gate()

    assert type(gate) is kind
    gate.close()
