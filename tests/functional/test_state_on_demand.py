"""SIGUSR1: what an operator is told about the state of every upstream: a table."""

from __future__ import annotations

import contextlib
import signal

import pytest

from tests.fakes import Upstream, named, silent
from tests.functional.conftest import Start
from tests.toolkit import Atlas, build_config, free_port, wait_until

# What is told does not depend on the engine.
pytestmark = pytest.mark.engines("lane")


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("a"))


@pytest.fixture
def b(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("b"))


def ask_for_dump(atlas: Atlas, name: str, *, times: int = 1) -> str:
    """Send the signal, and return the line that then comes about one upstream."""
    atlas.send_signal(signal.SIGUSR1)
    line = atlas.wait_for(f" {name}  ", times=times)
    return " ".join(line[line.index(f" {name}  ") :].split())


def test_every_upstream_has_a_line(a: Upstream, b: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(weight=3), b.table(backup=True)))

    assert ask_for_dump(atlas, "a") == f"a 127.0.0.1:{a.port} up 3 0 0"
    atlas.wait_for(" upstream    address")
    atlas.wait_for(" b (backup)  ")


def test_requests_in_flight_are_counted(upstreams: contextlib.ExitStack, start: Start) -> None:
    stuck = upstreams.enter_context(silent("stuck"))
    atlas = start(build_config(stuck.table()))

    with atlas.client() as client:
        client.send_head()
        wait_until(lambda: stuck.requests, "the request to reach its upstream")

        assert ask_for_dump(atlas, "stuck").endswith(" up 1 1 0")


def test_the_reason_why_an_upstream_is_down_is_told(a: Upstream, start: Start) -> None:
    gone = {"name": "gone", "address": "127.0.0.1", "port": free_port()}
    atlas = start(build_config(a.table(), gone, health_check={"interval": 0.05, "fall": 1}))
    atlas.wait_for("upstream gone is down")

    assert "down, connect refused" in ask_for_dump(atlas, "gone")


def test_the_state_of_the_breaker_is_told(
    a: Upstream, upstreams: contextlib.ExitStack, start: Start
) -> None:
    failing = upstreams.enter_context(named("failing"))
    breaker = {"failures": 1, "open_for": 60.0}
    atlas = start(build_config(a.table(), failing.table(), circuit_breaker=breaker))
    failing.close()
    for _ in range(2):
        atlas.get()

    assert "breaker open, " in ask_for_dump(atlas, "failing")


def test_atlas_goes_on_serving(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table()))

    ask_for_dump(atlas, "a")
    ask_for_dump(atlas, "a", times=2)

    assert atlas.get().text == "a"
    atlas.send_signal(signal.SIGTERM)
    assert atlas.wait() == 0


def test_a_reloaded_list_is_the_one_that_is_told(a: Upstream, b: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table()))

    atlas.reload(build_config(b.table(weight=7)))

    assert ask_for_dump(atlas, "b").endswith(" up 7 0 0")
    assert " a  " not in atlas.log


def test_every_worker_process_tells_its_own(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(), listen={"workers": 2}))
    for number in (1, 2):
        atlas.wait_for(f"worker {number} is process")

    atlas.send_signal(signal.SIGUSR1)
    lines = [atlas.wait_for(" a  ", times=times) for times in (1, 2)]

    told = {number for number in (1, 2) for line in lines if f"[worker {number}]" in line}
    assert told == {1, 2}
    assert atlas.get().text == "a"
    atlas.send_signal(signal.SIGTERM)
    assert atlas.wait() == 0


def test_a_signal_during_the_drain_does_no_harm(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    slow = upstreams.enter_context(named("slow", delay=0.5))
    atlas = start(build_config(slow.table()))

    with atlas.client() as client:
        client.send_head()
        wait_until(lambda: slow.requests, "the request to reach its upstream")
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients")
        atlas.send_signal(signal.SIGUSR1)

        assert client.read_answer().text == "slow"
    assert atlas.wait() == 0
