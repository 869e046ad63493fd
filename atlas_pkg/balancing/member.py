"""An upstream as one configuration sees it: its weight, its limit, its place in the file.

`Upstream` is the server itself and outlives configurations; a `Member` is a line about it in one of
them, and never changes.
"""

from __future__ import annotations

from typing import NamedTuple

from atlas_pkg.balancing.upstream import AdminState, Upstream
from atlas_pkg.config.model import UpstreamConfig


class Position(NamedTuple):
    """The last turn: where on the line of turns it lies, and its upstream's place in the file."""

    place: float
    order: int


# Before the first turn of all.
START = Position(0.0, -1)


class Member:
    """One entry of one configuration. `order` is its place in the file."""

    __slots__ = ("configured_weight", "is_backup", "max_connections", "order", "upstream")

    def __init__(self, upstream: Upstream, config: UpstreamConfig, order: int) -> None:
        self.upstream = upstream
        self.configured_weight = config.weight
        self.max_connections = config.max_connections
        self.is_backup = config.backup
        self.order = order

    @property
    def weight(self) -> int:
        """The weight in force: an administrator's word goes before the file's."""
        override = self.upstream.weight_override
        return self.configured_weight if override is None else override

    @property
    def has_room(self) -> bool:
        """May another request be sent to it now?"""
        return not self.max_connections or self.upstream.in_flight < self.max_connections

    @property
    def load(self) -> str:
        """How much it has to do for its weight, in words; compared as by `load_of`."""
        load = load_of(self.upstream, self.weight)
        return f"{self.upstream.in_flight} in flight / weight {self.weight} = {load:.2f}"

    def is_alive(self, now: float) -> bool:
        """Can it be expected to answer: healthy, not in maintenance, breaker not open?"""
        upstream = self.upstream
        if not upstream.is_up or upstream.admin_state is AdminState.MAINTENANCE:
            return False
        return upstream.breaker is None or upstream.breaker.may_try(now)

    def takes_new_clients(self, now: float) -> bool:
        """Is it in rotation for clients that do not belong to it already?"""
        if self.weight == 0 or self.upstream.admin_state is not AdminState.READY:
            return False
        return self.is_alive(now)

    def describe(self, now: float) -> str:
        """Say in a line how it is."""
        upstream = self.upstream
        facts = [
            f"weight {self.weight}",
            f"{upstream.in_flight} in flight",
            upstream.admin_state.value,
            "up" if upstream.is_up else f"down ({upstream.health_reason})",
        ]
        if upstream.breaker is not None:
            facts.append(f"breaker {upstream.breaker.state(now).value}")
        if self.is_backup:
            facts.append("backup")
        return f"upstream {upstream.name}: {', '.join(facts)}"


def load_of(upstream: Upstream, weight: int) -> float:
    """Requests in flight for the weight: all that are idle are equal, as in HAProxy and nginx."""
    return upstream.in_flight / weight
