"""Host names of upstreams, with a look-up that the test controls."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from atlas_pkg.balancing import resolver as resolver_module
from atlas_pkg.balancing.resolver import Resolver
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import UpstreamConfig
from tests.toolkit import wait_until


class Names:
    """A name server: what it knows can be changed, and it counts what it is asked."""

    def __init__(self, **known: list[str]) -> None:
        self.known = {name.replace("_", "."): found for name, found in known.items()}
        self.asked: list[str] = []

    def __call__(self, name: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(name)
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.known[name]
        ]


def upstream(address: str, name: str = "a") -> Upstream:
    return Upstream(UpstreamConfig(name, address, 80))


def watch(resolver: Resolver, *upstreams: Upstream) -> None:
    """Look names up and keep them so, as a reload does."""
    configs = [UpstreamConfig(item.name, item.address, item.port) for item in upstreams]
    resolver.look_up(configs)
    resolver.watch(configs, upstreams)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look names up again and again without a pause to speak of."""
    monkeypatch.setattr(resolver_module, "REFRESH_INTERVAL", 0.02)
    monkeypatch.setattr(resolver_module, "FIRST_RETRY", 0.02)


@pytest.fixture
def resolvers() -> Iterator[list[Resolver]]:
    """Resolvers to be stopped."""
    made: list[Resolver] = []
    yield made
    for resolver in made:
        resolver.stop()
        if resolver._thread is not None:
            resolver._thread.join(10)


def test_addresses_need_no_look_up(resolvers: list[Resolver]) -> None:
    names = Names()
    resolver = Resolver(names)
    resolvers.append(resolver)
    listed = [upstream("192.0.2.1"), upstream("2001:db8::1")]

    watch(resolver, *listed)

    assert names.asked == []
    assert listed[0].endpoints == ((socket.AF_INET, ("192.0.2.1", 80)),)
    assert listed[1].endpoints == ((socket.AF_INET6, ("2001:db8::1", 80, 0, 0)),)


def test_all_addresses_of_a_name_are_known_when_watching_begins(
    resolvers: list[Resolver],
) -> None:
    resolver, listed = Resolver(Names(a_test=["192.0.2.1", "192.0.2.2"])), upstream("a.test")
    resolvers.append(resolver)

    watch(resolver, listed)

    assert [sockaddr for _, sockaddr in listed.endpoints] == [
        ("192.0.2.1", 80),
        ("192.0.2.2", 80),
    ]


def test_many_names_are_looked_up_together(resolvers: list[Resolver]) -> None:
    together = threading.Barrier(4, timeout=10)

    def look_up(_: str, port: int, **__: Any) -> list[Any]:
        together.wait()  # nobody gets on unless four are here at once
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    listed = [upstream(f"{number}.test", str(number)) for number in range(8)]
    resolver = Resolver(look_up)
    resolvers.append(resolver)

    watch(resolver, *listed)

    assert all(known.endpoints for known in listed)


@pytest.mark.usefixtures("quick")
def test_a_failure_is_logged_once_and_so_is_its_end(
    resolvers: list[Resolver], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "atlas.resolver")
    names, listed = Names(), upstream("a.test")
    resolver = Resolver(names)
    resolvers.append(resolver)

    watch(resolver, listed)
    wait_until(lambda: len(names.asked) > 3, "more look-ups")
    assert listed.endpoints == ()
    names.known["a.test"] = ["192.0.2.1"]
    wait_until(lambda: listed.endpoints, "the name to be resolved")
    wait_until(lambda: len(caplog.messages) > 1, "its line in the log")

    assert [message.split(":")[0] for message in caplog.messages] == [
        "cannot resolve a.test",
        "a.test is resolved again",
    ]


@pytest.mark.usefixtures("quick")
def test_a_name_that_fails_later_keeps_its_last_addresses(resolvers: list[Resolver]) -> None:
    names, listed = Names(a_test=["192.0.2.1"]), upstream("a.test")
    resolver = Resolver(names)
    resolvers.append(resolver)
    watch(resolver, listed)

    names.known.clear()
    asked = len(names.asked)
    wait_until(lambda: len(names.asked) > asked + 2, "failing look-ups")

    assert listed.endpoints == ((socket.AF_INET, ("192.0.2.1", 80)),)


@pytest.mark.usefixtures("quick")
def test_a_name_that_moves_is_followed(resolvers: list[Resolver]) -> None:
    names, listed = Names(a_test=["192.0.2.1"]), upstream("a.test")
    resolver = Resolver(names)
    resolvers.append(resolver)
    watch(resolver, listed)

    names.known["a.test"] = ["192.0.2.9"]

    wait_until(lambda: listed.endpoints[0][1][0] == "192.0.2.9", "the new address")


def test_a_name_server_that_hangs_does_not_stop_the_start(
    resolvers: list[Resolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "FIRST_LOOKUP", 0.2)
    is_over = threading.Event()

    def look_up(*_: Any, **__: Any) -> list[Any]:
        is_over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    resolver = Resolver(look_up)
    resolvers.append(resolver)
    began = time.monotonic()
    watch(resolver, upstream("a.test"))
    duration = time.monotonic() - began
    is_over.set()

    assert 0.1 < duration < 15


def test_addresses_are_known_before_anybody_asks_for_them(resolvers: list[Resolver]) -> None:
    names = Names(a_test=["192.0.2.1"])
    resolver = Resolver(names)
    resolvers.append(resolver)
    listed = [UpstreamConfig("a", "a.test", 80), UpstreamConfig("b", "b.test", 80)]

    known = resolver.look_up([*listed, UpstreamConfig("c", "192.0.2.3", 80)])

    assert known == {("a.test", 80): ((socket.AF_INET, ("192.0.2.1", 80)),)}


def test_a_name_that_was_never_resolved_is_asked_for_more_and_more_seldom(
    resolvers: list[Resolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "FIRST_RETRY", 0.1)
    asked: list[float] = []

    def look_up(*_: Any, **__: Any) -> list[Any]:
        asked.append(time.monotonic())
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    resolver = Resolver(look_up)
    resolvers.append(resolver)
    watch(resolver, upstream("a.test"))
    wait_until(lambda: len(asked) >= 5, "look-ups")

    gaps = [after - before for before, after in itertools.pairwise(asked)]
    for gap, least in zip(gaps, (0.1, 0.2, 0.4, 0.8), strict=False):
        assert least <= gap + 0.01
    assert gaps[0] < 15
