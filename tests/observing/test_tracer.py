"""Which exchanges are explained, and which are kept."""

from __future__ import annotations

import sys
import threading

import pytest

from atlas_pkg.observing.timeline import Timeline, build_timeline
from atlas_pkg.observing.tracer import MOST_KEPT, Asking, Tracer, merge_timelines
from tests.observing.explain_support import CHOICE, build_record
from tests.toolkit import Threads

A, B = "192.0.2.7", "192.0.2.8"


def wants(tracer: Tracer, *addresses: str) -> str:
    """A 1 for each client whose exchange is explained, a 0 for each other."""
    return "".join(str(int(tracer.wants(address))) for address in addresses)


def build_line(number: int, *, is_explained: bool = False, **more: object) -> Timeline:
    record = build_record(ended_at=100.1 + number, choices=[CHOICE] if is_explained else None)
    for name, value in more.items():
        setattr(record, name, value)
    return build_timeline(record, float(number))


# What is explained


def test_nothing_is_explained_unless_somebody_asks() -> None:
    assert wants(Tracer(), A, B, A) == "000"


@pytest.mark.parametrize(("one_in", "expected"), [(1, "111111"), (2, "101010"), (4, "100010")])
def test_one_in_so_many_is_explained_the_first_at_once(one_in: int, expected: str) -> None:
    assert wants(Tracer(one_in), *[A] * 6) == expected


def test_the_next_of_a_client_is_explained_once() -> None:
    tracer = Tracer()
    tracer.ask(Asking(next_from=B))

    assert tracer.wanted() == {"one_in": 0, "next_from": B}
    assert wants(tracer, A, A, B, B, A) == "00100"
    assert tracer.wanted() == {"one_in": 0, "next_from": ""}


def test_both_orders_go_together() -> None:
    tracer = Tracer()
    tracer.ask(Asking(one_in=3))
    tracer.ask(Asking(next_from=B))

    assert wants(tracer, A, A, B, A, A) == "10101"
    assert tracer.wanted() == {"one_in": 3, "next_from": ""}


def test_an_order_can_be_taken_back() -> None:
    tracer = Tracer(1)
    tracer.ask(Asking(next_from=B))
    tracer.ask(Asking(one_in=0))
    still = tracer.wanted()
    tracer.ask(Asking(next_from=""))

    assert still == {"one_in": 0, "next_from": B}
    assert wants(tracer, A, B) == "00"


def test_threads_together_get_exactly_one_in_so_many() -> None:
    tracer = Tracer(5)
    found: list[bool] = []
    threads = Threads()
    for _ in range(4):
        threads.start(lambda: found.extend([tracer.wants(A) for _ in range(500)]))
    threads.join()

    assert sum(found) == 400


# What is kept


def test_the_last_exchanges_are_kept_the_newest_first() -> None:
    tracer = Tracer()
    for number in range(MOST_KEPT + 10):
        tracer.note([build_record(b"GET /%d HTTP/1.1" % number, ended_at=101.0 + number)])

    lines = [item["line"] for item in tracer.timelines()]

    assert len(lines) == MOST_KEPT
    assert (lines[0], lines[-1]) == ("GET /59 HTTP/1.1", "GET /10 HTTP/1.1")


def test_explained_ones_are_kept_when_many_others_come() -> None:
    tracer = Tracer()
    tracer.note([build_record(b"GET /why HTTP/1.1", choices=[CHOICE])])
    for number in range(1000):
        tracer.note([build_record(ended_at=101.0 + number)])

    kept = tracer.timelines()

    assert len(kept) == MOST_KEPT + 1
    assert kept[-1]["line"] == "GET /why HTTP/1.1"
    assert kept[-1]["choices"]


def test_an_exchange_is_told_once() -> None:
    tracer = Tracer()
    tracer.note([build_record(choices=[CHOICE])])

    assert len(tracer.timelines()) == 1


def test_one_may_look_while_workers_are_at_work() -> None:
    tracer = Tracer()
    is_over = threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        record = build_record()
        while not is_over.is_set():
            tracer.note([record])

    threads = Threads()
    threads.start(work)
    try:
        for _ in range(200):
            assert len(tracer.timelines()) <= 1
    finally:
        is_over.set()
        sys.setswitchinterval(interval)
        threads.join()


def test_several_processes_are_merged_by_time() -> None:
    one = [build_line(number) for number in range(60, 0, -2)]
    other = [build_line(number, is_explained=number < 9) for number in range(59, 0, -2)]

    merged = merge_timelines([one, other])

    times = [item["time"] for item in merged]
    assert times == sorted(times, reverse=True)
    assert times[:MOST_KEPT] == [float(number) for number in range(60, 10, -1)]
    # Beyond the newest only those that were explained.
    assert times[MOST_KEPT:] == [7.0, 5.0, 3.0, 1.0]
