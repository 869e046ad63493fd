"""One upstream's run-time truth: what is known about it while the program runs.

Configuration comes and goes with reloads; an `Upstream` stays for as long as some configuration
lists the same name, address and port. So counts, verdicts, breaker and administrative state
survive, and requests that began under an older configuration are still counted in the right place.

What it does not hold: its weight and limits, which belong to a configuration (`member.py`), and its
idle connections, which belong to the threads that opened them (`pool.py`).
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from typing import Any

from atlas_pkg.balancing.breaker import Breaker
from atlas_pkg.config.model import CircuitBreaker, UpstreamConfig

# What identifies an upstream across reloads: name, address, port.
Identity = tuple[str, str, int]

# One way to reach an upstream: address family and what `socket.connect` takes.
Endpoint = tuple[socket.AddressFamily, tuple[Any, ...]]

# The health reason of one that a reload has added and no probe has passed yet.
UNPROBED = "waits for its first probe"


class AdminState(enum.Enum):
    """What an administrator wants of an upstream."""

    READY = "ready"
    DRAIN = "drain"  # no new clients; sticky ones stay
    MAINTENANCE = "maintenance"  # nobody


def identity_of(config: UpstreamConfig) -> Identity:
    """The identity under which counts and verdicts are kept."""
    return (config.name, config.address, config.port)


class Upstream:
    """One server behind Atlas.

    Everything that changes is guarded by the balancer's lock, but for `endpoints`, which is
    replaced as a whole; it is empty while a host name is not resolved.
    """

    __slots__ = (
        "address",
        "admin_state",
        "breaker",
        "endpoints",
        "health_reason",
        "host_field",
        "in_flight",
        "is_checked",
        "is_up",
        "name",
        "port",
        "recovered_at",
        "weight_override",
    )

    def __init__(self, config: UpstreamConfig) -> None:
        self.name = config.name
        self.address = config.address
        self.port = config.port
        self.in_flight = 0
        self.is_checked = False  # the configuration in force has it probed
        self.is_up = True  # the verdict of its health checks
        self.health_reason = ""
        self.breaker: Breaker | None = None
        self.admin_state = AdminState.READY
        self.weight_override: int | None = None
        self.recovered_at: float | None = None  # since when it is spared (`[slow_start]`)
        self.endpoints: tuple[Endpoint, ...] = _parse_literal(config.address, config.port)
        host = f"[{config.address}]" if ":" in config.address else config.address
        # What an HTTP/1.0 request without Host is given as one.
        self.host_field = f"{host}:{config.port}".encode("ascii")

    @property
    def identity(self) -> Identity:
        """Name, address and port."""
        return (self.name, self.address, self.port)

    @property
    def needs_resolving(self) -> bool:
        """Is the address a host name rather than an IP address?"""
        return not _parse_literal(self.address, self.port)

    def adopt(
        self, config: UpstreamConfig, breaker: CircuitBreaker | None, *, is_new: bool
    ) -> None:
        """Be as a configuration wants it that comes into force, `is_new` with a reload.

        Caller holds the balancer's lock.
        """
        if breaker is None:
            self.breaker = None
        elif self.breaker is None:
            self.breaker = Breaker(breaker)
        else:
            self.breaker.reconfigure(breaker)
        self.is_checked = config.health_check is not None
        if not self.is_checked:
            self.is_up, self.health_reason = True, ""
        elif is_new:
            self.is_up, self.health_reason = False, UNPROBED

    def note_health(self, is_up: bool, reason: str) -> bool:
        """Take over a verdict; False where nothing is different. Caller holds the balancer's lock.

        One that comes when a reload has just ended the checks is too late: nobody would correct it.
        """
        if not self.is_checked:
            return False
        was_up = self.is_up
        self.is_up, self.health_reason = is_up, reason
        return was_up != is_up

    def __repr__(self) -> str:
        return f"<Upstream {self.name} {self.address}:{self.port}>"


def _parse_literal(address: str, port: int) -> tuple[Endpoint, ...]:
    """The endpoint of an IP address; empty for a host name."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ()
    if ip.version == 6:
        return ((socket.AF_INET6, (address, port, 0, 0)),)
    return ((socket.AF_INET, (address, port)),)
