"""A lease: an upstream reserved for one attempt; what it is asked with, and how it ends.

A request leases an upstream for each attempt, not for its connection, and gives it back with an
outcome, which is what the circuit breaker hears. Who gets what is decided in `balancer.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from atlas_pkg.balancing.upstream import Upstream


class Outcome(enum.Enum):
    """How an attempt ended, as far as its upstream is concerned."""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"  # the client's own doing: says nothing about the upstream


# As names of the module: looking a member up in its class takes longer than the rest of a release.
SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE


class Affinity(NamedTuple):
    """What ties a client to an upstream."""

    key: bytes = b""  # what it is known by; equal keys land together with the hashes
    sticky: Upstream | None = None  # the upstream that it belongs to
    is_due: bool = False  # its cookie is to be renewed


# A client that may be sent anywhere, and nobody tried yet.
ANYWHERE = Affinity()
NOBODY: frozenset[Upstream] = frozenset()

# Is told of an end: upstream, ticket, outcome.
Listener = Callable[[Upstream, int | None, Outcome], None]

# Is told that an answer has begun: upstream, ticket. Returns the ticket for its end.
BeginListener = Callable[[Upstream, int], int]


class Lease:
    """An upstream reserved for one attempt. Whoever holds it calls `release` once.

    Only a circuit breaker tells one attempt from another, by a ticket. So all leases of an upstream
    without a breaker are one object, which never changes.
    """

    __slots__ = ("_on_begin", "_on_release", "_on_settle", "_ticket", "release", "upstream")

    def __init__(
        self,
        upstream: Upstream,
        ticket: int | None,
        *,
        on_begin: BeginListener,
        on_release: Listener,
        on_settle: Listener,
    ) -> None:
        self.upstream = upstream
        self._ticket = ticket
        self._on_begin = on_begin
        self._on_release = on_release
        self._on_settle = on_settle
        # `release(outcome)` gives the upstream back and says how it did. Bound ahead, since every
        # request pays for it.
        self.release: Callable[..., None] = partial(on_release, upstream, ticket)

    def note_head(self) -> None:
        """Say that an answer has begun, of which the end may be long in coming."""
        if self._ticket is not None:
            self._ticket = self._on_begin(self.upstream, self._ticket)
            self.release = partial(self._on_release, self.upstream, self._ticket)

    def settle(self, outcome: Outcome) -> None:
        """Say how the upstream did, and keep it: it may be hours until a tunnel ends."""
        if self._ticket is not None:
            ticket, self._ticket = self._ticket, None
            self.release = partial(self._on_release, self.upstream, None)
            self._on_settle(self.upstream, ticket, outcome)
