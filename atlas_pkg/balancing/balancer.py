"""Choosing an upstream for one attempt: filter, sticky, strategy, lease, under one lock.

The pick and the count are one step: whoever chooses by counts sees every pick made before. No
I/O happens under the lock, so it is held for a few microseconds.

There is one balancer for a group of upstreams, and it lives as long as the program. A reload
configures it anew (`apply`): upstreams that stay keep their counts, health and breaker, turns go on
where they were, and whoever waits in the queue is served by the new list.

Who is available changes rarely, who is chosen changes always. So the list of those available is
kept, and worked out anew only after something has happened to it (`_is_stale`) or when a breaker's
time is up (`_next_change`).
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from atlas_pkg.balancing.explain import Scene, explain
from atlas_pkg.balancing.health import HealthState
from atlas_pkg.balancing.lease import ANYWHERE, FAILURE, NOBODY, SUCCESS, Affinity, Lease, Outcome
from atlas_pkg.balancing.slow_start import MOST_SKIPPED, Ramp
from atlas_pkg.balancing.strategies import STRATEGIES, Strategy
from atlas_pkg.balancing.upstream import UNPROBED, AdminState, Upstream, identity_of
from atlas_pkg.balancing.wait_queue import Waiter, WaitQueue
from atlas_pkg.choice import Choice
from atlas_pkg.config.model import (
    DEFAULT_GROUP,
    CircuitBreaker,
    Config,
    HealthCheck,
    Routing,
    SlowStart,
    Timeouts,
    UpstreamConfig,
)
from atlas_pkg.errors import NoUpstream
from atlas_pkg.net.connect import Endpoint
from atlas_pkg.net.tls_client import NO_CLIENTS, TlsClient

log = logging.getLogger("atlas.balancing")

# Retries under way: at most this share of all requests under way, but never fewer than the minimum.
# A storm of failures then adds a fifth to the load instead of doubling it. The numbers are Envoy's.
RETRY_SHARE = 0.2
MIN_RETRIES = 3

# Addresses of host names, by name and port.
Addresses = Mapping[tuple[str, int], tuple[Endpoint, ...]]
_NO_ADDRESSES: Addresses = MappingProxyType({})


class BalancerSettings(NamedTuple):
    """What a configuration says about one group of upstreams."""

    upstreams: tuple[UpstreamConfig, ...] = ()
    routing: Routing = Routing()
    circuit_breaker: CircuitBreaker | None = None
    slow_start: SlowStart | None = None
    queue: float = Timeouts().queue  # how long somebody waits for room
    tls_clients: Mapping[str, TlsClient] = NO_CLIENTS  # who speaks TLS to whom, by name

    @classmethod
    def of(
        cls,
        config: Config,
        group: str = DEFAULT_GROUP,
        tls_clients: Mapping[str, TlsClient] = NO_CLIENTS,
    ) -> BalancerSettings:
        """Pick out what concerns one group."""
        return cls(
            tuple(upstream for upstream in config.upstreams if upstream.group == group),
            config.routing_of(group),
            config.circuit_breaker,
            config.slow_start,
            config.timeouts.queue,
            tls_clients,
        )


class Balancer:
    """Chooses among the upstreams of one group. Thread-safe, but for `apply`."""

    def __init__(
        self,
        settings: BalancerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` is from 0 to 1, for slow start."""
        self._clock = clock
        self._chance = chance
        # Guards everything below and the state of all upstreams.
        self.lock = threading.Lock()
        # Replaced as a whole, so they may be read without the lock.
        self.upstreams: tuple[Upstream, ...] = ()
        self.by_name: dict[str, Upstream] = {}
        self.in_flight = 0  # leases that are out, those of upstreams that have left included
        self._retries = 0
        self._queue = WaitQueue(self.lock, self._take, self._has_room)
        self._available: list[Upstream] | None = None  # None: not worked out yet
        self._total_weight = 0  # of those available
        self._full: list[Upstream] = []  # they would be available, had they room
        self._is_stale = True
        self._next_change = math.inf
        self._strategy: Strategy = STRATEGIES[settings.routing.strategy](())
        self._apply(settings, _NO_ADDRESSES, is_start=True)

    # Settings

    def apply(
        self, settings: BalancerSettings, addresses: Addresses = _NO_ADDRESSES
    ) -> list[Upstream]:
        """Put new settings in force; returns the upstreams that are new.

        Those that have a health check wait for their first probe, unless nobody else could serve.
        `addresses` are those of host names as far as they are known. For one thread at a time.
        """
        return self._apply(settings, addresses, is_start=False)

    def _apply(
        self, settings: BalancerSettings, addresses: Addresses, *, is_start: bool
    ) -> list[Upstream]:
        known = {upstream.identity: upstream for upstream in self.upstreams}
        listed, new = [], []
        for config in settings.upstreams:
            upstream = known.get(identity_of(config))
            if upstream is None:
                upstream = Upstream(config)
                upstream.endpoints = upstream.endpoints or addresses.get(
                    (config.address, config.port), ()
                )
                new.append(upstream)
            listed.append(upstream)
        # Before the lock is taken: a hash ring takes its time.
        strategy = STRATEGIES[settings.routing.strategy](settings.upstreams)
        with self.lock:
            for order, upstream in enumerate(listed):
                config = settings.upstreams[order]
                upstream.configure(
                    config,
                    order=order,
                    breaker=settings.circuit_breaker,
                    # One that is missing there is an error: it must not be spoken to without TLS.
                    tls=settings.tls_clients[config.name] if config.tls is not None else None,
                )
            if not is_start:
                self._await_first_probes(listed, new)
            self.upstreams = tuple(listed)
            self.by_name = {upstream.name: upstream for upstream in listed}
            self._leases = {upstream: self._lend(upstream, None) for upstream in listed}
            if type(strategy) is type(self._strategy):
                strategy.resume(self._strategy)
            self._strategy = strategy
            self._choose = strategy.choose
            self._routing = settings.routing
            self._patience = settings.queue
            duration = settings.slow_start.duration if settings.slow_start else 0.0
            self._ramp = Ramp(duration, self._clock, self._chance)
            self._has_limits = any(upstream.max_connections for upstream in listed)
            self._counts_matter = self._has_limits or strategy.wants_counts
            self._available = None
            self._changed()
        return new

    def _await_first_probes(self, listed: Sequence[Upstream], new: Sequence[Upstream]) -> None:
        """Keep what a reload adds out of rotation until a probe has passed, if others can serve."""
        for upstream in new:
            if upstream.health_check is not None:
                upstream.is_up, upstream.health_reason = False, UNPROBED
        now = self._clock()
        if any(upstream.takes_new_clients(now) for upstream in listed):
            return
        for upstream in listed:
            if upstream.health_reason == UNPROBED:
                upstream.is_up, upstream.health_reason = True, ""

    # Leases

    def lease_now(
        self,
        affinity: Affinity = ANYWHERE,
        tried: Collection[Upstream] = NOBODY,
        choices: list[Choice] | None = None,
    ) -> Lease | None:
        """Reserve an upstream for one attempt; None where all that are available are full.

        `tried` are left out, the client's own one too. Why it was chosen is added to `choices`, if
        somebody asks. Raises `NoUpstream` where nobody is available. Does not wait.
        """
        with self.lock:
            if self._queue.waiters:
                self._queue.serve()  # a breaker's time may be up, and they came first
            lease = self._take(affinity, tried, choices)
            if lease is None and not self._may_wait(affinity, tried):
                raise NoUpstream
            return lease

    def lease(
        self,
        affinity: Affinity = ANYWHERE,
        tried: Collection[Upstream] = NOBODY,
        choices: list[Choice] | None = None,
        *,
        is_gone: Callable[[], bool] | None = None,
    ) -> Lease:
        """As `lease_now`, but waits where all are full: for `timeouts.queue` at most, or until
        `is_gone` (asked now and then) says that nobody waits for the answer any more.

        Raises `NoUpstream` when time is up, `ClientGone`. Blocks.
        """
        lease = self.lease_now(affinity, tried, choices)
        if lease is not None:
            return lease
        return self._queue.wait(Waiter(affinity, tried), self._patience, is_gone)

    def _take(
        self,
        affinity: Affinity,
        tried: Collection[Upstream],
        choices: list[Choice] | None = None,
    ) -> Lease | None:
        """Choose and count; None when nobody is available with room. Caller holds the lock.

        A client that belongs to an upstream stays there; for all others the strategy decides.
        """
        if self._is_stale or (self._next_change < math.inf and self._clock() >= self._next_change):
            self._refresh()
        sticky = affinity.sticky
        skipped: Sequence[Upstream] = ()
        if sticky is not None and self._keeps(sticky, tried):
            upstream = sticky if sticky.has_room else None
        else:
            upstream = self._choose(affinity.key, tried)
            if upstream is None and tried:
                upstream = self._find_backup(tried)
            elif upstream is not None and upstream.recovered_at is not None:
                upstream, skipped = self._skip_recovering(upstream, affinity.key, tried)
        if choices is not None:
            choices.append(self._explain(upstream, skipped, affinity, tried))
        if upstream is None:
            return None
        upstream.in_flight += 1
        self.in_flight += 1
        if self._counts_matter:
            self._note(upstream)
        if upstream.breaker is None:
            return self._leases[upstream]
        now = self._clock()
        ticket = upstream.breaker.begin(now)
        if not upstream.breaker.may_try(now):
            self._is_stale = True  # half-open, and its trials are all given out
        return self._lend(upstream, ticket)

    def _lend(self, upstream: Upstream, ticket: int | None) -> Lease:
        return Lease(
            upstream,
            ticket,
            on_begin=self._note_head,
            on_release=self._release,
            on_settle=self._settle,
        )

    def _note_head(self, upstream: Upstream, ticket: int) -> int:
        """An answer has begun, which ends a trial; returns the ticket for its end."""
        breaker = upstream.breaker
        if breaker is None or breaker.reopens_at is None:
            return ticket  # the usual case, for which no lock is needed
        with self.lock:
            following = breaker.pass_head(ticket)
            has_closed = following != ticket
            if has_closed:
                self._ramp.begin(upstream, self._clock())
                self._changed()
        if has_closed:
            log.warning("upstream %s: circuit breaker closed", upstream.label)
        return following

    def _release(
        self, upstream: Upstream, ticket: int | None, outcome: Outcome = Outcome.NONE
    ) -> None:
        """A lease is given back."""
        news = ""
        with self.lock:
            upstream.in_flight -= 1
            self.in_flight -= 1
            if self._counts_matter:
                self._note(upstream)
            if ticket is not None:
                news = self._tell_breaker(upstream, ticket, outcome)
            if self._queue.waiters:
                self._queue.serve()
        if news:
            log.warning("upstream %s: %s", upstream.label, news)

    def _settle(self, upstream: Upstream, ticket: int | None, outcome: Outcome) -> None:
        """The outcome is known before the lease is given back."""
        news = ""
        with self.lock:
            if ticket is not None:
                news = self._tell_breaker(upstream, ticket, outcome)
            self._queue.serve()
        if news:
            log.warning("upstream %s: %s", upstream.label, news)

    def _tell_breaker(self, upstream: Upstream, ticket: int, outcome: Outcome) -> str:
        """Let an outcome count; returns news for the log, or nothing. Caller holds the lock."""
        breaker = upstream.breaker
        if breaker is None:
            return ""
        now = self._clock()
        could_try = breaker.may_try(now)
        news = ""
        if outcome is SUCCESS:
            if breaker.succeed(ticket):
                self._ramp.begin(upstream, now)
                news = "circuit breaker closed"
        elif outcome is FAILURE and self._has_other(upstream, now):
            if breaker.fail(ticket, now):
                news = f"circuit breaker open for {(breaker.reopens_at or now) - now:g} s"
        else:
            breaker.abandon(ticket)  # the last one available is never taken out
        self._is_stale |= could_try != breaker.may_try(now) or bool(news)
        return news

    @property
    def waiting(self) -> int:
        """How many requests are in the queue."""
        return len(self._queue.waiters)

    # The budget of retries

    def begin_retry(self) -> bool:
        """Count one more retry, if the budget allows it."""
        with self.lock:
            if self._retries >= max(MIN_RETRIES, RETRY_SHARE * self.in_flight):
                return False
            self._retries += 1
            return True

    def end_retry(self) -> None:
        """The retry is over, whatever came of it."""
        with self.lock:
            self._retries -= 1

    # What is heard about upstreams

    def note_probe(self, upstream: Upstream, state: HealthState) -> None:
        """Take note of a health check; one that was passed also closes the circuit breaker."""
        with self.lock:
            breaker = upstream.breaker
            has_closed = state.has_passed and breaker is not None and breaker.pass_probe()
            has_changed = upstream.note_health(state.is_up, state.reason)
            if has_changed or has_closed:
                if state.is_up:
                    self._ramp.begin(upstream, self._clock())
                self._changed()
        if has_closed:
            log.warning("upstream %s: circuit breaker closed by a passed probe", upstream.label)

    def set_admin_state(self, upstream: Upstream, state: AdminState) -> None:
        """Take an upstream out of rotation or back in, by an administrator's word."""
        with self.lock:
            upstream.admin_state = state
            self._changed()

    def set_weight(self, upstream: Upstream, weight: int | None) -> None:
        """Override the configured weight, or return to it (None)."""
        with self.lock:
            upstream.weight_override = weight
            self._available = None  # perhaps the same ones, but with other weights
            self._changed()

    def health_checks(self) -> list[tuple[Upstream, HealthCheck]]:
        """The upstreams that are to be probed, and how."""
        return [(one, one.health_check) for one in self.upstreams if one.health_check is not None]

    # From here on the caller holds the lock.

    def _changed(self) -> None:
        """Something about an upstream is different."""
        self._is_stale = True
        self._queue.serve()

    def _refresh(self) -> None:
        """Work out who is available."""
        now = self._clock()
        usable = [upstream for upstream in self.upstreams if upstream.takes_new_clients(now)]
        usable = [upstream for upstream in usable if not upstream.is_backup] or usable
        available = [upstream for upstream in usable if upstream.has_room]
        self._full = [upstream for upstream in usable if not upstream.has_room]
        if available != self._available:
            self._available = available
            self._total_weight = sum(upstream.weight for upstream in available)
            self._strategy.prepare(available)
        breakers = (upstream.breaker for upstream in self.upstreams)
        reopening = (breaker.reopens_at for breaker in breakers if breaker is not None)
        self._next_change = min(
            (instant for instant in reopening if instant is not None and instant > now),
            default=math.inf,
        )
        self._is_stale = False

    def _has_room(self) -> bool:
        """Is an upstream available, with room, for a client that belongs to none yet?"""
        if self._is_stale or (self._next_change < math.inf and self._clock() >= self._next_change):
            self._refresh()
        return bool(self._available)

    def _may_wait(self, affinity: Affinity, tried: Collection[Upstream]) -> bool:
        """Is it worth waiting: is an upstream that could serve it only full?"""
        if affinity.sticky is not None and self._keeps(affinity.sticky, tried):
            return True
        return any(upstream not in tried for upstream in self._full)

    def _keeps(self, upstream: Upstream, tried: Collection[Upstream]) -> bool:
        """Does a client that belongs to `upstream` stay with it? Weight 0 and drain keep it."""
        is_listed = self.by_name.get(upstream.name) is upstream
        return is_listed and upstream not in tried and upstream.is_alive(self._clock())

    def _has_other(self, upstream: Upstream, now: float) -> bool:
        return any(
            other.takes_new_clients(now) for other in self.upstreams if other is not upstream
        )

    def _skip_recovering(
        self, first: Upstream, key: bytes, tried: Collection[Upstream]
    ) -> tuple[Upstream, Sequence[Upstream]]:
        """Choose again where `first` starts slowly; returns the choice and those passed over."""
        upstream: Upstream | None = first
        skipped: list[Upstream] = []
        while upstream is not None and len(skipped) < MOST_SKIPPED:
            # Where counts decide, a slow starter is the least loaded and so comes up every time.
            by_load = self._strategy.wants_counts
            part = upstream.weight / self._total_weight if by_load else 1.0
            if not self._ramp.skips(upstream, part):
                return upstream, skipped
            skipped.append(upstream)
            upstream = self._choose(key, {*tried, *skipped})
        return first, ()  # all are to be skipped, so none is

    def _find_backup(self, tried: Collection[Upstream]) -> Upstream | None:
        """Who steps in for a request for which all others have failed, and none is merely full."""
        if any(upstream not in tried for upstream in self._full):
            return None
        now = self._clock()
        free = [
            upstream
            for upstream in self.upstreams
            if upstream.is_backup
            and upstream not in tried
            and upstream.takes_new_clients(now)
            and upstream.has_room
        ]
        return min(free, key=lambda upstream: upstream.load, default=None)

    def _note(self, upstream: Upstream) -> None:
        """Requests in flight to `upstream` have changed by one."""
        if self._strategy.wants_counts:
            self._strategy.note(upstream)
        # Full now, or full until now?
        if upstream.max_connections and 0 <= upstream.max_connections - upstream.in_flight <= 1:
            self._is_stale = True

    def _explain(
        self,
        chosen: Upstream | None,
        skipped: Sequence[Upstream],
        affinity: Affinity,
        tried: Collection[Upstream],
    ) -> Choice:
        scene = Scene(
            name=self._routing.strategy,
            strategy=self._strategy,
            upstreams=self.upstreams,
            available=self._available or (),
            affinity=affinity,
            tried=tried,
            is_kept=affinity.sticky is not None and self._keeps(affinity.sticky, tried),
            now=self._clock(),
        )
        waits = chosen is None and self._may_wait(affinity, tried)
        return explain(scene, chosen, skipped, waits=waits)
