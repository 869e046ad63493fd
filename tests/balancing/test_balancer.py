"""Choosing and counting under one lock, across configurations and threads."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.config import Config, Routing, UpstreamConfig
from atlas_pkg.errors import NoUpstream


def config(*upstreams: UpstreamConfig, strategy: str = "weighted_round_robin") -> Config:
    return Config(Path("atlas.toml"), upstreams=upstreams, routing=Routing(strategy=strategy))


def upstream(name: str, weight: int = 1, port: int = 80) -> UpstreamConfig:
    return UpstreamConfig(name, "192.0.2.1", port, weight=weight)


def test_a_lease_counts_the_request_until_it_is_released() -> None:
    balancer = Balancer(config(upstream("a")))

    one, two = balancer.lease(), balancer.lease()
    assert one.upstream is two.upstream
    assert one.upstream.in_flight == 2

    one.release()
    two.release()
    assert one.upstream.in_flight == 0


@pytest.mark.parametrize("upstreams", [(), (upstream("a", 0), upstream("b", 0))])
def test_without_an_available_upstream_there_is_none_to_lease(
    upstreams: tuple[UpstreamConfig, ...],
) -> None:
    with pytest.raises(NoUpstream):
        Balancer(config(*upstreams)).lease()


def test_an_upstream_is_the_same_as_long_as_name_address_and_port_are() -> None:
    old = Balancer(config(upstream("a"), upstream("b"), upstream("c")))
    lease = old.lease()

    new = Balancer(config(upstream("c"), upstream("a", weight=9), upstream("b", port=81)), old)

    by_name = {known.name: known for known in new.upstreams}
    assert by_name["a"] is old.upstreams[0]
    assert by_name["b"] is not old.upstreams[1]
    assert by_name["c"] is old.upstreams[2]
    assert by_name["a"].in_flight == 1
    lease.release()
    assert by_name["a"].in_flight == 0


def test_turns_go_on_across_a_configuration_without_upstreams() -> None:
    first = Balancer(config(upstream("a"), upstream("b")))
    assert first.lease().upstream.name == "a"

    between = Balancer(config(), first)
    last = Balancer(config(upstream("a"), upstream("b")), between)

    assert last.lease().upstream.name == "b"


def test_shares_are_exact_whoever_asks() -> None:
    balancer = Balancer(config(upstream("a", 3), upstream("b", 2), upstream("c", 1)))
    chosen: list[str] = []

    def ask() -> None:
        for _ in range(600):
            lease = balancer.lease()
            chosen.append(lease.upstream.name)
            lease.release()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Counter(chosen) == {"a": 2400, "b": 1600, "c": 800}
    assert [known.in_flight for known in balancer.upstreams] == [0, 0, 0]
