"""Ending with nothing lost: what SIGTERM and SIGINT promise, and how impatience is heard."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

import pytest

from tests.fakes import Conversation, Request, Scripted, Upstream, build_answer, named, silent
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Client, build_config, free_port, wait_until

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def slow(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("slow", delay=1.0))


@pytest.fixture
def held(upstreams: contextlib.ExitStack) -> Scripted:
    return upstreams.enter_context(Scripted("held", ("hold", 200)))


@pytest.fixture
def stuck(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(silent())


def begin_request(atlas: Atlas, upstream: Upstream) -> Client:
    """Send a request and return when its upstream has it."""
    before = upstream.requests
    client = atlas.client()
    client.send_head()
    wait_until(lambda: upstream.requests > before, "the request to reach its upstream")
    return client


def is_refused(atlas: Atlas) -> bool:
    try:
        atlas.client().close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_under_way_is_finished(
    number: signal.Signals, slow: Upstream, start: Start
) -> None:
    atlas = start(build_config(slow.table()))

    with begin_request(atlas, slow) as client:
        atlas.send_signal(number)
        answer = client.read_answer()

        assert (answer.status, answer.text) == (200, "slow")
        assert client.is_closed()
    assert atlas.wait() == 0
    atlas.wait_for("all requests were finished")


def test_an_answer_during_the_drain_says_that_the_connection_closes(
    held: Scripted, start: Start
) -> None:
    atlas = start(build_config(held.table()))

    with begin_request(atlas, held) as client:
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients")
        held.let_go()

        assert client.read_answer().get("Connection") == "close"


def test_idle_clients_are_closed_at_once_and_new_ones_refused(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(Scripted("A", targets={"/held": ("hold", 200)}))
    atlas = start(build_config(upstream.table()))

    with contextlib.ExitStack() as clients:
        silent_ones = [clients.enter_context(atlas.client()) for _ in range(20)]
        used = clients.enter_context(atlas.client())
        assert used.get().text == "A"
        busy = clients.enter_context(atlas.client())
        busy.send_head("GET", "/held")
        wait_until(lambda: upstream.requests == 2, "the request to reach its upstream")
        atlas.send_signal(signal.SIGTERM)

        # All this happens while the request is still under way.
        assert used.is_closed()
        assert all(client.is_closed() for client in silent_ones)
        wait_until(lambda: is_refused(atlas), "the listener to be closed")
        upstream.let_go()
        assert busy.read_answer().text == "A"
    assert atlas.wait() == 0


def test_a_second_signal_cuts(stuck: Upstream, start: Start) -> None:
    atlas = start(build_config(stuck.table()))

    with begin_request(atlas, stuck) as client:
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients")
        atlas.send_signal(signal.SIGINT)

        assert atlas.wait() == 1
        assert client.is_closed()
    assert "had to be cut" in atlas.log


def test_the_drain_ends_when_its_time_is_up(stuck: Upstream, start: Start) -> None:
    atlas = start(build_config(stuck.table(), timeouts={"drain": 0.5}))

    with begin_request(atlas, stuck):
        began = time.monotonic()
        atlas.send_signal(signal.SIGTERM)

        assert atlas.wait() == 1
    assert 0.4 < time.monotonic() - began < 15


def test_a_drain_of_0_cuts_at_once(stuck: Upstream, start: Start) -> None:
    atlas = start(build_config(stuck.table(), timeouts={"drain": 0.0}))

    with begin_request(atlas, stuck):
        atlas.send_signal(signal.SIGTERM)

        assert atlas.wait() == 1


def test_pre_drain_goes_on_accepting(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table(), timeouts={"pre_drain": 3.0}))

    atlas.send_signal(signal.SIGTERM)
    atlas.wait_for("still accepting")
    assert atlas.get().text == "A"

    assert atlas.wait() == 0
    assert "draining: no new clients" in atlas.log


def test_a_second_signal_during_pre_drain_cuts(stuck: Upstream, start: Start) -> None:
    atlas = start(build_config(stuck.table(), timeouts={"pre_drain": 30.0}))

    with begin_request(atlas, stuck):
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("still accepting")
        atlas.send_signal(signal.SIGTERM)

        assert atlas.wait() == 1


def test_two_signals_at_once_are_both_heard(start: Start) -> None:
    # The kernel may tell another thread than the main one of the second.
    for _ in range(5):
        atlas = start(build_config())
        atlas.send_signal(signal.SIGTERM)
        atlas.send_signal(signal.SIGINT)

        assert atlas.wait() in (0, 1)


def test_a_head_under_way_is_waited_for(slow: Upstream, start: Start) -> None:
    atlas = start(build_config(slow.table()))

    with atlas.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: example.test\r\n")
        wait_until(lambda: begin_and_end(atlas), "Atlas to have read what came before")
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients")
        client.send(b"\r\n")
        answer = client.read_answer()

    assert (answer.text, answer.get("Connection")) == ("slow", "close")
    assert atlas.wait() == 0


def begin_and_end(atlas: Atlas) -> bool:
    """Have another request answered: what was sent before it has been read."""
    return atlas.get().status == 200


def test_a_client_in_the_backlog_is_served(slow: Upstream, start: Start) -> None:
    atlas = start(build_config(slow.table(), listen={"max_connections": 1}))

    with begin_request(atlas, slow) as first, atlas.client() as waiting:
        waiting.send_head()  # nobody accepts it while the first one is served
        atlas.send_signal(signal.SIGTERM)

        assert first.read_answer().text == "slow"
        assert waiting.read_answer().text == "slow"
    assert atlas.wait() == 0


def test_an_upload_under_way_is_finished(upstreams: contextlib.ExitStack, start: Start) -> None:
    def answer(conversation: Conversation, request: Request) -> None:
        conversation.send(build_answer(b"".join(conversation.read_body(request))))

    upstream = upstreams.enter_context(Scripted("a", ("unread", answer)))
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client:
        client.send_head("POST", Content_Length="10")
        client.send(b"01234")
        wait_until(lambda: upstream.requests, "the head to arrive")
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients")
        client.send(b"56789")

        assert client.read_answer().text == "0123456789"
    assert atlas.wait() == 0


def test_a_busy_atlas_drains_without_losing_an_answer(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    # Clients come, go and idle at the very moment of the drain, all in one process.
    upstream = upstreams.enter_context(named("A", delay=0.02))
    atlas = start(build_config(upstream.table()))

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(60)]
        for client in clients:
            client.send_head()
        atlas.send_signal(signal.SIGTERM)

        # All had been sent before the signal, so all are answered.
        assert [client.read_answer().text for client in clients] == ["A"] * 60
    assert atlas.wait() == 0


def test_a_listener_is_free_again_after_the_end(slow: Upstream, start: Start) -> None:
    atlas = start(build_config(slow.table(), listen={"port": free_port()}))
    assert atlas.get().text == "slow"
    atlas.send_signal(signal.SIGTERM)
    atlas.wait()

    with socket.create_server(("127.0.0.1", atlas.port)):
        pass
