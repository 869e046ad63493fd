"""The gate: who says nothing costs nothing, and who waits for an upstream does not keep others."""

from __future__ import annotations

import contextlib
import statistics
import time

from tests.fakes import named, silent
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Client, Threads, build_config, wait_until

KEPT = 30  # more than the workers that are kept, the accepting thread and all the others


def ask(atlas: Atlas, times: int) -> list[float]:
    """Ask on one connection; returns how long each answer took."""
    durations = []
    with atlas.client() as client:
        for _ in range(times):
            began = time.monotonic()
            assert client.get().status == 200
            durations.append(time.monotonic() - began)
    return durations


def test_slow_upstreams_get_threads_which_leave_again(
    upstreams: contextlib.ExitStack, start: Start, gate: dict[str, str]
) -> None:
    upstream = upstreams.enter_context(named("A", delay=0.2))
    atlas = start(build_config(upstream.table()), env=gate)

    threads = Threads()
    for _ in range(256):
        threads.start(ask, atlas, 4)
    durations = [duration for run in threads.join() for duration in run[2:]]

    # After the ramp all wait for the upstream and hardly for one another.
    assert statistics.median(durations) < 0.8
    wait_until(lambda: atlas.threads < KEPT, "the threads to leave")


def test_half_sent_heads_do_not_stop_others(
    upstreams: contextlib.ExitStack, start: Start, gate: dict[str, str]
) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table()), env=gate)

    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(atlas.client()) for _ in range(500)]
        for client in slow:
            client.send(b"GET /half HTTP/1.1\r\nHost: exa")
        durations = ask(atlas, 50)
        assert statistics.median(durations) < 0.2
        assert atlas.threads < KEPT

        for client in slow[::50]:  # and they are still welcome
            client.send(b"mple.test\r\n\r\n")
            assert client.read_answer().text == "A"


def test_idle_clients_hold_no_thread(
    upstreams: contextlib.ExitStack, start: Start, gate: dict[str, str]
) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table()), env=gate)

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(300)]
        for client in clients:
            assert client.get().text == "A"

        assert atlas.threads < KEPT
        assert upstream.connected < KEPT
        assert [client.get().text for client in clients] == ["A"] * 300


def test_at_the_limit_of_threads_requests_wait_for_one(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    stuck, quick = upstreams.enter_context(silent("stuck")), upstreams.enter_context(named("A"))
    atlas = start(
        build_config(
            stuck.table(),
            quick.table(),
            listen={"max_threads": 12},
            timeouts={"upstream_head": 1.5},
        )
    )

    with contextlib.ExitStack() as stack:
        clients: list[Client] = [stack.enter_context(atlas.client()) for _ in range(40)]
        for client in clients:
            client.send_head()
        answers = [client.read_answer() for client in clients]

        assert atlas.threads < KEPT
    assert sorted({answer.status for answer in answers}) == [200, 504]
    assert sum(answer.status == 200 for answer in answers) == 20
    atlas.wait_for("listen.max_threads")


def test_an_idle_atlas_uses_no_cpu(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table()))

    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(atlas.client()).get()
        before, began = atlas.cpu, time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1.5)

        assert atlas.cpu - before < 15  # of 150 ticks
