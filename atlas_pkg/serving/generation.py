"""What is in force: one configuration and everything built from it.

A generation never changes. A reload builds the next one and swaps it in; requests under way keep
the one that they began with, so no request ever sees half of two configurations.
"""

from __future__ import annotations

import threading

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.config import Config
from atlas_pkg.http1.forwarding import Forwarder
from atlas_pkg.http1.message import MessageParser


class Generation:
    """A configuration with its balancer, parser and forwarder. Immutable, thread-safe."""

    __slots__ = ("balancer", "config", "forwarder", "number", "parser")

    def __init__(self, config: Config, previous: Generation | None = None) -> None:
        self.number: int = previous.number + 1 if previous else 1
        self.config = config
        self.balancer: Balancer = Balancer(config, previous.balancer if previous else None)
        self.parser = MessageParser(config.limits)
        self.forwarder = Forwarder(config.forwarding)


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
