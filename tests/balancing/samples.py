"""Settings, upstreams and a clock for the tests of balancing."""

from __future__ import annotations

import random
from typing import Any

from atlas_pkg.balancing.balancer import Balancer, BalancerSettings
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import Routing, UpstreamConfig


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def build_config(name: str, weight: int = 1, **keys: Any) -> UpstreamConfig:
    """What the file says of one upstream."""
    return UpstreamConfig(
        name,
        keys.pop("address", "192.0.2.1"),
        keys.pop("port", 80),
        weight=weight,
        **keys,
    )


def build_settings(
    *upstreams: UpstreamConfig, strategy: str = "weighted_round_robin", **more: Any
) -> BalancerSettings:
    return BalancerSettings(upstreams, Routing(strategy=strategy), **more)


def seed(balancer: Balancer, dice: random.Random) -> None:
    """Have a strategy that throws dice use these, so that a test can be repeated."""
    if hasattr(balancer._strategy, "_chance"):
        balancer._strategy._chance = dice.random


def build_upstream(name: str, weight: int = 1, *, order: int = 0, **keys: Any) -> Upstream:
    """An upstream that no balancer knows."""
    config = build_config(name, weight, **keys)
    upstream = Upstream(config)
    upstream.configure(config, order=order, breaker=None)
    return upstream


def build_upstreams(**weights: int) -> list[Upstream]:
    """Upstreams in the order of the arguments."""
    return [
        build_upstream(name, weight, order=order)
        for order, (name, weight) in enumerate(weights.items())
    ]


def configs_of(upstreams: list[Upstream]) -> list[UpstreamConfig]:
    """What the file says of these."""
    return [build_config(upstream.name, upstream.configured_weight) for upstream in upstreams]
