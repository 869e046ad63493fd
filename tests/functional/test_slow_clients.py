"""Who says nothing costs nothing, and who is waited for does not keep others waiting."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time

import pytest

from tests.fakes import Scripted, named
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import DEADLINE, Atlas, Client, Threads, build_config, wait_until

FEW = 20  # more than the lane, the accepting thread and all the others together


def ask(atlas: Atlas, times: int) -> list[float]:
    """Ask on one connection; returns how long each answer took."""
    durations = []
    with atlas.client() as client:
        for _ in range(times):
            began = time.monotonic()
            assert client.get().status == 200
            durations.append(time.monotonic() - began)
    return durations


@pytest.mark.engines("lane")
def test_slow_upstreams_hold_no_thread(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("A", delay=0.2))
    atlas = start(build_config(upstream.table()))

    threads = Threads()
    for _ in range(256):
        threads.start(ask, atlas, 4)
    durations = [duration for run in threads.join() for duration in run[2:]]

    # All wait for the upstream and hardly for one another.
    assert statistics.median(durations) < 3
    wait_until(lambda: atlas.threads < FEW, "the threads that have connected to leave")


@pytest.mark.engines("lane")
def test_half_sent_heads_hold_no_thread(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table()))

    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(atlas.client()) for _ in range(500)]
        for client in slow:
            client.send(b"GET /half HTTP/1.1\r\nHost: exa")
        durations = ask(atlas, 50)
        assert statistics.median(durations) < 2
        assert atlas.threads < FEW

        for client in slow[::50]:  # and they are still welcome
            client.send(b"mple.test\r\n\r\n")
            assert client.read_answer().text == "A"


@pytest.mark.engines("lane")
def test_idle_clients_hold_no_thread(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table()))

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(300)]
        for client in clients:
            assert client.get().text == "A"

        assert atlas.threads < FEW
        assert upstream.connected < FEW
        assert [client.get().text for client in clients] == ["A"] * 300


@pytest.mark.engines("lane")
def test_at_the_limit_of_threads_work_stands_in_line_and_others_are_served(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(named("A", delay=0.1))
    atlas = start(
        build_config(
            upstream.table(),
            listen={"max_threads": 3},
            timeouts={"queue": 4.0},
            admin=ADMIN,
        )
    )
    admin = AdminClient(atlas)

    threads = Threads()
    for _ in range(8):  # so that there are connections to the upstream for whoever wants one
        threads.start(ask, atlas, 2)
    threads.join()
    with contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(atlas.client()) for _ in range(5)]
        for client in uploads:
            client.send_head("POST", Content_Length="10")
            client.send(b"half ")
        atlas.wait_for("listen.max_threads")
        assert ask(atlas, 5)  # what takes no waiting goes on
        status, reason = admin.ask("/-/ready")
        assert (status, reason.split(":")[:2]) == (503, ["not ready", " overloaded"])
        wait_until(lambda: admin.metrics()["atlas_queue"] == 3, "all to stand in line")
        refused = []
        for client in uploads:
            client.sock.settimeout(0.2)
        wait_until(lambda: refused.extend(_answered(uploads, refused)) or len(refused) == 3)
        for client in uploads:
            if client not in refused:
                client.send(b"whole")
                client.sock.settimeout(DEADLINE)
                assert client.read_answer().text == "A"
        answers = [client.read_answer() for client in refused]

    assert [answer.status for answer in answers] == [503] * 3
    assert [answer.get("Retry-After") for answer in answers] == ["5"] * 3
    assert admin.ask("/-/ready")[0] == 200


@pytest.mark.engines("lane")
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_dripping_uploads_do_not_keep_others_from_new_connections(
    framing: str, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(named("A", delay=0.1))
    atlas = start(
        build_config(
            upstream.table(),
            listen={"max_threads": 8},
            pool={"idle": 0},
            timeouts={"queue": 30.0},
        )
    )
    head = {"Content_Length": "100"} if framing == "length" else {"Transfer_Encoding": "chunked"}

    with contextlib.ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(atlas.client())
            # Each comes behind a request that needs a thread only to connect.
            client.send_head()
            client.send_head("POST", **head)
            client.send(b"1" if framing == "length" else b"5\r\n1")
        atlas.wait_for("6 threads are at work (listen.max_threads = 8)")

        durations = [duration for _ in range(4) for duration in ask(atlas, 5)]

    assert statistics.median(durations) < 5  # and none has waited for `queue`


@pytest.mark.engines("lane")
def test_a_stream_whose_client_has_caught_up_holds_no_thread(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    burst = 3000  # more than all buffers on the way hold
    chunk = b"1000\r\n" + 4096 * b"x" + b"\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    script = (head, chunk * burst, "hold", chunk + b"0\r\n\r\n")
    upstream = upstreams.enter_context(Scripted("a", script))
    # Two for answers under way. That of four streams is not over when its client has caught up.
    atlas = start(build_config(upstream.table(), listen={"max_threads": 3}))

    def catch_up(client: Client) -> None:
        body = client.read_body(client.read_head())
        received = 0
        while received < burst * len(chunk[6:-2]):
            received += len(next(body))

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(4)]
        for client in clients:
            client.send_head()
        atlas.wait_for("2 threads are at work (listen.max_threads = 3)")
        threads = Threads()
        for client in clients:
            threads.start(catch_up, client)
        threads.join()


def _answered(clients: list[Client], before: list[Client]) -> list[Client]:
    """Those to whom something has been said."""
    found = []
    for client in clients:
        with contextlib.suppress(TimeoutError):
            if client not in before and client.sock.recv(1, socket.MSG_PEEK):
                found.append(client)
    return found


@pytest.mark.engines("road")
def test_without_a_lane_a_client_has_a_thread_and_there_are_no_more_than_allowed(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table(), listen={"max_threads": 3}))
    atlas.settle()
    before = atlas.threads

    with contextlib.ExitStack() as stack:
        for _ in range(6):
            client = stack.enter_context(atlas.client())
            assert client.get().text == "A"  # the idle ones before it make room
        wait_until(lambda: atlas.threads <= before + 3, "those that had to leave to be gone")


def test_an_idle_atlas_uses_no_cpu(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table()))

    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(atlas.client()).get()
        before, began = atlas.cpu, time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1.5)

        assert atlas.cpu - before < 15  # of 150 ticks
