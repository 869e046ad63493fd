"""`upstreams.max_connections`: who waits, for whom, and for how long."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from tests.fakes import Scripted
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import Answer, Atlas, Threads, build_config, wait_until


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Scripted:
    return upstreams.enter_context(Scripted("A", ("hold", 200)))


@pytest.fixture
def b(upstreams: contextlib.ExitStack) -> Scripted:
    return upstreams.enter_context(Scripted("B", ("hold", 200)))


def ask(atlas: Atlas, token: str = "", **fields: str) -> Answer:
    with atlas.client() as client:
        client.send_head(X_Token=token, **fields)
        return client.read_answer()


def await_queue(atlas: Atlas, length: int) -> None:
    """Wait until so many stand in line."""
    admin = AdminClient(atlas)
    wait_until(lambda: admin.metrics()["atlas_queue"] == length, f"{length} in the queue")


def pause(seconds: float) -> None:
    """Let time pass in which something must not happen."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until)


def test_the_limit_holds_and_who_came_first_is_served_first(a: Scripted, start: Start) -> None:
    # That the order is exact is tested in `tests/balancing/test_wait_queue.py`.
    atlas = start(build_config(a.table(max_connections=2), timeouts={"queue": 20.0}, admin=ADMIN))
    threads = Threads()
    for wave, waiting in (("first", 4), ("second", 10)):
        for _ in range(6):
            threads.start(ask, atlas, wave)
        await_queue(atlas, waiting)
    wait_until(lambda: a.requests == 2, "the limit to be reached")

    for count in range(2, 12):
        assert a.requests == count
        a.let_go()
        wait_until(lambda count=count: a.requests > count)  # type: ignore[misc]
    a.let_go(2)

    assert [answer.status for answer in threads.join()] == [200] * 12
    assert a.tokens() == ["first"] * 6 + ["second"] * 6


def test_who_waits_too_long_hears_503(a: Scripted, start: Start) -> None:
    atlas = start(build_config(a.table(max_connections=1), timeouts={"queue": 0.5}))
    threads = Threads()
    threads.start(ask, atlas)
    wait_until(lambda: a.requests, "the first to arrive")

    began = time.monotonic()
    answer = ask(atlas)
    waited = time.monotonic() - began

    assert answer.status == 503
    assert int(answer.get("Retry-After")) > 0
    assert 0.4 < waited < 15
    a.let_go(9)
    assert threads.join()[0].status == 200
    assert ask(atlas).status == 200
    assert a.requests == 2


def test_another_upstream_with_room_is_taken_at_once(
    a: Scripted, b: Scripted, start: Start
) -> None:
    atlas = start(
        build_config(
            a.table(max_connections=1),
            b.table(),
            routing={"strategy": "round_robin"},
            timeouts={"queue": 20.0},
        )
    )
    threads = Threads()

    for _ in range(6):
        threads.start(ask, atlas)
    wait_until(lambda: a.requests + b.requests == 6, "all of them to arrive")

    assert (a.requests, b.requests) == (1, 5)
    a.let_go(9)
    b.let_go(9)
    assert all(answer.status == 200 for answer in threads.join())


def test_a_full_upstream_does_not_call_for_the_backup(
    a: Scripted, b: Scripted, start: Start
) -> None:
    atlas = start(
        build_config(a.table(max_connections=1), b.table(backup=True), timeouts={"queue": 0.3})
    )
    threads = Threads()
    threads.start(ask, atlas)
    wait_until(lambda: a.requests, "the first to arrive")

    assert ask(atlas).status == 503
    assert b.requests == 0
    a.let_go()
    threads.join()


def test_a_client_that_hangs_up_leaves_the_queue(a: Scripted, start: Start) -> None:
    timeouts = {"queue": 20.0, "client_gone": 0.2}
    atlas = start(build_config(a.table(max_connections=1), timeouts=timeouts, admin=ADMIN))
    threads = Threads()
    threads.start(ask, atlas, "first")
    wait_until(lambda: a.requests, "the first to arrive")
    left = [atlas.client() for _ in range(3)]
    for client in left:
        client.send_head(X_Token="left")
    await_queue(atlas, 3)
    for client in left:
        client.close()
    await_queue(atlas, 0)

    threads.start(ask, atlas, "last")
    await_queue(atlas, 1)
    a.let_go(2)

    assert [answer.status for answer in threads.join()] == [200, 200]
    assert a.tokens() == ["first", "last"]


def test_a_half_closed_client_is_served_from_the_queue(a: Scripted, start: Start) -> None:
    timeouts = {"queue": 20.0, "client_gone": 20.0}
    atlas = start(build_config(a.table(max_connections=1), timeouts=timeouts))
    threads = Threads()
    threads.start(ask, atlas, "first")
    wait_until(lambda: a.requests, "the first to arrive")
    with atlas.client() as client:  # as BusyBox's wget does
        client.send_head(X_Token="half closed")
        client.sock.shutdown(socket.SHUT_WR)
        pause(1.2)  # it is looked at twice a second
        a.let_go(2)

        assert client.read_answer().status == 200
    threads.join()


def test_a_sticky_client_waits_for_its_own(a: Scripted, b: Scripted, start: Start) -> None:
    a.script = b.script = 200
    atlas = start(
        build_config(
            a.table(max_connections=1),
            b.table(),
            routing={"strategy": "round_robin"},
            sticky={},
            timeouts={"queue": 20.0},
        )
    )
    answer = atlas.get()
    assert answer.text == "A"
    cookie = answer.get("Set-Cookie").partition(";")[0]

    a.script = ("hold", 200)
    threads = Threads()
    threads.start(lambda: ask(atlas, Cookie=cookie))
    wait_until(lambda: a.requests == 2, "the first to arrive")
    threads.start(lambda: ask(atlas, Cookie=cookie))
    pause(0.2)
    assert ask(atlas).text == "B"  # the others do not wait behind it
    assert a.requests == 2
    a.let_go(2)

    assert [answer.text for answer in threads.join()] == ["A", "A"]
    assert b.requests == 1


def test_a_higher_limit_by_a_reload_lets_those_who_wait_go_on(a: Scripted, start: Start) -> None:
    def config(limit: int) -> str:
        return build_config(a.table(max_connections=limit), timeouts={"queue": 20.0})

    atlas = start(config(1))
    threads = Threads()
    for _ in range(3):
        threads.start(ask, atlas)
    wait_until(lambda: a.requests == 1, "the first to arrive")
    pause(0.2)
    assert a.requests == 1

    atlas.reload(config(3))
    wait_until(lambda: a.requests == 3, "the others to go on")

    a.let_go(3)
    assert [answer.status for answer in threads.join()] == [200] * 3


def test_those_who_wait_go_elsewhere_when_their_upstream_is_down(
    a: Scripted, b: Scripted, start: Start
) -> None:
    b.health = 500
    b.script = 200
    check = {"path": "/health", "interval": 0.1, "rise": 1, "fall": 1}
    atlas = start(
        build_config(
            a.table(max_connections=1), b.table(), health_check=check, timeouts={"queue": 20.0}
        )
    )
    atlas.wait_for("upstream B is down")
    threads = Threads()
    for _ in range(3):
        threads.start(ask, atlas)
    wait_until(lambda: a.requests == 1, "the first to arrive")

    b.health = 200
    atlas.wait_for("upstream B is up")
    wait_until(lambda: b.requests == 2, "the others to go on")

    a.let_go()
    assert [answer.status for answer in threads.join()] == [200] * 3


def test_many_clients_on_few_slots_lose_nothing(a: Scripted, b: Scripted, start: Start) -> None:
    a.script = b.script = 200
    tables = [a.table(max_connections=2), b.table(max_connections=1)]
    atlas = start(build_config(*tables, timeouts={"queue": 20.0}))

    def load() -> int:
        with atlas.client() as client:
            return sum(client.get().status == 200 for _ in range(30))

    threads = Threads()
    for _ in range(40):
        threads.start(load)

    assert sum(threads.join()) == 1200
    assert a.requests + b.requests == 1200
