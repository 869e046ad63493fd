"""Who gets which request: the shares and the order that the configuration promises."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest

from tests.fakes import Upstream, named
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Threads, build_config

# Who is chosen does not depend on the engine that asks.
pytestmark = pytest.mark.engines("lane")


@pytest.fixture
def abc(upstreams: contextlib.ExitStack) -> list[Upstream]:
    return [upstreams.enter_context(named(name)) for name in "ABC"]


def ask(atlas: Atlas, times: int) -> list[str]:
    """Ask on one connection; returns who answered."""
    with atlas.client() as client:
        return [client.get().text for _ in range(times)]


def test_shares_are_exact_under_load(abc: list[Upstream], start: Start) -> None:
    a, b, c = abc
    atlas = start(
        build_config(
            a.table(weight=3),
            b.table(weight=2),
            c.table(weight=1),
            routing={"strategy": "weighted_round_robin"},
        ),
    )
    clients, requests = 64, 6000
    threads = Threads()

    for number in range(clients):
        threads.start(ask, atlas, requests // clients + (number < requests % clients))
    answers = Counter(name for names in threads.join() for name in names)

    assert answers == {"A": 3000, "B": 2000, "C": 1000}
    assert (a.requests, b.requests, c.requests) == (3000, 2000, 1000)


def test_weights_are_interleaved(abc: list[Upstream], start: Start) -> None:
    a, b, c = abc
    atlas = start(
        build_config(
            a.table(weight=3),
            b.table(weight=2),
            c.table(weight=1),
            routing={"strategy": "weighted_round_robin"},
        )
    )

    assert "".join(ask(atlas, 12)) == "ABACBAABACBA"


def test_round_robin_is_per_request_and_in_the_order_of_the_file(
    abc: list[Upstream], start: Start
) -> None:
    atlas = start(build_config(*(upstream.table() for upstream in abc)))

    assert "".join(ask(atlas, 9)) == "ABCABCABC"


def test_random_spreads_evenly(abc: list[Upstream], start: Start) -> None:
    atlas = start(
        build_config(*(upstream.table() for upstream in abc), routing={"strategy": "random"})
    )

    answers = Counter(ask(atlas, 900))

    # 300 each is expected, with a standard deviation of 14: seven of them.
    assert all(200 < answers[name] < 400 for name in "ABC"), answers
    assert "".join(ask(atlas, 30)) != "ABC" * 10


@pytest.mark.parametrize("strategy", ["round_robin", "weighted_round_robin", "random"])
def test_weight_0_gets_nothing(strategy: str, abc: list[Upstream], start: Start) -> None:
    a, b, c = abc
    atlas = start(
        build_config(
            a.table(weight=1),
            b.table(weight=0),
            c.table(weight=1),
            routing={"strategy": strategy},
        )
    )

    assert set(ask(atlas, 60)) == {"A", "C"}
    assert b.requests == 0


def test_no_upstream_at_all_is_503_with_retry_after(start: Start) -> None:
    atlas = start(build_config())

    with atlas.client() as client:
        first, second = client.get(), client.get()

    assert (first.status, second.status) == (503, 503)
    assert int(first.get("Retry-After")) > 0
    assert int(first.get("Content-Length")) == len(first.body)


def test_all_weights_0_are_503(abc: list[Upstream], start: Start) -> None:
    atlas = start(build_config(*(upstream.table(weight=0) for upstream in abc)))

    assert atlas.get().status == 503


def test_a_single_upstream_gets_everything(abc: list[Upstream], start: Start) -> None:
    atlas = start(build_config(abc[0].table()))

    assert ask(atlas, 20) == ["A"] * 20
    assert abc[0].accepted < 20  # connections are kept


@pytest.mark.parametrize("strategy", ["round_robin", "weighted_round_robin", "random"])
def test_a_thousand_upstreams_work(strategy: str, abc: list[Upstream], start: Start) -> None:
    tables = [
        {**abc[number % 3].table(), "name": f"u{number}", "weight": 1 + number % 3}
        for number in range(1000)
    ]
    atlas = start(build_config(*tables, routing={"strategy": strategy}))

    answers = Counter(ask(atlas, 600))

    assert answers.total() == 600
    if strategy == "round_robin":
        assert answers == {"A": 200, "B": 200, "C": 200}


def test_an_upstream_on_ipv6_is_reached(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("six", address="::1"))
    atlas = start(build_config(upstream.table(), upstream.table(name="b", address="[::1]")))

    assert ask(atlas, 2) == ["six", "six"]
