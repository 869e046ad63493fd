"""Configurations, members and a clock for the tests of balancing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.member import Member
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import Config, Routing, UpstreamConfig


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def build_upstream(name: str, weight: int = 1, **keys: Any) -> UpstreamConfig:
    return UpstreamConfig(
        name,
        keys.pop("address", "192.0.2.1"),
        keys.pop("port", 80),
        weight=weight,
        **keys,
    )


def build_config(
    *upstreams: UpstreamConfig, strategy: str = "weighted_round_robin", **tables: Any
) -> Config:
    routing = Routing(strategy=strategy)
    return Config(Path("atlas.toml"), upstreams=upstreams, routing=routing, **tables)


def seed(balancer: Balancer, dice: random.Random) -> None:
    """Have a strategy that throws dice use these, so that a test can be repeated."""
    if hasattr(balancer._strategy, "_random"):
        balancer._strategy._dice = dice
        balancer._strategy._random = dice.random


def build_member(name: str, weight: int = 1, *, order: int = 0, **keys: Any) -> Member:
    """A member whose upstream nobody else has."""
    item = build_upstream(name, weight, **keys)
    return Member(Upstream(item), item, order)


def build_members(**weights: int) -> list[Member]:
    """Members in the order of the arguments."""
    return [
        build_member(name, weight, order=order)
        for order, (name, weight) in enumerate(weights.items())
    ]
