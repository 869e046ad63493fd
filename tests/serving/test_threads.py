"""Threads that may wait: never more than allowed, one in reserve, and a line in order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from atlas_pkg.config.model import Limits, Timeouts
from atlas_pkg.http1.message import MessageParser
from atlas_pkg.net.copy import Copier
from atlas_pkg.serving import threads
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.threads import Threads
from tests.serving.client_support import Ends, build_exchange, build_generation
from tests.toolkit import wait_until

NAME = "waiting"


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@dataclass
class Work:
    """What the threads do: nothing, until they are let go on."""

    begun: list[Exchange] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    may_end: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    by: set[int] = field(default_factory=set)

    def __call__(self, exchange: Exchange, copier: Copier) -> None:
        assert isinstance(copier, Copier)
        with self._lock:
            self.begun.append(exchange)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.by.add(threading.get_ident())
        assert self.may_end.wait(20)
        with self._lock:
            self.at_once -= 1


Start = Callable[[int], tuple[Threads, Work]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts threads that end soon when there is nothing to do; all but one end with the test."""
    monkeypatch.setattr(threads, "RETIRE_AFTER", 0.05)
    before = len(running())
    started: list[Work] = []

    def make(most: int) -> tuple[Threads, Work]:
        work = Work()
        made = Threads(work, most)
        started.append(work)
        made.start()
        return made, work

    yield make
    for work in started:
        work.may_end.set()
    wait_until(lambda: len(running()) <= before + len(started), "threads to end")


def exchanges(ends: Ends, count: int, queue: float = 1000.0) -> list[Exchange]:
    generation = build_generation(timeouts=Timeouts(queue=queue))
    return [build_exchange(ends.make()[0], ends.clients, generation) for _ in range(count)]


def has_begun(work: Work, count: int) -> None:
    wait_until(lambda: len(work.begun) >= count, f"{count} to begin")


def test_what_waits_gets_a_thread_each(ends: Ends, start: Start) -> None:
    pool, work = start(10)

    for exchange in exchanges(ends, 5):
        pool.put(exchange)

    has_begun(work, 5)
    assert (work.at_once, len(work.by), pool.waiting) == (5, 5, 0)


def test_there_are_never_more_than_allowed(ends: Ends, start: Start) -> None:
    pool, work = start(3)
    before = len(running()) - 1

    for exchange in exchanges(ends, 50):
        pool.put(exchange)
    has_begun(work, 3)
    wait_until(lambda: pool.waiting == 47, "the others to stand in line")
    most_running = len(running()) - before
    work.may_end.set()
    has_begun(work, 50)

    assert most_running == work.most_at_once == 3
    wait_until(lambda: work.at_once == 0, "all to be done")
    assert pool.waiting == 0


def test_one_is_in_reserve_before_it_is_needed(ends: Ends, start: Start) -> None:
    pool, work = start(10)
    before = len(running())

    pool.put(exchanges(ends, 1)[0])
    has_begun(work, 1)

    wait_until(lambda: len(running()) == before + 1, "another to be started")


def test_the_first_in_line_is_served_first(ends: Ends, start: Start) -> None:
    pool, work = start(1)
    line = exchanges(ends, 20)

    for exchange in line:
        pool.put(exchange)
    work.may_end.set()
    has_begun(work, 20)

    assert work.begun == line


def test_those_that_find_nothing_to_do_end_but_for_one(ends: Ends, start: Start) -> None:
    before = len(running())
    pool, work = start(10)
    for exchange in exchanges(ends, 5):
        pool.put(exchange)
    has_begun(work, 5)

    work.may_end.set()

    wait_until(lambda: len(running()) == before + 1, "all but one to end")
    pool.put(exchanges(ends, 1)[0])  # and that one still works
    has_begun(work, 6)


def test_that_all_are_at_work_is_said_once(
    ends: Ends, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pool, work = start(2)
        for exchange in exchanges(ends, 10):
            pool.put(exchange)
        has_begun(work, 2)
        wait_until(lambda: caplog.records, "the warning")
        work.may_end.set()
        has_begun(work, 10)

    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["2 threads are at work (listen.max_threads = 2); others wait"]


def line_up(pool: Threads, *line: Exchange) -> float:
    """Put them in a line that nobody serves; returns the time."""
    for exchange in line:
        pool.put(exchange)
    return time.monotonic()


def do_nothing(_: Exchange, __: Copier) -> None:
    raise AssertionError("no thread was started")


def test_only_those_are_overdue_that_have_stood_too_long(ends: Ends) -> None:
    pool, (first, second, third) = Threads(do_nothing, 0), exchanges(ends, 3, queue=10.0)
    now = line_up(pool, first, second)
    assert list(pool.take_overdue(now)) == []

    pool._line.append((now + 5.0, third))

    assert list(pool.take_overdue(now + 11.0)) == [first, second]
    assert pool.waiting == 1
    assert list(pool.take_overdue(now + 16.0)) == [third]
    assert pool.waiting == 0


def test_one_whose_answer_has_begun_stands_on(ends: Ends) -> None:
    pool, (first, begun, last) = Threads(do_nothing, 0), exchanges(ends, 3, queue=10.0)
    begun.has_started = True
    now = line_up(pool, first, begun, last)

    assert list(pool.take_overdue(now + 11.0)) == [first, last]

    assert [exchange for _, exchange in pool._long_line] == [begun]
    assert pool.waiting == 1


def test_whoever_was_overdue_is_not_served_as_well(ends: Ends, start: Start) -> None:
    pool, work = start(1)
    busy, overdue, last = exchanges(ends, 3, queue=10.0)
    pool.put(busy)
    has_begun(work, 1)
    pool.put(overdue)
    (taken,) = pool.take_overdue(time.monotonic() + 11.0)
    pool.put(last)

    work.may_end.set()
    has_begun(work, 2)

    assert taken is overdue
    assert work.begun == [busy, last]
    wait_until(lambda: work.at_once == 0, "all to be done")


def test_taking_and_serving_at_once_serves_each_one_time(ends: Ends, start: Start) -> None:
    pool, work = start(4)
    work.may_end.set()
    line = exchanges(ends, 300, queue=0.0)
    overdue: list[Exchange] = []

    for exchange in line:
        pool.put(exchange)
        overdue += pool.take_overdue(time.monotonic() + 1.0)
    wait_until(lambda: len(work.begun) + len(overdue) >= 300, "each to be taken")

    assert sorted(map(id, work.begun + overdue)) == sorted(map(id, line))


def test_what_may_take_long_leaves_a_quarter_to_others(ends: Ends, start: Start) -> None:
    pool, work = start(8)
    line = exchanges(ends, 12)
    for exchange in line[:10]:
        exchange.has_started = True  # an answer is under way

    for exchange in line:
        pool.put(exchange)
    has_begun(work, 8)
    wait_until(lambda: pool.waiting == 4, "the others to stand in line")

    assert set(map(id, work.begun)) == set(map(id, [*line[:6], *line[10:]]))
    work.may_end.set()
    has_begun(work, 12)
    assert work.begun[8:] == line[6:10]
    assert pool.waiting == 0


def test_an_upload_of_which_all_has_arrived_is_short(ends: Ends) -> None:
    client = ends.make()[0]
    exchange = build_exchange(client, ends.clients, build_generation())
    exchange.request = MessageParser(Limits()).parse_request(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
    )

    found = []
    for arrived in (b"", b"ab", b"abc", b"abcGET"):
        client.stream.buffered = arrived
        found.append(exchange.may_take_long)

    assert found == [True, True, False, False]
