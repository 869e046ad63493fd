"""One thread serves many at once: whoever makes it wait must not make the others wait as well."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from tests.fakes import (
    STREAM,
    Conversation,
    Scripted,
    Upstream,
    answering,
    black_hole,
    build_answer,
    named,
)
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Client, Threads, build_config, wait_until

# The ill one takes at least twice as long, so nobody who has waited for it is served in time.
SOON = 10.0


# What makes Atlas wait in the middle of something.
ILL = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "an interim answer": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n",
    "half a small body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
    "half a chunked body": STREAM,
}


def assert_others_are_served(atlas: Atlas, good: Upstream, times: int = 40) -> None:
    """Ask on several connections at once, so that the lane takes them in the same turns."""
    before = good.requests
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(8)]
        for _ in range(times // 8):
            for client in clients:
                client.send_head()
            for client in clients:
                assert client.read_answer().text == "good"
    assert time.monotonic() - began < SOON
    assert good.requests - before == times


def table_of(*upstreams: dict[str, object]) -> str:
    """In turns, and nobody gives up during the test."""
    return build_config(
        *upstreams,
        routing={"strategy": "round_robin"},
        timeouts={"upstream_head": 30.0, "connect": 30.0},
    )


@pytest.mark.parametrize("said", ILL.values(), ids=ILL)
def test_an_upstream_that_stops_keeps_nobody_else(
    said: bytes, upstreams: contextlib.ExitStack, start: Start
) -> None:
    bad = upstreams.enter_context(Scripted("ill", (said, "wait")))
    good = upstreams.enter_context(named("good"))
    atlas = start(table_of(bad.table(weight=1), good.table()))

    with contextlib.ExitStack() as stack:
        stuck = [stack.enter_context(atlas.client()) for _ in range(4)]
        for number, client in enumerate(stuck, 1):
            client.send_head()
            wait_until(lambda number=number: bad.requests == number)  # type: ignore[misc]
            with atlas.client() as other:  # the good one's turn
                assert other.get().text == "good"
        atlas.reload(table_of(bad.table(weight=0), good.table()))
        assert_others_are_served(atlas, good)


def test_connecting_into_the_void_keeps_nobody_else(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    port = upstreams.enter_context(black_hole())
    void = {"name": "void", "address": "127.0.0.1", "port": port}
    good = upstreams.enter_context(named("good"))
    atlas = start(table_of(void))
    before = atlas.descriptors

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(atlas.client()).send_head()
        wait_until(lambda: atlas.descriptors >= before + 8, "all to be connecting")
        atlas.reload(table_of({**void, "weight": 0}, good.table()))
        assert_others_are_served(atlas, good)


def test_a_client_that_does_not_read_keeps_nobody_else(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    good = upstreams.enter_context(named("good"))
    atlas = start(table_of(good.table()))

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            deaf = socket.create_connection(("127.0.0.1", atlas.port))
            stack.enter_context(deaf)
            deaf.setblocking(False)
            # Thousands of requests, and no answer is taken: sooner or later Atlas has to wait.
            with contextlib.suppress(BlockingIOError):
                while deaf.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n" * 200):
                    pass
        time.sleep(0.2)  # let it come to that
        began = time.monotonic()
        with atlas.client() as client:
            for _ in range(20):
                assert client.get().text == "good"
        assert time.monotonic() - began < SOON


def test_a_client_that_sends_its_body_slowly_keeps_nobody_else(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    good = upstreams.enter_context(named("good"))
    atlas = start(table_of(good.table()))

    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(atlas.client()) for _ in range(4)]
        for client in slow:
            client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n12345")
        before = good.requests
        began = time.monotonic()
        with atlas.client() as other:
            for _ in range(40):
                assert other.get().text == "good"
        assert time.monotonic() - began < SOON
        assert good.requests - before >= 40
        finish_bodies(slow)


def finish_bodies(clients: list[Client]) -> None:
    for client in clients:
        client.send(b"67890")
        assert client.read_answer().status == 200


def test_asking_anew_on_a_fresh_connection_keeps_nobody_else(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    def converse(conversation: Conversation) -> None:
        conversation.read_head()
        if bad.count() == 1:
            conversation.send(build_answer(b"first"))
            conversation.read_head()  # and then it closes without a word
        else:
            conversation.wait_for_end()

    bad = upstreams.enter_context(Upstream(converse, name="bad"))
    good = upstreams.enter_context(named("good"))
    atlas = start(table_of(bad.table(), good.table(weight=0)))

    with atlas.client() as stuck:
        assert stuck.get().text == "first"
        stuck.send_head()
        wait_until(lambda: bad.requests == 2, "the fresh connection")
        atlas.reload(table_of(bad.table(weight=0), good.table()))
        assert_others_are_served(atlas, good)


def test_all_of_an_answer_that_takes_two_reads_is_seen_at_once(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    body = b"x" * 66_000  # a little more than is read at once
    upstream = upstreams.enter_context(answering(*[build_answer(body)] * 200))
    atlas = start(table_of(upstream.table()))

    began = time.monotonic()
    with atlas.client() as client:
        for _ in range(200):
            assert client.get().body == body
    assert time.monotonic() - began < SOON


def streaming_or_silent() -> Scripted:
    """An upstream that answers with a body that never ends, or to /silent not at all."""
    return Scripted("a", (STREAM, "wait"), targets={"/silent": "wait"})


@pytest.mark.parametrize("threads", [1, 2])
def test_time_limits_are_kept_where_all_threads_are_in_use(
    threads: int, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(streaming_or_silent())
    listen = {"max_threads": threads}
    atlas = start(build_config(upstream.table(), listen=listen))

    with contextlib.ExitStack() as stack:
        for _ in range(threads - 1):
            client = stack.enter_context(atlas.client())
            client.send_head()
            assert client.read_head().status == 200
        hasty = {"upstream_head": 0.5}
        atlas.reload(build_config(upstream.table(), listen=listen, timeouts=hasty))
        assert atlas.get("/silent").status == 504


def test_time_limits_are_kept_when_the_last_free_worker_is_taken(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(streaming_or_silent())
    atlas = start(build_config(upstream.table(), timeouts={"upstream_head": 0.5}))

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(9)]
        clients[0].send_head("GET", "/silent")
        for client in clients[1:]:  # eight more, for the eight workers that are kept
            client.send_head()
        assert clients[0].read_answer().status == 504


def test_a_head_that_drips_ends_in_time_whatever_its_neighbours_do(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    def drip(conversation: Conversation) -> None:
        conversation.read_head()
        conversation.send(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(1000):
            conversation.send(b"x")
            time.sleep(0.03)

    bad = upstreams.enter_context(Upstream(drip, name="bad"))
    slow = upstreams.enter_context(named("slow", delay=0.08))
    timeouts = {"upstream_head": 1.0}
    routing = {"strategy": "round_robin"}
    tables = (bad.table(), slow.table())
    atlas = start(build_config(*tables, routing=routing, timeouts=timeouts))
    threads = Threads()

    def ask_on(count: int) -> None:
        with atlas.client() as client:
            for _ in range(count):
                client.get()

    with atlas.client() as client:
        began = time.monotonic()
        client.send_head()
        tables = (bad.table(weight=0), slow.table())
        atlas.reload(build_config(*tables, routing=routing, timeouts=timeouts))
        for _ in range(12):
            threads.start(ask_on, 30)

        assert client.read_answer().status == 504
        assert time.monotonic() - began < SOON
    threads.join()
