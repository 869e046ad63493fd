"""What a strategy is, and the names by which the configuration knows them.

A strategy sees only the upstreams that are available and have room. `prepare` tells it who they
are whenever that changes; `choose` is called for every request and has to be quick with a thousand
upstreams as well. One that looks at requests in flight is told of every change (`note`).

To add one: a file in this folder with a class under `@strategy("name")`, written as it stands here.
The package imports every file, and the configuration reads the names out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, Self, TypeVar

from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import UpstreamConfig


class Strategy(Protocol):
    """A way to choose. Caller holds the balancer's lock, except for making one."""

    # Must `note` be called?
    wants_counts: bool

    def resume(self, previous: Self) -> None:
        """Go on from where `previous` has come to: a reload must not begin the turns anew."""

    def prepare(self, upstreams: Sequence[Upstream]) -> None:
        """Take note of the upstreams to choose from, in the order of the file."""

    def choose(self, key: bytes, tried: Collection[Upstream], /) -> Upstream | None:
        """Pick one for the client identified by `key`; None if all have been tried.

        Equal keys land together where the strategy promises it. `tried` are to be left out this
        once, since they have failed or start slowly; it is nearly always empty.
        """

    def note(self, upstream: Upstream) -> None:
        """Its requests in flight have changed."""

    def score(self, upstream: Upstream, /) -> str:
        """Say in a few words what spoke for `upstream` in the choice just made. Changes nothing."""


# Makes a strategy for what the file lists, available or not. May take long: the balancer makes it
# before it takes its lock.
Maker = Callable[[Sequence[UpstreamConfig]], Strategy]

AnyMaker = TypeVar("AnyMaker", bound=Maker)

STRATEGIES: dict[str, Maker] = {}


def strategy(name: str) -> Callable[[AnyMaker], AnyMaker]:
    """Register a class or a function as the maker of the strategy that the file calls `name`."""

    def register(make: AnyMaker) -> AnyMaker:
        STRATEGIES[name] = make
        return make

    return register
