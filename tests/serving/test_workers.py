"""How many threads there are: few at rest, more while requests wait for slow upstreams."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from atlas_pkg.observing.observers import Observers
from atlas_pkg.serving import workers as module
from atlas_pkg.serving.clients import ClientConnection, Steps
from atlas_pkg.serving.exchange import Worker
from atlas_pkg.serving.gate import Gate
from atlas_pkg.serving.headroom import Headroom
from atlas_pkg.serving.turns import Turns
from atlas_pkg.serving.workers import KEPT_WORKERS, RETIRE_AFTER, Workers
from tests.serving.conftest import LATER, Ends
from tests.toolkit import wait_until

Serve = Callable[[ClientConnection, Worker], None]
StartWorkers = Callable[..., Workers]


@pytest.fixture
def expired() -> list[ClientConnection]:
    return []


@pytest.fixture
def start(gate: Gate, ends: Ends, expired: list[ClientConnection]) -> Iterator[StartWorkers]:
    """Start workers at the gate; they end with the test."""
    before = set(threading.enumerate())
    stack_size = threading.stack_size()
    started: list[Workers] = []

    def start_workers(
        serve: Serve,
        *,
        steps: Callable[[ClientConnection, Worker], Steps] | None = None,
        tidy: Callable[[Worker], None] = lambda _: None,
        max_threads: int = 64,
    ) -> Workers:
        def serve_in_steps(connection: ClientConnection, worker: Worker) -> Steps:
            while worker.leads:  # as all that may wait for somebody
                worker = yield None
            serve(connection, worker)

        def give_up(failed: ClientConnection) -> None:
            failed.stream.close()

        workers = Workers(
            gate,
            Turns(gate, steps or serve_in_steps, give_up, max_threads, Observers()),
            on_expired=expired.append,
            tidy=tidy,
            max_threads=max_threads,
        )
        started.append(workers)
        workers.start()
        return workers

    yield start_workers
    threading.stack_size(stack_size)
    for workers in started:
        workers.stop()
    # Workers notice within their wait at the gate; a word to each shortens it.
    deadline = time.monotonic() + 20
    while left := [thread for thread in threading.enumerate() if is_ours(thread, before)]:
        assert time.monotonic() < deadline, left
        connection, client = ends.make()
        client.send(b"!")
        gate.park(connection)
        left[0].join(0.01)


def is_ours(thread: threading.Thread, before: set[threading.Thread]) -> bool:
    return thread not in before and thread.name.startswith(("worker-", "gatekeeper"))


def count_workers() -> int:
    return sum(thread.name.startswith("worker-") for thread in threading.enumerate())


def send_words(gate: Gate, ends: Ends, count: int) -> list[ClientConnection]:
    """Park connections that have something to say."""
    pairs = [ends.make() for _ in range(count)]
    for connection, client in pairs:
        client.send(b"!")
        gate.park(connection)
    return [connection for connection, _ in pairs]


def test_every_connection_is_served(gate: Gate, ends: Ends, start: StartWorkers) -> None:
    served: list[ClientConnection] = []
    start(lambda connection, _: served.append(connection))

    sent = send_words(gate, ends, 200)

    wait_until(lambda: len(served) >= 200, "all to be served")
    assert set(served) == set(sent)


def test_slow_work_gets_more_threads_which_leave_again(
    gate: Gate, ends: Ends, start: StartWorkers
) -> None:
    is_over = threading.Event()
    serving = threading.Semaphore(0)

    def serve(*_: object) -> None:
        serving.release()
        is_over.wait(30)

    start(serve, max_threads=40)
    assert count_workers() == KEPT_WORKERS
    send_words(gate, ends, 40)

    # All forty are being served at once, though none has ended.
    assert all(serving.acquire(timeout=20) for _ in range(40))
    assert count_workers() == 40
    is_over.set()
    wait_until(lambda: count_workers() == KEPT_WORKERS, "the others to leave")


def test_one_worker_stays_free_beside_those_that_are_held(
    gate: Gate, ends: Ends, start: StartWorkers
) -> None:
    is_over = threading.Event()
    held = threading.Semaphore(0)
    passers: list[ClientConnection] = []

    def serve(connection: ClientConnection, _: Worker) -> None:
        if connection in passers:
            return
        held.release()
        is_over.wait(30)

    start(serve)
    send_words(gate, ends, 2 * KEPT_WORKERS)
    assert all(held.acquire(timeout=20) for _ in range(2 * KEPT_WORKERS))
    passer, client = ends.make()
    passers.append(passer)
    client.send(b"!")
    gate.park(passer)  # somebody comes for this one, and is free after it
    wait_until(lambda: gate.has_free_worker, "a free worker")

    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 3 * RETIRE_AFTER)

    is_left = gate.has_free_worker
    is_over.set()

    # Without it the next client waits until the gatekeeper takes the others for stuck.
    assert is_left


def test_there_are_never_more_threads_than_allowed(
    gate: Gate, ends: Ends, start: StartWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    is_over = threading.Event()
    most = 0

    def serve(*_: object) -> None:
        nonlocal most
        most = max(most, count_workers())
        is_over.wait(30)

    start(serve, max_threads=12)
    send_words(gate, ends, 50)
    wait_until(lambda: "listen.max_threads" in caplog.text, "the limit to be told")
    wait_until(lambda: most >= 12, "all the threads")
    is_over.set()
    wait_until(lambda: not gate.has_ready(), "all to be taken")

    assert most == 12


def test_one_thread_is_enough_if_no_more_are_allowed(
    gate: Gate, ends: Ends, start: StartWorkers
) -> None:
    served: list[object] = []
    start(lambda connection, _: served.append(connection), max_threads=1)

    send_words(gate, ends, 20)

    wait_until(lambda: len(served) >= 20, "all to be served")
    assert count_workers() == 1


def test_a_worker_survives_what_it_serves(
    gate: Gate, ends: Ends, start: StartWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    served: list[object] = []
    turns = itertools.count()

    def serve(connection: ClientConnection, _: Worker) -> None:
        if next(turns) < 20:
            raise RuntimeError("on purpose")
        served.append(connection)

    start(serve)
    sent = send_words(gate, ends, 40)

    wait_until(lambda: len(served) == 20, "the others to be served")
    wait_until(lambda: caplog.text.count("a worker failed") == 20, "each failure to be logged")
    wait_until(lambda: sum(connection.stream.sock.fileno() < 0 for connection in sent) == 20)
    assert count_workers() >= KEPT_WORKERS


def test_connections_whose_time_is_up_are_handed_over(
    gate: Gate, ends: Ends, start: StartWorkers, expired: list[ClientConnection]
) -> None:
    start(lambda *_: None)
    late, _ = ends.make(deadline=time.monotonic() + 0.1)
    early, _ = ends.make(deadline=LATER)
    gate.park(late)
    gate.park(early)

    wait_until(lambda: expired, "the gatekeeper")

    assert expired == [late]


def test_time_is_kept_while_all_workers_are_busy(
    gate: Gate, ends: Ends, start: StartWorkers, expired: list[ClientConnection]
) -> None:
    is_over = threading.Event()
    start(lambda *_: is_over.wait(30), max_threads=8)
    send_words(gate, ends, 20)
    late, _ = ends.make(deadline=time.monotonic() + 0.1)
    gate.park(late)

    wait_until(lambda: late in expired, "the gatekeeper")
    is_over.set()


def test_each_worker_has_tools_of_its_own(gate: Gate, ends: Ends, start: StartWorkers) -> None:
    tools: dict[str, set[int]] = {}
    is_over = threading.Event()

    def serve(_: ClientConnection, worker: Worker) -> None:
        tools.setdefault(threading.current_thread().name, set()).add(id(worker))
        is_over.wait(30)  # so that each connection needs another worker

    start(serve, max_threads=KEPT_WORKERS)
    send_words(gate, ends, KEPT_WORKERS)
    wait_until(lambda: len(tools) == KEPT_WORKERS, "all to be served")
    is_over.set()

    assert len(set.union(*tools.values())) == KEPT_WORKERS


def test_who_is_never_without_work_tidies_too(
    gate: Gate, ends: Ends, start: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIDY_INTERVAL", 0.4)
    served: list[ClientConnection] = []
    tidied: list[int] = []
    start(
        lambda connection, _: served.append(connection),
        tidy=lambda _: tidied.append(len(served)),
        max_threads=1,
    )

    for count in range(1, 201):
        send_words(gate, ends, 1)
        wait_until(lambda: len(served) == count, "it to be served")  # noqa: B023
        time.sleep(0.01)  # far less than the interval: there is always something to do
        if len(tidied) > 2:
            break
    assert len(tidied) > 2


def test_an_error_of_ours_does_not_take_the_leader_away(
    gate: Gate,
    ends: Ends,
    start: StartWorkers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    take, errors = gate.take, [RuntimeError("on purpose")]

    def fail_once(timeout: float) -> list[ClientConnection]:
        if errors:
            raise errors.pop()
        return take(timeout)

    monkeypatch.setattr(gate, "take", fail_once)
    served: list[ClientConnection] = []
    start(lambda connection, _: served.append(connection))

    sent = send_words(gate, ends, 3)

    wait_until(lambda: len(served) == 3, "all to be served")
    assert set(served) == set(sent)
    assert "on purpose" in caplog.text


def test_answers_awaited_for_long_get_a_worker_even_while_the_cpu_is_busy(
    gate: Gate, ends: Ends, start: StartWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Headroom, "has_spare", lambda _: False)
    upstream, _ = ends.make()
    (waiting, its_client), *others = [ends.make() for _ in range(KEPT_WORKERS)]
    is_over, has_worker, held = threading.Event(), threading.Event(), threading.Semaphore(0)

    def steps(connection: ClientConnection, worker: Worker) -> Steps:
        while worker.leads and connection is waiting:
            worker = yield upstream.stream
        if connection is waiting:
            has_worker.set()
        elif any(connection is other for other, _ in others):
            while worker.leads:
                worker = yield None
            held.release()
            is_over.wait(30)

    start(lambda *_: None, steps=steps)
    for connection, client in [*others, (waiting, its_client)]:
        client.send(b"!")
        gate.park(connection)
    assert all(held.acquire(timeout=20) for _ in others)
    deadline = time.monotonic() + 10
    while not has_worker.wait(0.01):
        assert time.monotonic() < deadline
        send_words(gate, ends, 1)  # so the leader comes and goes, and nobody is stuck
    is_over.set()
