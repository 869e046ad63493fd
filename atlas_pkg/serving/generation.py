"""What is in force: one configuration and everything built from it.

A generation never changes. A reload builds the next one and swaps it in; requests under way keep
the one that they began with, so no request ever sees half of two configurations.
"""

from __future__ import annotations

import os
import threading

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.lease import Outcome
from atlas_pkg.balancing.sticky import StickySessions
from atlas_pkg.config.model import Config
from atlas_pkg.http1.forwarding import Forwarder
from atlas_pkg.http1.message import MessageParser
from atlas_pkg.serving.affinity import Affinity


class Generation:
    """A configuration with its balancer, parser and forwarder. Immutable, thread-safe."""

    __slots__ = (
        "_failure_statuses",
        "affinity",
        "balancer",
        "config",
        "forwarder",
        "number",
        "parser",
        "secret",
    )

    def __init__(
        self, config: Config, previous: Generation | None = None, *, secret: bytes = b""
    ) -> None:
        """`secret` signs sticky cookies where the configuration has none; made up if empty."""
        self.number: int = previous.number + 1 if previous else 1
        self.config = config
        self.balancer: Balancer = Balancer(config, previous.balancer if previous else None)
        breaker = config.circuit_breaker
        self._failure_statuses = frozenset(breaker.statuses if breaker else ())
        self.parser = MessageParser(config.limits)
        self.secret: bytes = previous.secret if previous else secret or os.urandom(32)
        sticky = None
        if config.sticky is not None:
            key = config.sticky.secret.encode() or self.secret
            sticky = StickySessions(config.sticky, key, self.balancer.by_name)
        self.forwarder = Forwarder(
            config.forwarding, filter_cookie=sticky.without_own_cookie if sticky else None
        )
        self.affinity = Affinity(config, self.balancer, self.forwarder, sticky)

    def judge(self, status: int) -> Outcome:
        """What an answer with `status` says about its upstream."""
        return Outcome.FAILURE if status in self._failure_statuses else Outcome.SUCCESS


class ConfigHolder:
    """Holds the generation in force. Thread-safe."""

    def __init__(self, generation: Generation) -> None:
        # Guards _generation: readers get the old one or the new one, never anything between.
        self._lock = threading.Lock()
        self._generation = generation

    def current(self) -> Generation:
        """The generation in force now."""
        with self._lock:
            return self._generation

    def swap(self, generation: Generation) -> None:
        """Put `generation` in force for all requests that begin from now on."""
        with self._lock:
            self._generation = generation
        generation.balancer.activate()
