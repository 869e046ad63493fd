"""What is in force: one configuration and everything built from it.

A generation never changes. A reload builds the next one and swaps it in; requests under way keep
the one that they began with, so no request ever sees half of two configurations.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from atlas_pkg.balancing.balancer import Addresses, Balancer, BalancerSettings
from atlas_pkg.balancing.sticky import StickySessions, without_cookies
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import DEFAULT_GROUP, HASHES, Config, HealthCheck
from atlas_pkg.http1.forwarding import Forwarder
from atlas_pkg.http1.message import MessageParser
from atlas_pkg.net.certificates import Certificates
from atlas_pkg.net.tls_client import NO_CLIENTS, TlsClient, read_tls_clients
from atlas_pkg.serving.affinity import AffinityReader
from atlas_pkg.serving.router import Router


@dataclass(frozen=True, slots=True)
class Group:
    """One group of upstreams, as one configuration has it."""

    name: str
    balancer: Balancer  # lives on from one configuration to the next
    retries: int
    affinity: AffinityReader | None  # what ties a client to an upstream; None where nothing does


class Generation:
    """A configuration with its groups, parser and forwarder. Immutable, thread-safe."""

    def __init__(
        self,
        config: Config,
        previous: Generation | None = None,
        *,
        secret: bytes = b"",
        certificates: Certificates | None = None,
        tls_clients: Mapping[str, TlsClient] = NO_CLIENTS,
    ) -> None:
        """`secret` signs sticky cookies where the configuration has none; made up if empty.

        The balancers of `previous` keep its settings until this generation is swapped in.
        `certificates` are shown to clients who speak TLS; None where they do not. `tls_clients` are
        those of before: each is kept where nothing is different, or its files cannot be read now.
        """
        self.number: int = previous.number + 1 if previous else 1
        self.config = config
        breaker = config.circuit_breaker
        # What an answer says about its upstream, if it has one of these.
        self.failure_statuses = frozenset(breaker.statuses if breaker else ())
        self.root = config.root  # of mode "static"
        self.parser = MessageParser(config.limits)
        self.pages = dict(config.error_pages.pages)  # for errors, by their names
        self.secret: bytes = previous.secret if previous else secret or os.urandom(32)
        cookies = self._build_cookies()
        names = frozenset(sticky.cookie for sticky in cookies.values())
        self.forwarder = Forwarder(
            config.forwarding,
            filter_cookie=partial(without_cookies, names) if names else None,
            tells_certificates=config.listen.tls is not None and bool(config.listen.tls.client_ca),
        )
        # Who speaks TLS to which upstream.
        self.tls_clients = read_tls_clients(config, tls_clients, keeps=True)
        self.groups = {
            name: self._build_group(name, previous, cookies.get(name))
            for name in config.group_names
        }
        self.group = self.groups[DEFAULT_GROUP]  # for those for whom no route is meant
        self.router = Router(config.routes, self.forwarder) if config.routes else None
        self.tls = certificates

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """Those of all groups."""
        return tuple(one for group in self.groups.values() for one in group.balancer.upstreams)

    @property
    def waiting(self) -> int:
        """How many requests are in the queues."""
        return sum(group.balancer.waiting for group in self.groups.values())

    def health_checks(self) -> list[tuple[Upstream, HealthCheck]]:
        """The upstreams that are to be probed, and how."""
        return [pair for group in self.groups.values() for pair in group.balancer.health_checks()]

    def _build_cookies(self) -> dict[str, StickySessions]:
        """The sticky cookie of each group: a client of two groups has an upstream in either."""
        config = self.config
        if config.sticky is None:
            return {}
        key = config.sticky.secret.encode() or self.secret
        found = {}
        for group in config.group_names:
            name = config.sticky.cookie + ("" if group == DEFAULT_GROUP else f"-{group}")
            names = [upstream.name for upstream in config.upstreams if upstream.group == group]
            found[group] = StickySessions(replace(config.sticky, cookie=name), key, names)
        return found

    def _build_group(
        self, name: str, previous: Generation | None, sticky: StickySessions | None
    ) -> Group:
        routing = self.config.routing_of(name)
        settings = BalancerSettings.of(self.config, name, self.tls_clients)
        known = previous.groups.get(name) if previous else None
        if known is not None and settings.upstreams:
            balancer = known.balancer
        else:
            # In a reload a new balancer gets its upstreams at the swap, which returns them as new.
            # A group whose upstreams have all left gets a new balancer too: exchanges that have
            # begun still use the old one.
            balancer = Balancer(BalancerSettings() if previous else settings)
        affinity = None
        if sticky is not None or routing.strategy in HASHES:
            affinity = AffinityReader(routing, balancer, self.forwarder, sticky)
        return Group(name, balancer, routing.retries, affinity)


class ConfigHolder:
    """Holds the generation in force. Thread-safe."""

    def __init__(self, generation: Generation) -> None:
        # Guards the change from one to the next. Reading needs no lock: whoever looks finds the
        # old one or the new one, never anything between.
        self._lock = threading.Lock()
        self.generation = generation

    def swap(
        self, generation: Generation, addresses: Addresses = MappingProxyType({})
    ) -> list[Upstream]:
        """Put `generation` in force for all requests that begin from now on.

        `addresses` are those of host names as far as they are known. Returns the upstreams that are
        new.
        """
        with self._lock:
            used = {group.balancer for group in self.generation.groups.values()}
            # Before anybody is sent to them, and after, so that nobody finds a group empty.
            new = _apply(generation, addresses, lambda balancer: balancer not in used)
            self.generation = generation
            if generation.tls is not None:
                generation.tls.show()
            return new + _apply(generation, addresses, lambda balancer: balancer in used)


def _apply(
    generation: Generation, addresses: Addresses, is_meant: Callable[[Balancer], bool]
) -> list[Upstream]:
    """Have balancers do as `generation` says; returns the upstreams that are new."""
    return [
        upstream
        for group in generation.groups.values()
        if is_meant(group.balancer)
        for upstream in group.balancer.apply(
            BalancerSettings.of(generation.config, group.name, generation.tls_clients), addresses
        )
    ]
