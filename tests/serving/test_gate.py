"""Both gates keep the same promises, so each test runs with both."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from atlas_pkg.serving.gate import PATIENCE, Gate
from atlas_pkg.serving.gates import EpollGate, PortableGate, open_gate

from atlas_pkg.errors import Side
from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.clients import ClientConnection
from tests.serving.conftest import LATER, Ends
from tests.toolkit import wait_until


def take(gate: Gate, timeout: float) -> ClientConnection | None:
    """Take the first connection that is ready, as a worker that leads for a moment."""
    if not gate.lead(timeout):
        return None
    try:
        taken = gate.take(timeout)
        for other in taken[1:]:
            gate.park(other)
        return taken[0] if taken else None
    finally:
        gate.step_down()


def test_a_connection_is_taken_when_it_says_something(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    gate.park(connection)
    assert take(gate, 0.02) is None

    client.send(b"!")

    assert take(gate, 10) is connection


@pytest.mark.parametrize("word", [b"!", b""], ids=["bytes", "end of input"])
def test_what_came_before_the_parking_is_not_missed(word: bytes, gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    client.send(word) if word else client.close()

    gate.park(connection)

    assert take(gate, 10) is connection


def test_it_is_taken_once_until_it_is_parked_again(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    gate.park(connection)
    client.send(b"!")
    assert take(gate, 10) is connection
    assert take(gate, 0.02) is None  # although it is still readable

    gate.park(connection)

    assert take(gate, 10) is connection


def test_each_connection_goes_to_one_worker(gate: Gate, ends: Ends) -> None:
    pairs = [ends.make() for _ in range(100)]
    taken: list[ClientConnection] = []

    def work() -> None:
        while connection := take(gate, 0.3):
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
    assert take(gate, 10) is early


def test_one_that_has_expired_is_not_taken_by_a_worker(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make(deadline=10.0)
    gate.park(connection)
    assert gate.take_expired(10.0) == [connection]

    client.send(b"!")

    assert take(gate, 0.05) is None


def test_a_number_that_is_used_again_is_a_connection_of_its_own(gate: Gate, ends: Ends) -> None:
    # The system gives a new connection the lowest free number, which an expired one had.
    for _ in range(5):
        old, _ = ends.make(deadline=10.0)
        gate.park(old)
        take(gate, 0.02)  # the gate knows it by now
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

        assert take(gate, 10) is new
        ours.close()
        client.close()


def test_the_idle_are_those_without_a_word(gate: Gate, ends: Ends) -> None:
    idle, _ = ends.make()
    half, _ = ends.make()
    half.head_since = 1.0
    speaking, client = ends.make()
    client.send(b"!")
    for connection in (idle, half, speaking):
        gate.park(connection)

    assert gate.take_idle() == [idle]
    assert gate.take_idle() == []
    assert take(gate, 10) is speaking


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
            connection = take(gate, 0.1)
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


def test_the_crowd_is_noticed_when_nobody_is_left_to_lead(gate: Gate) -> None:
    assert gate.lead(10)
    worker = threading.Thread(target=take, args=(gate, 0.05))
    worker.start()
    wait_until(lambda: gate.has_free_worker, "another worker")
    gate.crowded.clear()

    gate.step_down()  # the other one leads now, and steps down when nothing has come

    worker.join(10)
    assert gate.crowded.is_set()
    assert not gate.has_free_worker


def test_one_worker_leads_at_a_time(gate: Gate) -> None:
    assert gate.lead(10)
    led: list[bool] = []
    other = threading.Thread(target=lambda: led.append(gate.lead(0.05)))
    other.start()
    other.join(10)

    gate.step_down()

    assert led == [False]
    assert gate.lead(0)


def test_an_answer_is_awaited_at_the_gate(gate: Gate, ends: Ends) -> None:
    connection, _ = ends.make()
    upstream, far = ends.make()
    assert gate.lead(10)

    gate.await_answer(connection, upstream.stream)
    assert gate.suspended() == 1
    assert gate.take(0.02) == []
    far.send(b"!")

    assert gate.take(10) == [connection]
    assert gate.suspended() == 0


def test_the_next_answer_on_the_same_connection_is_awaited_as_well(gate: Gate, ends: Ends) -> None:
    connection, _ = ends.make()
    upstream, far = ends.make()
    assert gate.lead(10)

    for _ in range(3):
        far.send(b"!")  # also one that is here before it is awaited
        gate.await_answer(connection, upstream.stream)
        assert gate.take(10) == [connection]
        assert upstream.stream.sock.recv(10) == b"!"


def test_what_an_upstream_says_unasked_concerns_nobody(gate: Gate, ends: Ends) -> None:
    connection, _ = ends.make()
    upstream, far = ends.make()
    assert gate.lead(10)
    gate.await_answer(connection, upstream.stream)
    far.send(b"!")
    assert gate.take(10) == [connection]

    far.send(b"!")

    assert gate.take(0.05) == []


def test_nobody_is_told_of_a_connection_that_was_released(gate: Gate, ends: Ends) -> None:
    connection, _ = ends.make()
    upstream, far = ends.make()
    assert gate.lead(10)
    gate.await_answer(connection, upstream.stream)
    assert gate.take_overdue() is connection

    gate.release(connection)
    far.send(b"!")

    assert gate.take(0.05) == []
    assert gate.suspended() == 0


def test_the_one_that_has_waited_longest_is_overdue_first(gate: Gate, ends: Ends) -> None:
    first, second = ends.make()[0], ends.make()[0]
    assert gate.lead(10)
    for connection in (first, second):
        gate.await_answer(connection, ends.make()[0].stream)
    assert not gate.has_overdue()

    first.awaits_since -= PATIENCE

    assert gate.has_overdue()
    assert gate.take_overdue() is first
    assert not gate.has_overdue()
    assert gate.take_overdue() is second
    assert gate.take_overdue() is None


def test_what_is_handed_over_is_taken_in_turn(gate: Gate, ends: Ends) -> None:
    first, second = ends.make()[0], ends.make()[0]
    assert gate.lead(10)

    gate.hand_over(first)
    gate.hand_over(second)

    assert gate.has_ready()
    assert gate.suspended() == 2
    assert gate.take_handed() is first
    assert gate.take_handed() is second
    assert gate.take_handed() is None


def test_it_tells_that_somebody_waits_for_a_worker(gate: Gate, ends: Ends) -> None:
    connection, client = ends.make()
    gate.park(connection)
    assert not gate.has_ready()

    client.send(b"!")
    wait_until(gate.has_ready, "the gate to see it")

    assert take(gate, 10) is connection
    assert not gate.has_ready()


def test_taking_ends_in_time(gate: Gate) -> None:
    began = time.monotonic()

    assert take(gate, 0.1) is None
    assert 0.05 < time.monotonic() - began < 5


@pytest.mark.parametrize(("asked", "kind"), [("", EpollGate), ("1", PortableGate)])
def test_the_portable_gate_can_be_asked_for(
    asked: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_PORTABLE", asked)

    gate = open_gate()

    assert type(gate) is kind
    gate.close()
