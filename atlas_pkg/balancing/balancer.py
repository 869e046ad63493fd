"""Choosing an upstream for one attempt: filter, sticky, strategy, lease, under one lock.

The pick and the count are one step: whoever chooses by counts sees every pick made before. No
I/O happens under the lock, so it is held for a few microseconds.

A balancer belongs to one configuration. The next one takes over its `Upstream` objects and its
`Ledger`: the lock, the counts and the queue are shared, since requests of both configurations are
under way at the same time.

Who is available changes rarely, who is chosen changes always. So the list of available members is
kept, and worked out anew only after something has happened to it (`_is_stale`) or when a breaker's
time is up (`_next_change`).
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable

from atlas_pkg.balancing.explaining import Explainer
from atlas_pkg.balancing.lease import ANY, Lease, Ledger, Outcome, Waiter, Wish
from atlas_pkg.balancing.member import START, Member, Position
from atlas_pkg.balancing.recovery import MOST_SPARED, Recovery
from atlas_pkg.balancing.strategies import STRATEGIES, Strategy
from atlas_pkg.balancing.upstream import AdminState, Upstream, identity_of
from atlas_pkg.balancing.verdict import Verdict
from atlas_pkg.choice import Choice
from atlas_pkg.config.model import Config, HealthCheck
from atlas_pkg.errors import NoUpstream

log = logging.getLogger("atlas.balancing")


class Balancer:
    """Chooses among the upstreams of one configuration. Thread-safe."""

    def __init__(
        self,
        config: Config,
        previous: Balancer | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Build it; it chooses once `activate` has put it in force."""
        self._config = config
        self._clock = clock
        duration = config.slow_start.duration if config.slow_start else 0.0
        self._recovery = Recovery(duration, clock, chance)
        # Its lock guards everything below, too.
        self.ledger: Ledger = previous.ledger if previous else Ledger()
        known = {upstream.identity: upstream for upstream in previous.upstreams} if previous else {}
        self._members = tuple(
            Member(known.get(identity_of(item)) or Upstream(item), item, order)
            for order, item in enumerate(config.upstreams)
        )
        self.upstreams: tuple[Upstream, ...] = tuple(member.upstream for member in self._members)
        self.by_name = {upstream.name: upstream for upstream in self.upstreams}
        self._member_of = {member.upstream: member for member in self._members}
        self.new = [item for item in self.upstreams if previous and item.identity not in known]
        self._has_limits = any(member.max_connections for member in self._members)
        self._available: list[Member] | None = None  # None: not worked out yet
        self._total_weight = 0  # of those available
        self._full: list[Upstream] = []  # they would be available, had they room
        self._is_stale = True
        self._next_change = math.inf
        with self.ledger.lock:
            position = previous.position if previous else START
        self._strategy: Strategy = STRATEGIES[config.routing.strategy](position, self._members)
        self._counts_matter = self._has_limits or self._strategy.wants_counts
        self._explainer = Explainer(config.routing.strategy, self._members, self._strategy)
        if previous is None:
            self.activate()

    @property
    def position(self) -> Position:
        """How far the turns have come. Caller holds the lock."""
        return self._strategy.position

    def activate(self) -> None:
        """Put this balancer in force: from now on every lease is its choice."""
        with self.ledger.lock:
            for upstream, item in zip(self.upstreams, self._config.upstreams, strict=True):
                upstream.adopt(item, self._config.circuit_breaker, is_new=upstream in self.new)
            self.ledger.chooser = self
            self._is_stale = True
            self.ledger.serve_queue()

    def lease_now(self, wish: Wish = ANY) -> Lease | None:
        """Reserve an upstream for one attempt; None where it takes waiting for a place.

        Raises `NoUpstream` where nobody is available.
        """
        ledger = self.ledger
        with ledger.lock:
            # The newest list counts, also for a request that began under an older one.
            chooser = ledger.chooser or self
            if ledger.queue:
                ledger.serve_queue()  # a breaker's time may be up, and they came first
            lease = chooser.take(wish)
            if lease is None and not chooser.may_wait(wish):
                raise NoUpstream
            return lease

    def lease(self, wish: Wish = ANY, *, is_gone: Callable[[], bool] | None = None) -> Lease:
        """Reserve an upstream for one attempt; raises `NoUpstream`.

        Blocks only where all that are available are full: then for `timeouts.queue` at most, or
        until `is_gone` (asked now and then) says that nobody waits for the answer any more.
        """
        lease = self.lease_now(wish)
        if lease is not None:
            return lease
        waiter = Waiter(wish)
        with self.ledger.lock:
            self.ledger.queue.append(waiter)
            self.ledger.serve_queue()  # a place may have become free since
        return self.ledger.wait(waiter, self._config.timeouts.queue, is_gone)

    def lease_explained(self, wish: Wish = ANY) -> tuple[Lease | None, Choice]:
        """As `lease_now`, and why. Without a lease, `Choice.waits` is empty where nobody is
        available: then nothing is raised, so that the account is not lost."""
        ledger = self.ledger
        with ledger.lock:
            chooser = ledger.chooser or self
            if ledger.queue:
                ledger.serve_queue()
            return chooser.take_explained(wish)

    def take(self, wish: Wish) -> Lease | None:
        """Choose and count; None when nobody is available with room. Caller holds the lock."""
        if self._is_stale or (self._next_change < math.inf and self._clock() >= self._next_change):
            self._refresh()
        upstream = self._pick(wish)
        if upstream is None:
            return None
        upstream.in_flight += 1
        self.ledger.in_flight += 1
        if self._counts_matter:
            self._note(upstream)
        if upstream.breaker is None:
            return Lease(self.ledger, upstream)
        now = self._clock()
        ticket = upstream.breaker.begin(now)
        if not upstream.breaker.may_try(now):
            self._is_stale = True  # half-open, and its trials are all given out
        return Lease(self.ledger, upstream, ticket)

    def take_explained(self, wish: Wish) -> tuple[Lease | None, Choice]:
        """As `take`, and why. Caller holds the lock."""
        self.has_room()  # brings the list of those available up to date
        account = self._explainer.look(self._available or (), wish, self._clock())
        lease = self.take(wish)
        chosen = None if lease is None else lease.upstream
        return lease, account.conclude(chosen, waits=chosen is None and self.may_wait(wish))

    def has_room(self) -> bool:
        """Could anybody serve a client that belongs nowhere yet? Caller holds the lock."""
        if self._is_stale or (self._next_change < math.inf and self._clock() >= self._next_change):
            self._refresh()
        return bool(self._available)

    def may_wait(self, wish: Wish) -> bool:
        """Is there somebody for it who is merely full? Caller holds the lock."""
        if wish.sticky is not None and self._keeps(wish.sticky):
            return True
        return any(upstream not in wish.excluded for upstream in self._full)

    def note_end(self, upstream: Upstream, ticket: int | None, outcome: Outcome) -> str:
        """An attempt has ended; returns news for the log. Caller holds the lock."""
        if self._counts_matter:
            self._note(upstream)
        breaker = upstream.breaker
        if breaker is None or ticket is None:
            return ""
        now = self._clock()
        could_try = breaker.may_try(now)
        news = ""
        if outcome is Outcome.SUCCESS:
            if breaker.succeed(ticket):
                self._recovery.begin(upstream, now)
                news = "circuit breaker closed"
        elif outcome is Outcome.FAILURE and self._has_other(upstream, now):
            if breaker.fail(ticket, now):
                news = f"circuit breaker open for {(breaker.reopens_at or now) - now:g} s"
        else:
            breaker.abandon(ticket)  # the last one available is never taken out
        self._is_stale |= could_try != breaker.may_try(now) or bool(news)
        return news

    def note_probe(self, upstream: Upstream, verdict: Verdict) -> None:
        """Take note of a health check; one that was passed also closes the circuit breaker."""
        with self.ledger.lock:
            breaker = upstream.breaker
            has_closed = verdict.has_passed and breaker is not None and breaker.pass_probe()
            has_changed = upstream.note_health(verdict.is_up, verdict.reason)
            if has_changed or has_closed:
                if verdict.is_up:
                    self._recovery.begin(upstream, self._clock())
                self._changed()
        if has_closed:
            log.warning("upstream %s: circuit breaker closed by a passed probe", upstream.name)

    def set_admin_state(self, upstream: Upstream, state: AdminState) -> None:
        """Take an upstream out of rotation or back in, by an administrator's word."""
        with self.ledger.lock:
            upstream.admin_state = state
            self._changed()

    def set_weight(self, upstream: Upstream, weight: int | None) -> None:
        """Override the configured weight, or return to it (None)."""
        with self.ledger.lock:
            upstream.weight_override = weight
            self._available = None  # the same members, but with other weights
            self._changed()

    def health_checks(self) -> list[tuple[Upstream, HealthCheck]]:
        """The upstreams that are to be probed, and how."""
        pairs = zip(self.upstreams, self._config.upstreams, strict=True)
        return [(upstream, item.health_check) for upstream, item in pairs if item.health_check]

    def describe(self) -> list[str]:
        """A line about every upstream, for the log."""
        with self.ledger.lock:
            return [member.describe(self._clock()) for member in self._members]

    def _changed(self) -> None:
        """Something about an upstream is different. Caller holds the lock."""
        self._is_stale = True
        self.ledger.serve_queue()

    def _pick(self, wish: Wish) -> Upstream | None:
        """Sticky first, then the strategy. Caller holds the lock."""
        if wish.sticky is not None and self._keeps(wish.sticky):
            return wish.sticky if self._member_of[wish.sticky].has_room else None
        if not self._available:
            return None
        upstream = self._strategy.choose(wish.key, wish.excluded)
        if upstream is None or upstream.recovered_at is None:
            return upstream
        first, excluded = upstream, set(wish.excluded)
        for _ in range(MOST_SPARED):
            if not self._is_spared(upstream):
                return upstream
            excluded.add(upstream)
            upstream = self._strategy.choose(wish.key, excluded)
            if upstream is None:
                break
        return first  # all are to be spared, so none is

    def _is_spared(self, upstream: Upstream) -> bool:
        # Where counts decide, it is the least loaded of all and comes up every time.
        counts = self._strategy.wants_counts
        part = self._member_of[upstream].weight / self._total_weight if counts else 1.0
        return self._recovery.is_spared(upstream, part)

    def _keeps(self, upstream: Upstream) -> bool:
        """Does a client that belongs to `upstream` stay with it? Weight 0 and drain keep it."""
        member = self._member_of.get(upstream)
        return member is not None and member.is_alive(self._clock())

    def _has_other(self, upstream: Upstream, now: float) -> bool:
        others = (member for member in self._members if member.upstream is not upstream)
        return any(member.takes_new_clients(now) for member in others)

    def _note(self, upstream: Upstream) -> None:
        """Requests in flight to `upstream` have changed by one. Caller holds the lock."""
        if self._strategy.wants_counts:
            self._strategy.note(upstream)
        if not self._has_limits:
            return
        member = self._member_of.get(upstream)
        if member is None or not member.max_connections:
            return
        if 0 <= member.max_connections - upstream.in_flight <= 1:  # full now, or full until now
            self._is_stale = True

    def _refresh(self) -> None:
        """Work out who is available. Caller holds the lock."""
        now = self._clock()
        usable = [member for member in self._members if member.takes_new_clients(now)]
        usable = [member for member in usable if not member.is_backup] or usable
        available = [member for member in usable if member.has_room]
        self._full = [member.upstream for member in usable if not member.has_room]
        if available != self._available:
            self._available = available
            self._total_weight = sum(member.weight for member in available)
            self._strategy.prepare(available)
        breakers = (member.upstream.breaker for member in self._members)
        reopening = (breaker.reopens_at for breaker in breakers if breaker is not None)
        self._next_change = min(
            (instant for instant in reopening if instant is not None and instant > now),
            default=math.inf,
        )
        self._is_stale = False
