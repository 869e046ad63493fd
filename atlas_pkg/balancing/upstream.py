"""One upstream's run-time truth: what is known about it while the program runs.

Configuration comes and goes with reloads; an `Upstream` stays for as long as some configuration
lists the same name, address, port and group. So counts, health, breaker and administrative state
survive. What the file says of it (weight, limit, place) comes anew with each reload: `configure`.

What it does not hold: its idle connections, which belong to the threads that opened them
(`pool.py`), and whose turn it is, which is the strategy's.
"""

from __future__ import annotations

import enum
import ipaddress
import socket

from atlas_pkg.balancing.breaker import Breaker
from atlas_pkg.config.model import CircuitBreaker, UpstreamConfig
from atlas_pkg.config.rules import SOCKET_FILE, show_endpoint
from atlas_pkg.net.connect import Endpoint
from atlas_pkg.net.tls_client import TlsClient

# What identifies an upstream across reloads: name, address, port, group.
Identity = tuple[str, str, int, str]

# The health reason of one that a reload has added and no probe has passed yet.
UNPROBED = "waits for its first probe"


class AdminState(enum.Enum):
    """What an administrator wants of an upstream."""

    READY = "ready"
    DRAIN = "drain"  # no new clients; sticky ones stay
    MAINTENANCE = "maintenance"  # nobody


def identity_of(config: UpstreamConfig) -> Identity:
    """The identity under which counts and health are kept."""
    return (config.name, config.address, config.port, config.group)


class Upstream:
    """One server behind Atlas.

    Everything that changes is guarded by the balancer's lock, but for `endpoints`, which is
    replaced as a whole; it is empty while a host name is not resolved.
    """

    __slots__ = (
        "address",
        "admin_state",
        "breaker",
        "configured_weight",
        "endpoints",
        "group",
        "health_check",
        "health_reason",
        "host_field",
        "identity",
        "in_flight",
        "is_backup",
        "is_up",
        "label",
        "max_connections",
        "name",
        "order",
        "port",
        "proxy_protocol",
        "recovered_at",
        "tls",
        "weight_override",
    )

    def __init__(self, config: UpstreamConfig) -> None:
        self.name = config.name
        self.address = config.address
        self.port = config.port
        self.group = config.group
        self.identity = identity_of(config)
        self.label = config.label  # for the log
        self.in_flight = 0
        self.is_up = True  # what its health checks say
        self.health_reason = ""
        self.breaker: Breaker | None = None
        self.admin_state = AdminState.READY
        self.weight_override: int | None = None
        self.recovered_at: float | None = None  # since when it starts slowly (`[slow_start]`)
        self.endpoints: tuple[Endpoint, ...] = parse_literal(config.address, config.port)
        # The Host of a probe, and of a request that came without one (HTTP/1.0). A socket file has
        # no name that a server would know.
        host = show_endpoint(config.host or config.address, config.port)
        host = "localhost" if config.socket_file else host
        self.host_field = host.encode("ascii")
        self.configure(config, order=0, breaker=None)

    @property
    def needs_resolving(self) -> bool:
        """Is the address a host name?"""
        return not parse_literal(self.address, self.port)

    def configure(
        self,
        config: UpstreamConfig,
        *,
        order: int,
        breaker: CircuitBreaker | None,
        tls: TlsClient | None = None,
    ) -> None:
        """Take over what a configuration says that comes into force.

        `order` is its place in the file, and `tls` speaks TLS to it. Caller holds the balancer's
        lock.
        """
        self.configured_weight = config.weight
        self.max_connections = config.max_connections
        self.is_backup = config.backup
        self.proxy_protocol = config.proxy_protocol
        self.tls = tls
        self.order = order
        if breaker is None:
            self.breaker = None
        elif self.breaker is None:
            self.breaker = Breaker(breaker)
        else:
            self.breaker.reconfigure(breaker)
        self.health_check = config.health_check
        if config.health_check is None:
            self.is_up, self.health_reason = True, ""

    @property
    def weight(self) -> int:
        """The weight in force: an administrator's word goes before the file's."""
        return self.configured_weight if self.weight_override is None else self.weight_override

    @property
    def load(self) -> float:
        """Requests in flight for each unit of its weight, which must not be 0."""
        return self.in_flight / self.weight

    @property
    def has_room(self) -> bool:
        """May another request be sent to it now?"""
        return not self.max_connections or self.in_flight < self.max_connections

    def is_alive(self, now: float) -> bool:
        """Can it be expected to answer: healthy, not in maintenance, breaker not open?"""
        if not self.is_up or self.admin_state is AdminState.MAINTENANCE:
            return False
        return self.breaker is None or self.breaker.may_try(now)

    def takes_new_clients(self, now: float) -> bool:
        """Is it in rotation for clients that do not belong to it already?"""
        if self.weight == 0 or self.admin_state is not AdminState.READY:
            return False
        return self.is_alive(now)

    def note_health(self, is_up: bool, reason: str) -> bool:
        """Take over what the checks say; returns whether it went up or down.

        A result that comes after a reload has ended the checks is ignored: nobody would correct it.
        Caller holds the balancer's lock.
        """
        if self.health_check is None:
            return False
        was_up = self.is_up
        self.is_up, self.health_reason = is_up, reason
        return was_up != is_up

    def __repr__(self) -> str:
        return f"<Upstream {self.name} {self.address}:{self.port}>"


def parse_literal(address: str, port: int) -> tuple[Endpoint, ...]:
    """The endpoint of an IP address or a socket file; empty for a host name."""
    if address.startswith(SOCKET_FILE):
        return ((socket.AF_UNIX, address.removeprefix(SOCKET_FILE)),)
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ()
    if ip.version == 6:
        return ((socket.AF_INET6, (address, port, 0, 0)),)
    return ((socket.AF_INET, (address, port)),)
