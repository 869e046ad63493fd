"""What is in force: one configuration and everything built from it.

A generation never changes. A reload builds the next one and swaps it in; requests under way keep
the one that they began with, so no request ever sees half of two configurations.
"""

from __future__ import annotations

import os
import threading
from types import MappingProxyType

from atlas_pkg.balancing.balancer import Addresses, Balancer, BalancerSettings
from atlas_pkg.balancing.sticky import StickySessions
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import Config
from atlas_pkg.http1.forwarding import Forwarder
from atlas_pkg.http1.message import MessageParser
from atlas_pkg.serving.affinity import HASHING, AffinityReader


class Generation:
    """A configuration with its balancer, parser and forwarder. Immutable, thread-safe."""

    def __init__(
        self, config: Config, previous: Generation | None = None, *, secret: bytes = b""
    ) -> None:
        """`secret` signs sticky cookies where the configuration has none; made up if empty.

        The balancer of `previous` goes on under its settings until this generation is swapped in.
        """
        self.number: int = previous.number + 1 if previous else 1
        self.config = config
        self.balancer: Balancer = (
            previous.balancer if previous else Balancer(BalancerSettings.of(config))
        )
        breaker = config.circuit_breaker
        # What an answer says about its upstream, if it has one of these.
        self.failure_statuses = frozenset(breaker.statuses if breaker else ())
        self.parser = MessageParser(config.limits)
        self.secret: bytes = previous.secret if previous else secret or os.urandom(32)
        sticky = None
        if config.sticky is not None:
            key = config.sticky.secret.encode() or self.secret
            names = [upstream.name for upstream in config.upstreams]
            sticky = StickySessions(config.sticky, key, names)
        self.forwarder = Forwarder(
            config.forwarding, filter_cookie=sticky.without_own_cookie if sticky else None
        )
        # What ties a client to an upstream; None where nothing does.
        self.affinity: AffinityReader | None = None
        if sticky is not None or config.routing.strategy in HASHING:
            self.affinity = AffinityReader(config, self.balancer, self.forwarder, sticky)


class ConfigHolder:
    """Holds the generation in force. Thread-safe."""

    def __init__(self, generation: Generation) -> None:
        # Guards the change from one to the next. Reading needs no lock: whoever looks finds the
        # old one or the new one, never anything between.
        self._lock = threading.Lock()
        self.generation = generation

    def current(self) -> Generation:
        """The generation in force now."""
        return self.generation

    def swap(
        self, generation: Generation, addresses: Addresses = MappingProxyType({})
    ) -> list[Upstream]:
        """Put `generation` in force for all requests that begin from now on.

        `addresses` are those of host names as far as they are known. Returns the upstreams that are
        new.
        """
        with self._lock:
            self.generation = generation
        return generation.balancer.apply(BalancerSettings.of(generation.config), addresses)
