"""What a leader serves by itself, what it hands over, and what has to wait for a place."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import pytest

from atlas_pkg.observing.observers import Observers
from atlas_pkg.observing.record import Record
from atlas_pkg.serving import turns as turns_module
from atlas_pkg.serving.clients import ClientConnection, Steps
from atlas_pkg.serving.exchange import Worker
from atlas_pkg.serving.gate import PATIENCE, Gate
from atlas_pkg.serving.gates import MOST_TAKEN, PortableGate
from atlas_pkg.serving.turns import Turns
from tests.serving.conftest import Ends
from tests.toolkit import Threads, wait_until

Serve = Callable[[ClientConnection, Worker], Steps]


class Scene:
    """A gate, and one worker's turns at it that the test takes by hand."""

    def __init__(self, gate: Gate, ends: Ends) -> None:
        self.gate = gate
        self.ends = ends
        self.worker = Worker()
        self.failed: list[ClientConnection] = []
        self.events: list[str] = []
        self.observers = Observers()

    def turns(self, serve: Serve, most: int = 64) -> Turns:
        return Turns(self.gate, serve, self.failed.append, most, self.observers)

    def arrive(self, *names: str) -> list[ClientConnection]:
        """Park clients that have something to say."""
        connections = []
        for name in names:
            connection, client = self.ends.make()
            connection.address = name
            client.send(b"!")
            self.gate.park(connection)
            connections.append(connection)
        if names:
            wait_until(self.gate.has_ready, "the gate to see them")
        return connections

    def take_all(self, turns: Turns) -> None:
        while turns.take_one(self.worker, 0.05):
            pass


@pytest.fixture
def scene(gate: Gate, ends: Ends) -> Scene:
    return Scene(gate, ends)


def at_once(events: list[str]) -> Serve:
    """Serve without ever having to wait."""

    def serve(connection: ClientConnection, worker: Worker) -> Steps:
        events.append(f"{connection.address} {'led' if worker.leads else 'held'}")
        yield from ()

    return serve


def held(events: list[str]) -> Serve:
    """Serve what takes a worker that waits."""

    def serve(connection: ClientConnection, worker: Worker) -> Steps:
        events.append(f"{connection.address} begun")
        while worker.leads:
            worker = yield None
        events.append(f"{connection.address} held")

    return serve


def test_what_needs_no_waiting_is_served_by_the_leader(scene: Scene) -> None:
    turns = scene.turns(at_once(scene.events))
    scene.arrive("a", "b", "c")

    scene.take_all(turns)

    assert sorted(scene.events) == ["a led", "b led", "c led"]
    assert scene.worker.leads
    turns.leave(scene.worker)
    assert scene.gate.lead(0)


class Noting:
    """Serves clients at once, and remembers how much had been told when each of them came."""

    def __init__(self, scene: Scene) -> None:
        self.observers = scene.observers
        self.told: list[int] = []
        self.seen: list[int] = []
        self.observers.watch([lambda records: self.told.append(len(records))], None, timed=0)

    def serve(self, connection: ClientConnection, worker: Worker) -> Steps:
        self.seen.append(sum(self.told))
        while connection.address == "slow" and worker.leads:
            worker = yield None
        self.observers.note(Record(connection.address, b"", 0.0))


def begin_busy_time(scene: Scene, turns: Turns, noting: Noting) -> None:
    """Have the first exchange after a pause told, as it is at once; from here on turns count."""
    noting.observers.note(Record("192.0.2.7", b"", 0.0))
    assert turns.take_one(scene.worker, 10)
    assert noting.told == [1]
    noting.told.clear()


def test_what_has_ended_is_told_when_there_is_nothing_else_to_do(scene: Scene) -> None:
    noting = Noting(scene)
    turns = scene.turns(noting.serve)
    begin_busy_time(scene, turns, noting)
    scene.arrive(*["client"] * (MOST_TAKEN + 3))

    assert turns.take_one(scene.worker, 10)
    assert noting.told == []
    scene.take_all(turns)

    assert sum(noting.told) == MOST_TAKEN + 3
    # The portable gate may see them one after the other.
    assert noting.told == [MOST_TAKEN + 3] or isinstance(scene.gate, PortableGate)


def test_many_are_told_of_in_the_middle_of_the_work(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "MANY", 3)
    noting = Noting(scene)
    turns = scene.turns(noting.serve)
    begin_busy_time(scene, turns, noting)
    scene.arrive(*["client"] * (2 * MOST_TAKEN))

    scene.take_all(turns)

    assert sum(noting.told) == 2 * MOST_TAKEN
    assert noting.seen[-1] > 0


def test_turns_that_end_nothing_do_not_put_off_the_telling(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "MOST_TURNS", 3)
    noting = Noting(scene)
    turns = scene.turns(at_once(scene.events))
    begin_busy_time(scene, turns, noting)
    noting.observers.note(Record("192.0.2.7", b"", 0.0))

    told = []
    for number in range(4):
        scene.arrive(f"nothing of interest {number}")
        assert turns.take_one(scene.worker, 10)
        told.append(len(noting.told))

    assert told == [0, 0, 1, 1]


def test_a_lull_is_not_all_the_time_that_a_worker_was_given(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, take = scene.turns(at_once(scene.events)), scene.gate.take
    scene.observers.note(Record("192.0.2.7", b"", 0.0))

    def take_while_others_tell(timeout: float) -> list[ClientConnection]:
        scene.observers.publish()
        return take(timeout)

    monkeypatch.setattr(scene.gate, "take", take_while_others_tell)
    # Whoever hears that there was nothing to do may leave for good.
    assert turns.take_one(scene.worker, 10)
    assert not turns.take_one(scene.worker, 0.05)


def test_who_has_to_wait_tells_of_the_others_before(scene: Scene) -> None:
    noting = Noting(scene)
    turns = scene.turns(noting.serve)
    noting.observers.note(Record("192.0.2.7", b"", 0.0))
    scene.arrive("slow")

    assert turns.take_one(scene.worker, 10)

    assert noting.told == [1, 1]


def test_who_has_waited_tells_of_it_himself(scene: Scene) -> None:
    noting = Noting(scene)
    turns = scene.turns(noting.serve)
    scene.arrive("slow")

    assert turns.take_one(scene.worker, 10)

    assert noting.told == [1]


def test_the_leader_steps_down_for_what_has_to_be_waited_for(scene: Scene) -> None:
    turns = scene.turns(held(scene.events))
    scene.arrive("a")

    assert turns.take_one(scene.worker, 10)

    assert scene.events == ["a begun", "a held"]
    assert not scene.worker.leads


def test_all_are_begun_before_any_is_waited_for(scene: Scene) -> None:
    turns = scene.turns(held(scene.events))
    scene.arrive("a", "b", "c")

    scene.take_all(turns)

    # The portable gate may see them one after the other.
    assert sorted(scene.events) == [f"{x} {y}" for x in "abc" for y in ("begun", "held")]


def awaiting(scene: Scene, upstream: ClientConnection) -> Serve:
    """Serve with an answer that is awaited at the gate, without a worker if that goes."""

    def serve(connection: ClientConnection, worker: Worker) -> Steps:
        scene.events.append(f"{connection.address} asked")
        while worker.leads:
            worker = yield upstream.stream
            if worker.leads and upstream.stream.is_readable():
                break
        scene.events.append(f"{connection.address} {'led' if worker.leads else 'held'}")

    return serve


def test_an_answer_is_awaited_without_a_worker(scene: Scene) -> None:
    upstream, far = scene.ends.make()
    turns = scene.turns(awaiting(scene, upstream))
    scene.arrive("a")
    assert turns.take_one(scene.worker, 10)
    assert scene.gate.suspended() == 1

    far.send(b"!")
    assert turns.take_one(scene.worker, 10)

    assert scene.events == ["a asked", "a led"]
    assert scene.gate.suspended() == 0


def test_an_answer_that_takes_long_is_held_if_others_can_lead(scene: Scene) -> None:
    upstream, _ = scene.ends.make()
    turns = scene.turns(awaiting(scene, upstream))
    (connection,) = scene.arrive("a")
    turns.take_one(scene.worker, 10)
    connection.awaits_since -= 2 * PATIENCE

    turns.take_one(scene.worker, 0.01)
    assert turns.are_short_of_workers  # nobody else is there to lead
    assert scene.events == ["a asked"]

    other = threading.Thread(target=scene.gate.lead, args=(20,))
    other.start()
    wait_until(lambda: scene.gate.has_free_worker, "another worker")
    turns.take_one(scene.worker, 0.01)
    other.join(20)

    assert scene.events == ["a asked", "a held"]
    assert not turns.are_short_of_workers


def test_beyond_the_limit_others_wait_for_a_place(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, far = scene.ends.make()
    serve_waiting, serve_others = awaiting(scene, upstream), at_once(scene.events)
    turns = scene.turns(lambda c, w: (serve_waiting if c.address == "a" else serve_others)(c, w), 1)
    scene.arrive("a")
    turns.take_one(scene.worker, 10)
    scene.arrive("b")
    turns.take_one(scene.worker, 10)
    assert scene.events == ["a asked"]
    assert "listen.max_threads" in caplog.text

    far.send(b"!")
    scene.take_all(turns)

    assert scene.events == ["a asked", "a led", "b led"]


def test_who_has_held_one_goes_on_with_those_that_wait(scene: Scene) -> None:
    turns = scene.turns(held(scene.events), most=1)
    threads = Threads()
    scene.arrive("a", "b", "c")

    def work() -> None:
        worker = Worker()
        while turns.take_one(worker, 0.2):
            pass
        turns.leave(worker)

    for _ in range(3):
        threads.start(work)
    threads.join()

    assert sorted(event for event in scene.events if "held" in event) == [
        "a held",
        "b held",
        "c held",
    ]


def test_a_failure_costs_one_connection(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    good = at_once(scene.events)

    def serve(connection: ClientConnection, worker: Worker) -> Steps:
        if connection.address == "b":
            raise RuntimeError("on purpose")
        yield from good(connection, worker)

    turns = scene.turns(serve)
    _, bad, _ = scene.arrive("a", "b", "c")

    scene.take_all(turns)

    assert sorted(scene.events) == ["a led", "c led"]
    assert scene.failed == [bad]
    assert "a worker failed" in caplog.text


def test_the_backlog_may_be_emptied_by_somebody_else_at_any_moment(scene: Scene) -> None:
    class TakenMeanwhile(deque[ClientConnection]):
        """Empty, but whoever looked saw the last one, which another worker took then."""

        looks = 0

        def __bool__(self) -> bool:
            self.looks += 1
            return self.looks == 1

    turns = scene.turns(at_once(scene.events))
    turns._backlog = TakenMeanwhile()
    scene.arrive("a")

    scene.take_all(turns)

    assert scene.events == ["a led"]


def test_who_was_put_into_the_backlog_at_the_last_moment_is_not_forgotten(scene: Scene) -> None:
    (late,) = scene.arrive("late")
    scene.gate.lead(10)
    (taken,) = scene.gate.take(10)
    assert taken is late
    scene.gate.step_down()
    turns = scene.turns(held(scene.events), most=1)

    class LastLook(deque[ClientConnection]):
        """The leader puts somebody there just after the worker found nobody."""

        def popleft(self) -> ClientConnection:
            try:
                return super().popleft()
            except IndexError:
                if late.requests == 0:
                    late.requests = 1
                    self.append(late)
                raise

    turns._backlog = LastLook()
    scene.arrive("a")

    assert turns.take_one(scene.worker, 10)

    assert scene.events == ["a begun", "a held", "late begun", "late held"]


def test_the_last_worker_waits_itself_where_all_others_are_held(scene: Scene) -> None:
    upstream, _ = scene.ends.make()
    turns = scene.turns(awaiting(scene, upstream), most=1)
    (connection,) = scene.arrive("a")
    turns.take_one(scene.worker, 10)
    connection.awaits_since -= 2 * PATIENCE

    turns.take_one(scene.worker, 0.01)

    assert scene.events == ["a asked", "a held"]
    assert not turns.are_short_of_workers


def test_those_that_wait_too_long_get_their_turn_beside_others_that_are_slow(scene: Scene) -> None:
    upstream, _ = scene.ends.make()
    serve_awaiting, serve_held = awaiting(scene, upstream), held(scene.events)
    turns = scene.turns(lambda c, w: (serve_awaiting if c.address == "a" else serve_held)(c, w))
    (connection,) = scene.arrive("a")
    turns.take_one(scene.worker, 10)
    connection.awaits_since -= 2 * PATIENCE
    other = threading.Thread(target=scene.gate.lead, args=(20,))
    scene.arrive("b")
    other.start()
    wait_until(lambda: scene.gate.has_free_worker, "another worker")

    turns.take_one(scene.worker, 10)
    other.join(20)

    assert scene.events == ["a asked", "b begun", "b held"]
    assert scene.gate.take_handed() is connection
