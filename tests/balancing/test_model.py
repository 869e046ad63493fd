"""The balancer against a model of it: whatever happens, in whatever order, its promises hold.

Hypothesis makes up stories: upstreams fail and recover, administrators and reloads come between,
requests begin, wait and end. The model knows in plain lists who is listed, what is in flight and
who waits; before each choice it works out who may be chosen. A breaker's own state is taken as it
is, since `test_breaker.py` has a model of that.

Nothing runs in threads here: a request that has to wait is put aside (`Aside`) and taken up again
when it has been served, or has lost patience.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck as Check
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from atlas_pkg.balancing.balancer import Balancer, BalancerSettings
from atlas_pkg.balancing.breaker import BreakerState
from atlas_pkg.balancing.health import HealthState
from atlas_pkg.balancing.lease import Affinity, Lease, Outcome
from atlas_pkg.balancing.strategies import STRATEGIES
from atlas_pkg.balancing.upstream import UNPROBED, AdminState, Identity, Upstream
from atlas_pkg.balancing.wait_queue import Waiter, WaitQueue
from atlas_pkg.choice import Choice
from atlas_pkg.config.model import CircuitBreaker, HealthCheck, SlowStart, UpstreamConfig
from atlas_pkg.errors import NoUpstream
from tests.balancing.samples import Clock, build_config, build_settings, seed

NAMES = "abcd"

Tried = Collection[Upstream]
HASHES = {"ip_hash", "consistent_hash"}


class Aside(Exception):
    """A request has to wait."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        super().__init__()


class PatientQueue(WaitQueue):
    """A queue in which nobody blocks: it says who waits."""

    def stay(self, waiter: Waiter, _: float, __: Callable[[], bool] | None) -> Lease:
        raise Aside(waiter)

    def take_up(self, waiter: Waiter, patience: float) -> Lease:
        return super().stay(waiter, patience, None)


@dataclass
class Open:
    """A lease that is out."""

    lease: Lease
    upstream: Upstream


Entries = st.builds(
    build_config,
    st.just("?"),
    st.sampled_from([1, 1, 2, 3, 0]),
    port=st.sampled_from([80, 80, 80, 81]),
    max_connections=st.sampled_from([0, 0, 1, 2]),
    backup=st.sampled_from([False, False, True]),
    health_check=st.sampled_from([None, None, HealthCheck()]),
)
Breakers = st.sampled_from(
    [
        CircuitBreaker(failures=1, open_for=10.0, half_open_requests=1),
        None,
        CircuitBreaker(failures=2, open_for=5.0, half_open_requests=2),
    ]
)


@dataclass(frozen=True)
class Plan:
    """What differs between configurations; shorter to print than a whole one."""

    upstreams: tuple[UpstreamConfig, ...]
    breaker: CircuitBreaker | None
    is_slow: bool

    def build(self, strategy: str) -> BalancerSettings:
        slow_start = SlowStart(20.0) if self.is_slow and strategy not in HASHES else None
        return build_settings(
            *self.upstreams,
            strategy=strategy,
            circuit_breaker=self.breaker,
            slow_start=slow_start,
        )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    names = draw(st.permutations(NAMES))[: draw(st.sampled_from([2, 3, 1, 4, 0]))]
    upstreams = tuple(replace(draw(Entries), name=name) for name in names)
    return Plan(upstreams, draw(Breakers), draw(st.booleans()))


class Model(RuleBasedStateMachine):
    """Stories about one balancer and its reloads."""

    strategy = ""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.dice = random.Random(1)
        self.open: list[Open] = []
        self.waiting: list[Waiter] = []  # in the order of arrival
        self.known: dict[Identity, Upstream] = {}  # all that ever were
        self.places: dict[object, Upstream] = {}

    # What the model knows

    def entries(self) -> dict[Upstream, UpstreamConfig]:
        return dict(zip(self.balancer.upstreams, self.settings.upstreams, strict=True))

    def weight(self, upstream: Upstream) -> int:
        override = upstream.weight_override
        return self.entries()[upstream].weight if override is None else override

    def in_flight(self, upstream: Upstream) -> int:
        return sum(entry.upstream is upstream for entry in self.open) + sum(
            waiter.lease is not None and waiter.lease.upstream is upstream
            for waiter in self.waiting
        )

    def is_alive(self, upstream: Upstream) -> bool:
        if upstream not in self.entries() or not upstream.is_up:
            return False
        if upstream.admin_state is AdminState.MAINTENANCE:
            return False
        return upstream.breaker is None or upstream.breaker.may_try(self.clock.now)

    def usable(self, *, backups: bool = False) -> list[Upstream]:
        """All that new clients may be sent to, were there room; `backups`: those in any case."""
        found = [
            upstream
            for upstream in self.entries()
            if self.is_alive(upstream)
            and upstream.admin_state is AdminState.READY
            and self.weight(upstream) > 0
        ]
        ordinary = [up for up in found if not self.entries()[up].backup]
        return found if backups or not ordinary else ordinary

    def has_room(self, upstream: Upstream) -> bool:
        limit = self.entries()[upstream].max_connections
        return limit == 0 or self.in_flight(upstream) < limit

    def suits(self, affinity: Affinity, tried: Tried) -> list[Upstream]:
        """Who may serve this client now."""
        if (own := self.own(affinity, tried)) is not None:
            return [own] if self.has_room(own) else []
        untried = [up for up in self.usable() if up not in tried]
        if tried and not untried:
            untried = [up for up in self.usable(backups=True) if up not in tried]
        return [up for up in untried if self.has_room(up)]

    def own(self, affinity: Affinity, tried: Tried) -> Upstream | None:
        """The upstream that this client belongs to and has to be sent to."""
        sticky = affinity.sticky
        if sticky is None or sticky in tried or not self.is_alive(sticky):
            return None
        return sticky

    def might_suit(self, affinity: Affinity, tried: Tried) -> bool:
        """Is there somebody for this client who is merely full?"""
        if self.own(affinity, tried) is not None:
            return True
        return any(upstream not in tried for upstream in self.usable())

    def is_recovering(self) -> bool:
        return any(upstream.recovered_at is not None for upstream in self.entries())

    def pick(self, draw: st.DataObject) -> Upstream:
        return draw.draw(st.sampled_from(self.balancer.upstreams))

    # What happens

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.settings = data.draw(plans()).build(self.strategy)
        self.balancer = Balancer(self.settings, clock=self.clock, chance=self.dice.random)
        seed(self.balancer, self.dice)
        balancer = self.balancer
        self.queue = PatientQueue(balancer.lock, balancer._take, balancer._has_room)
        balancer._queue = self.queue
        self.note_upstreams()
        assert all(upstream.is_up for upstream in balancer.upstreams)

    def note_upstreams(self) -> None:
        for upstream in self.balancer.upstreams:
            self.known[upstream.identity] = upstream

    @rule(data=st.data())
    def reload(self, data: st.DataObject) -> None:
        listed_before = {upstream.identity for upstream in self.balancer.upstreams}
        awaited_before = {up for up in self.balancer.upstreams if up.health_reason == UNPROBED}
        before = self.granted()
        self.settings = data.draw(plans()).build(self.strategy)
        new = self.balancer.apply(self.settings)
        seed(self.balancer, self.dice)
        self.note_upstreams()
        self.places.clear()
        assert {up.identity for up in new} == self.entries_of_identity() - listed_before
        awaited = [
            up
            for up, entry in self.entries().items()
            if entry.health_check is not None and (up in new or up in awaited_before)
        ]
        others = [up for up in self.usable() if up not in awaited]
        for upstream, entry in self.entries().items():
            if entry.health_check is None:
                assert upstream.is_up
            elif upstream in awaited and not self.has_trials():
                assert upstream.is_up == (not others)
            assert (upstream.breaker is None) == (self.settings.circuit_breaker is None)
        self.check_queue(before)

    def entries_of_identity(self) -> set[Identity]:
        return {upstream.identity for upstream in self.entries()}

    def has_trials(self) -> bool:
        """Is a breaker half-open? Then whether it let somebody through is hard to tell afterwards:
        somebody in the queue may have taken the trial with the reload."""
        return any(
            up.is_up
            and up.admin_state is AdminState.READY
            and self.weight(up) > 0
            and up.breaker is not None
            and up.breaker.state(self.clock.now) is BreakerState.HALF_OPEN
            for up in self.entries()
        )

    @rule(
        key=st.sampled_from([b"", b"x", b"y", b"z"]),
        is_retry=st.booleans(),
        is_sticky=st.booleans(),
        explains=st.booleans(),
        data=st.data(),
    )
    def ask(
        self, key: bytes, is_retry: bool, is_sticky: bool, explains: bool, data: st.DataObject
    ) -> None:
        known = list(self.known.values())
        sticky = data.draw(st.sampled_from(known)) if is_sticky and known else None
        tried = data.draw(st.lists(st.sampled_from(known), max_size=2)) if known else []
        choices: list[Choice] | None = [] if explains else None
        self.ask_for(Affinity(key, sticky), tuple(tried) if is_retry else (), choices)

    def ask_for(self, affinity: Affinity, tried: Tried, choices: list[Choice] | None) -> None:
        before = self.granted()
        self.serve_those_whose_time_has_come(before)
        before = self.granted()
        suits, might_suit = self.suits(affinity, tried), self.might_suit(affinity, tried)
        chosen = ""
        try:
            lease = self.balancer.lease(affinity, tried, choices)
        except NoUpstream:
            assert not suits
            assert not might_suit
        except Aside as aside:
            assert not suits
            assert might_suit
            self.waiting.append(aside.waiter)
        else:
            chosen = lease.upstream.name
            assert lease.upstream in suits
            self.check_choice(affinity, tried, lease.upstream, suits)
            self.check_nobody_was_passed_over(lease.upstream, self.waiting)
            self.open.append(Open(lease, lease.upstream))
        if choices is not None:
            (choice,) = choices
            assert (choice.chosen, bool(choice.waits)) == (chosen, not suits and might_suit)
            named = [candidate.name for candidate in choice.candidates]
            assert sorted(named) == sorted(up.name for up in self.balancer.upstreams)
        assert self.granted() == before

    def check_choice(
        self, affinity: Affinity, tried: Tried, chosen: Upstream, suits: list[Upstream]
    ) -> None:
        """What the strategy promises. `suits` were the candidates, counts are as before."""
        is_stand_in = chosen not in self.usable()
        if chosen is affinity.sticky or is_stand_in or self.is_recovering():
            return
        loads = {up: self.in_flight(up) / self.weight(up) for up in suits}
        if self.strategy == "least_connections":
            assert loads[chosen] == min(loads.values())
        elif self.strategy == "ip_hash":
            names = frozenset(upstream.name for upstream in suits)
            assert self.places.setdefault((affinity.key, names), chosen) is chosen
        elif self.strategy == "consistent_hash" and not tried:
            total = sum(self.in_flight(upstream) for upstream in suits) + 1
            mean = total / sum(self.weight(upstream) for upstream in suits)
            assert self.in_flight(chosen) < math.ceil(1.25 * mean * self.weight(chosen))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), first=st.sampled_from([None, *Outcome]))
    def end(self, data: st.DataObject, outcome: Outcome, first: Outcome | None) -> None:
        index = data.draw(st.integers(0, len(self.open) - 1))
        lease = self.open[index].lease
        had_somebody = bool(self.usable())
        if first is not None and lease.upstream.identity[2] == 81:  # as tunnels do
            lease.settle(first)
            assert self.usable() or not had_somebody, "the breaker took out the last one"
        before = self.granted()
        del self.open[index]
        lease.release(outcome)
        if not self.has_new_grants(before):  # a trial may have been given out at once
            assert self.usable() or not had_somebody, "the breaker took out the last one"
        self.check_queue(before)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def take_up(self, data: st.DataObject) -> None:
        """Somebody who waited goes on, or has lost patience."""
        waiter = data.draw(st.sampled_from(self.waiting))
        lease, before = waiter.lease, self.granted() - {waiter}
        self.waiting.remove(waiter)
        if lease is None:
            with pytest.raises(NoUpstream):
                self.queue.take_up(waiter, 0.0)
        elif data.draw(st.booleans()):
            assert self.queue.take_up(waiter, 10.0) is lease
            self.open.append(Open(lease, lease.upstream))
        else:  # served at the very moment that it gave up
            with pytest.raises(NoUpstream):
                self.queue.take_up(waiter, 0.0)
        self.serve_those_whose_time_has_come(before)  # no event tells of it

    @rule(data=st.data(), is_up=st.booleans(), has_passed=st.booleans())
    @precondition(lambda self: self.balancer.upstreams)
    def probe(self, data: st.DataObject, is_up: bool, has_passed: bool) -> None:
        upstream = self.pick(data)
        if self.entries()[upstream].health_check is None:
            return
        before = self.granted()
        state = HealthState(is_up, is_up != upstream.is_up, has_passed, "")
        self.balancer.note_probe(upstream, state)
        assert upstream.is_up == is_up
        self.check_queue(before)

    @rule(data=st.data(), state=st.sampled_from(AdminState))
    @precondition(lambda self: self.balancer.upstreams)
    def steer(self, data: st.DataObject, state: AdminState) -> None:
        before = self.granted()
        self.balancer.set_admin_state(self.pick(data), state)
        self.check_queue(before)

    @rule(data=st.data(), weight=st.sampled_from([None, 0, 1, 5]))
    @precondition(lambda self: self.balancer.upstreams)
    def weigh(self, data: st.DataObject, weight: int | None) -> None:
        before = self.granted()
        self.balancer.set_weight(self.pick(data), weight)
        self.check_queue(before)

    @rule(seconds=st.sampled_from([0.1, 5.0, 10.0, 30.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.now += seconds

    def serve_those_whose_time_has_come(self, before: set[Waiter]) -> None:
        """What a waiter does now and then: a breaker's time may be up."""
        with self.balancer.lock:
            self.queue.serve()
        self.check_queue(before)

    @rule()
    def cycle(self) -> None:
        """A cycle of turns is exact, once those that were skipped have caught up."""
        if self.is_recovering() or self.waiting or self.strategy not in TURNS:
            return
        usable = [upstream for upstream in self.usable() if self.has_room(upstream)]
        if any(up.breaker and up.breaker.reopens_at is not None for up in usable):
            return
        expected = Counter(
            {up.name: self.weight(up) if "weighted" in self.strategy else 1 for up in usable}
        )
        names = []
        for _ in range(2 * expected.total()):
            lease = self.balancer.lease()
            names.append(lease.upstream.name)
            lease.release()
        assert Counter(names[expected.total() :]) == expected

    # What holds at any time

    def granted(self) -> set[Waiter]:
        return {waiter for waiter in self.waiting if waiter.lease is not None}

    def has_new_grants(self, before: set[Waiter]) -> bool:
        return bool(self.granted() - before)

    def check_queue(self, before: set[Waiter]) -> None:
        """Whoever has been served since came before those who might have been, too."""
        for waiter in self.granted() - before:
            assert waiter.lease is not None
            index = self.waiting.index(waiter)
            self.check_nobody_was_passed_over(waiter.lease.upstream, self.waiting[:index])
        for waiter in self.waiting:
            assert waiter.lease is not None or not self.suits(waiter.affinity, waiter.tried), (
                "room, and a waiter"
            )

    def check_nobody_was_passed_over(self, taken: Upstream, earlier: list[Waiter]) -> None:
        for waiter in earlier:
            if waiter.lease is None and self.own(waiter.affinity, waiter.tried) is None:
                assert taken in waiter.tried or not self.was_usable(taken)

    def was_usable(self, taken: Upstream) -> bool:
        """Might a new client have got what has just been taken?"""
        breaker = taken.breaker
        if breaker is not None and breaker.state(self.clock.now) is BreakerState.HALF_OPEN:
            return False  # its trials may be given out by now: who can tell
        return taken in self.usable()

    @invariant()
    def counts_are_right(self) -> None:
        for upstream in self.known.values():
            assert upstream.in_flight == self.in_flight(upstream) >= 0
        assert self.balancer.in_flight == len(self.open) + len(self.granted())

    @invariant()
    def the_queue_is_whole(self) -> None:
        assert list(self.queue.waiters) == [w for w in self.waiting if w.lease is None]
        assert all(w.granted.is_set() == (w.lease is not None) for w in self.waiting)

    def teardown(self) -> None:
        for entry in self.open:
            entry.lease.release()
        for waiter in self.waiting:
            with pytest.raises(NoUpstream):
                self.queue.take_up(waiter, 0.0)
        assert self.balancer.in_flight == 0
        assert not self.queue.waiters
        assert all(upstream.in_flight == 0 for upstream in self.known.values())


TURNS = {"round_robin", "weighted_round_robin"}


def tell_stories(strategy: str, count: int) -> None:
    run_state_machine_as_test(
        type("Model", (Model,), {"strategy": strategy}),
        settings=settings(
            max_examples=count,
            stateful_step_count=40,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(Check),
        ),
    )


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_balancer_keeps_its_promises(strategy: str) -> None:
    tell_stories(strategy, 25)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_balancer_keeps_its_promises_in_long_runs(strategy: str) -> None:
    tell_stories(strategy, 2000)
