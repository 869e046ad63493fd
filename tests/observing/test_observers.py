"""Who is told of exchanges that have ended, when, and which of them are timed."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from atlas_pkg.observing.observers import A_FEW, ALL, Observers
from atlas_pkg.observing.record import Record
from atlas_pkg.observing.tracer import Asking, Tracer
from tests.toolkit import Threads


def build_record(line: bytes = b"GET / HTTP/1.1") -> Record:
    return Record("192.0.2.7", line, 100.0)


def follow(observers: Observers, record: Record) -> bool:
    """Do as the HTTP loop; returns whether it is timed."""
    if observers.to_time > 0:
        observers.follow(record)
    return record.times is not None


class Listener:
    """Remembers what it was told, telling by telling."""

    def __init__(self) -> None:
        self.told: list[list[bytes]] = []

    def __call__(self, records: Sequence[Record]) -> None:
        self.told.append([record.line for record in records])


def test_all_observers_are_told_of_all_that_ended_at_once_and_in_order() -> None:
    observers, one, other = Observers(), Listener(), Listener()
    observers.watch([one, other], None, timed=0)

    for line in (b"a", b"b"):
        observers.note(build_record(line))
    pending = len(observers.pending)
    observers.publish()
    observers.note(build_record(b"c"))
    observers.publish()
    observers.publish()

    assert pending == 2
    assert one.told == other.told == [[b"a", b"b"], [b"c"]]


def test_who_comes_later_is_not_told_of_what_was_before() -> None:
    observers, one, other = Observers(), Listener(), Listener()
    observers.watch([one], None, timed=0)
    observers.note(build_record(b"before"))
    observers.watch([other], None, timed=0)
    observers.note(build_record(b"after"))
    observers.publish()

    assert (one.told, other.told) == ([[b"before"]], [[b"after"]])


def test_an_observer_that_fails_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Sequence[Record]) -> None:
        raise RuntimeError("broken")

    observers, listener = Observers(), Listener()
    observers.watch([fail, listener], None, timed=0)
    observers.note(build_record(b"a"))
    observers.publish()

    assert listener.told == [[b"a"]]
    assert "1 exchanges could not be observed" in caplog.text


def test_the_end_is_when_it_is_noted() -> None:
    observers, record = Observers(), build_record()
    observers.note(record)

    assert record.ended_at > 0


def test_a_few_are_timed_between_two_tellings_and_then_a_few_more() -> None:
    observers = Observers()
    observers.watch([Listener()], None, timed=A_FEW)

    first = [follow(observers, build_record()) for _ in range(A_FEW + 2)]
    observers.note(build_record())
    observers.publish()

    assert first == [True] * A_FEW + [False] * 2
    assert follow(observers, build_record())


def test_all_or_none_are_timed_if_that_was_said() -> None:
    observers = Observers()
    observers.watch([Listener()], None, timed=ALL)
    every = [follow(observers, build_record()) for _ in range(1000)]
    observers.watch([Listener()], None, timed=0)

    assert all(every)
    assert not follow(observers, build_record())


def test_what_is_to_be_explained_is_found_beyond_the_few() -> None:
    observers, tracer = Observers(), Tracer()
    observers.watch([Listener()], tracer, timed=0)
    before = build_record()
    assert not follow(observers, before)

    tracer.ask(Asking(next_from="192.0.2.7"))
    observers.refresh()
    record, another = build_record(), build_record()
    assert follow(observers, record)
    assert follow(observers, another)  # since nobody knows before who it is

    assert (record.choices, another.choices) == ([], None)
    observers.note(record)
    observers.publish()
    assert not follow(observers, build_record())


def test_threads_that_note_and_tell_lose_nothing_and_repeat_nothing() -> None:
    observers, listener = Observers(), Listener()
    observers.watch([listener], None, timed=A_FEW)
    threads, barrier = Threads(), threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        for index in range(2000):
            record = build_record(b"%d %d" % (number, index))
            follow(observers, record)
            observers.note(record)
            if index % 3 == 0:
                observers.publish()

    for number in range(4):
        threads.start(work, number)
    threads.join()
    observers.publish()

    lines = [line for told in listener.told for line in told]
    expected = [[b"%d %d" % (number, index) for index in range(2000)] for number in range(4)]
    assert sorted(lines) == sorted(line for one in expected for line in one)
    for number in range(4):  # and each thread's own in their order
        assert [line for line in lines if line.startswith(b"%d " % number)] == expected[number]
