"""The circuit breaker of one upstream: should we even try?

*Closed* lets every attempt through and counts failures in a row. So many of them *open* it: nobody
is sent there for a while. Then it is *half-open*: a few attempts are let through as trials. One
that succeeds closes the breaker; one that fails opens it again for twice as long, up to a limit.
A trial need not be over for that: the head of its answer closes the breaker, since its body may be
a stream without an end. Only a request that succeeds to its end also ends the doubling: a passed
probe closes the breaker as well, but probes ask for one path, and that one may work while the
others fail.

Attempts are under way while all that happens. A result counts only if nothing was decided since
its attempt began, so `begin` hands out the number of the present *round*, and every opening and
closing begins a new one. Five requests that wait on a dead upstream open its breaker once, and what
an attempt of before the opening brings home late neither closes it nor opens it for longer.

The breaker has no clock, no lock and no log: time is an argument, and the caller holds the
balancer's lock.
"""

from __future__ import annotations

import enum

from atlas_pkg.config.model import CircuitBreaker

# What `begin` hands out for an attempt that the breaker advised against: no round has it.
_NO_ROUND = -1

# Doublings beyond these change nothing: they go from a millisecond to centuries.
_MOST_DOUBLINGS = 64


class BreakerState(enum.Enum):
    """What the breaker lets through: everything, nothing, a few trials."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """One upstream's circuit breaker. Caller holds the balancer's lock, for every method."""

    __slots__ = ("_doublings", "_failures", "_reopens_at", "_round", "_settings", "_trials")

    def __init__(self, settings: CircuitBreaker) -> None:
        self._settings = settings
        self._round = 0
        self._failures = 0  # in a row, while closed
        self._trials = 0  # under way in this round, while half-open
        self._doublings = 0  # how often it opened since a request last succeeded
        self._reopens_at: float | None = None

    @property
    def reopens_at(self) -> float | None:
        """From when on trials are let through; None while the breaker is closed."""
        return self._reopens_at

    def state(self, now: float) -> BreakerState:
        """Say what the breaker lets through at `now`."""
        if self._reopens_at is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._reopens_at else BreakerState.HALF_OPEN

    def may_try(self, now: float) -> bool:
        """Would an attempt be let through at `now`? Changes nothing."""
        if self._reopens_at is None:
            return True
        return now >= self._reopens_at and self._trials < self._settings.half_open_requests

    def begin(self, now: float) -> int:
        """Take note of an attempt; returns its round, to be handed in with the result.

        Each attempt ends with exactly one of `succeed`, `fail` and `abandon`. The result of one
        that was made although `may_try` said no counts for nothing.
        """
        if not self.may_try(now):
            return _NO_ROUND
        if self._reopens_at is not None:
            self._trials += 1
        return self._round

    def succeed(self, began_in: int) -> bool:
        """Take note of a success; returns whether it closed the breaker."""
        if began_in != self._round:
            return False
        self._doublings = 0
        self._failures = 0
        return self._close()

    def fail(self, began_in: int, now: float) -> bool:
        """Take note of a failure; returns whether it opened the breaker."""
        if began_in != self._round:
            return False
        self._failures += 1
        if self._reopens_at is None and self._failures < self._settings.failures:
            return False
        duration = self._settings.open_for * 2.0**self._doublings
        self._doublings = min(self._doublings + 1, _MOST_DOUBLINGS)
        self._begin_round(now + min(duration, self._settings.max_open_for))
        return True

    def pass_head(self, began_in: int) -> int:
        """Take note that an answer has begun: a trial has passed, and closes the breaker.

        Returns the round in which the attempt's end counts.
        """
        if began_in == self._round and self._close():
            return self._round
        return began_in

    def abandon(self, began_in: int) -> None:
        """Take note that an attempt ended without a verdict, by the client's fault for one."""
        if began_in == self._round and self._reopens_at is not None:
            self._trials -= 1

    def pass_probe(self) -> bool:
        """Take note of a passed health check; returns whether it closed the breaker."""
        return self._close()

    def reconfigure(self, settings: CircuitBreaker) -> None:
        """Go on with new settings; a breaker that is open stays so for the time it was given."""
        self._settings = settings

    def _close(self) -> bool:
        if self._reopens_at is None:
            return False
        self._begin_round(None)
        return True

    def _begin_round(self, reopens_at: float | None) -> None:
        self._reopens_at = reopens_at
        self._round += 1
        self._failures = 0
        self._trials = 0
