"""The circuit breaker: examples as a timetable, and a model that knows every attempt by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from atlas_pkg.balancing.breaker import Breaker, BreakerState
from atlas_pkg.config.model import CircuitBreaker

SETTINGS = CircuitBreaker(failures=3, open_for=10.0, max_open_for=35.0, half_open_requests=1)


def fail(breaker: Breaker, now: float, times: int = 1) -> list[bool]:
    """Let so many attempts fail, one after the other."""
    return [breaker.fail(breaker.begin(now), now) for _ in range(times)]


def opened(now: float = 0.0, settings: CircuitBreaker = SETTINGS) -> Breaker:
    """A breaker that opened at `now`."""
    breaker = Breaker(settings)
    fail(breaker, now, settings.failures)
    assert breaker.state(now) is BreakerState.OPEN
    return breaker


def test_failures_in_a_row_open_it_and_the_last_one_says_so() -> None:
    breaker = Breaker(SETTINGS)

    assert fail(breaker, 0.0, times=3) == [False, False, True]

    assert breaker.state(0.0) is BreakerState.OPEN
    assert breaker.reopens_at == 10.0
    assert not breaker.may_try(9.99)


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0.0, times=2)

    breaker.succeed(breaker.begin(0.0))

    assert fail(breaker, 0.0, times=3) == [False, False, True]


def test_attempts_without_a_verdict_count_for_nothing() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0.0, times=2)

    for _ in range(10):
        breaker.abandon(breaker.begin(0.0))

    assert breaker.state(0.0) is BreakerState.CLOSED
    assert fail(breaker, 0.0) == [True]


def test_half_open_lets_one_trial_through_at_a_time() -> None:
    breaker = opened()

    assert breaker.state(10.0) is BreakerState.HALF_OPEN
    assert breaker.may_try(10.0)
    trial = breaker.begin(10.0)
    assert not breaker.may_try(1000.0)

    breaker.abandon(trial)
    assert breaker.may_try(1000.0)


def test_looking_changes_nothing() -> None:
    breaker = opened()

    assert all(breaker.may_try(10.0) for _ in range(5))


def test_half_open_lets_as_many_trials_through_as_are_allowed() -> None:
    breaker = opened(settings=replace(SETTINGS, half_open_requests=3))

    trials = []
    while breaker.may_try(10.0):
        trials.append(breaker.begin(10.0))

    assert len(trials) == 3


def test_a_trial_that_succeeds_closes_it() -> None:
    breaker = opened()

    assert breaker.succeed(breaker.begin(10.0))

    assert breaker.state(10.0) is BreakerState.CLOSED
    assert breaker.reopens_at is None
    assert fail(breaker, 10.0, times=3) == [False, False, True]


def test_trials_that_fail_double_the_time_up_to_the_limit() -> None:
    breaker = opened()
    waits = []
    for _ in range(4):
        now = breaker.reopens_at
        assert now is not None
        assert fail(breaker, now) == [True]
        assert breaker.reopens_at is not None
        waits.append(breaker.reopens_at - now)

    assert waits == [20.0, 35.0, 35.0, 35.0]


def test_a_recovery_ends_the_doubling() -> None:
    breaker = opened()
    fail(breaker, 10.0)
    breaker.succeed(breaker.begin(30.0))

    fail(breaker, 40.0, times=3)

    assert breaker.reopens_at == 50.0


def test_endless_failures_do_not_exhaust_the_numbers() -> None:
    breaker = opened(settings=replace(SETTINGS, max_open_for=1e9))

    for _ in range(5000):
        assert breaker.reopens_at is not None
        fail(breaker, breaker.reopens_at)


def test_what_began_before_the_opening_neither_closes_it_nor_opens_it_for_longer() -> None:
    breaker = Breaker(SETTINGS)
    early = [breaker.begin(0.0) for _ in range(8)]
    told = [breaker.fail(attempt, 1.0) for attempt in early[:5]]

    assert told == [False, False, True, False, False]
    assert breaker.reopens_at == 11.0
    assert not breaker.succeed(early[5])
    assert breaker.state(5.0) is BreakerState.OPEN

    trial = breaker.begin(11.0)
    breaker.abandon(early[6])
    assert not breaker.may_try(11.0)
    assert not breaker.fail(early[7], 11.0)
    assert breaker.succeed(trial)


def test_a_trial_left_over_from_an_earlier_opening_decides_nothing() -> None:
    breaker = opened(settings=replace(SETTINGS, half_open_requests=2))
    first, second = breaker.begin(10.0), breaker.begin(10.0)
    breaker.fail(first, 12.0)

    assert not breaker.fail(second, 13.0)
    assert breaker.reopens_at == 32.0
    assert not breaker.succeed(second)


def test_a_passed_probe_closes_it() -> None:
    breaker = opened()

    assert breaker.pass_probe()

    assert breaker.state(1.0) is BreakerState.CLOSED
    assert not breaker.pass_probe()


def test_a_passed_probe_does_not_forgive_failures_while_closed() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0.0, times=2)

    breaker.pass_probe()

    assert fail(breaker, 0.0) == [True]


def test_the_doubling_goes_on_while_only_probes_pass() -> None:
    breaker = opened()
    breaker.pass_probe()

    fail(breaker, 1.0, times=3)

    assert breaker.reopens_at == 21.0


def test_an_attempt_against_its_advice_counts_for_nothing() -> None:
    breaker = opened()

    attempt = breaker.begin(5.0)
    assert not breaker.succeed(attempt)
    assert not breaker.fail(attempt, 5.0)
    breaker.abandon(attempt)

    assert breaker.reopens_at == 10.0
    assert breaker.may_try(10.0)


@pytest.mark.parametrize("now", [5.0, 15.0])
def test_new_settings_leave_the_state_alone(now: float) -> None:
    breaker = opened()
    before = breaker.state(now)

    breaker.reconfigure(CircuitBreaker(failures=9, open_for=1.0, max_open_for=2.0))

    assert breaker.state(now) is before
    assert breaker.reopens_at == 10.0
    fail(breaker, 15.0)
    assert breaker.reopens_at == 17.0


def test_a_lower_threshold_holds_from_the_next_failure_on() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0.0, times=2)

    breaker.reconfigure(replace(SETTINGS, failures=1))

    assert breaker.state(0.0) is BreakerState.CLOSED
    assert fail(breaker, 0.0) == [True]


@dataclass(eq=False)
class Attempt:
    """One attempt as the model knows it."""

    began_in: int
    is_trial: bool


class BreakerMachine(RuleBasedStateMachine):
    """The model keeps the attempts whose result counts, and forgets them all at each decision."""

    attempts: Bundle[Attempt] = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.settings = replace(SETTINGS, failures=2, half_open_requests=2)
        self.breaker = Breaker(self.settings)
        self.now = 0.0
        self.counting: set[Attempt] = set()
        self.failures = 0
        self.openings = 0
        self.reopens_at: float | None = None

    def decide(self, reopens_at: float | None) -> None:
        self.reopens_at = reopens_at
        self.counting.clear()
        self.failures = 0

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=attempts)
    def begin(self) -> Attempt:
        may_try = self.breaker.may_try(self.now)
        attempt = Attempt(self.breaker.begin(self.now), self.reopens_at is not None)
        if may_try:
            self.counting.add(attempt)
        return attempt

    @rule(attempt=consumes(attempts))
    def succeed(self, attempt: Attempt) -> None:
        closes = attempt in self.counting and attempt.is_trial

        assert self.breaker.succeed(attempt.began_in) is closes

        if attempt in self.counting:
            self.counting.remove(attempt)
            self.openings = self.failures = 0
        if closes:
            self.decide(None)

    @rule(target=attempts, attempt=consumes(attempts))
    def pass_head(self, attempt: Attempt) -> Attempt:
        closes = attempt in self.counting and attempt.is_trial

        following = Attempt(
            self.breaker.pass_head(attempt.began_in), attempt.is_trial and not closes
        )

        if attempt in self.counting:
            self.counting.remove(attempt)
            if closes:
                self.decide(None)
            self.counting.add(following)
        return following

    @rule(attempt=consumes(attempts))
    def fail(self, attempt: Attempt) -> None:
        counts = attempt in self.counting
        self.counting.discard(attempt)
        self.failures += counts
        opens = counts and (attempt.is_trial or self.failures >= self.settings.failures)

        assert self.breaker.fail(attempt.began_in, self.now) is opens

        if opens:
            wait = self.settings.open_for
            for _ in range(self.openings):
                wait *= 2
            self.openings += 1
            self.decide(self.now + min(wait, self.settings.max_open_for))

    @rule(attempt=consumes(attempts))
    def abandon(self, attempt: Attempt) -> None:
        self.counting.discard(attempt)
        self.breaker.abandon(attempt.began_in)

    @rule()
    def pass_probe(self) -> None:
        assert self.breaker.pass_probe() is (self.reopens_at is not None)
        if self.reopens_at is not None:
            self.decide(None)

    @rule(failures=st.integers(1, 4), trials=st.integers(1, 3))
    def reconfigure(self, failures: int, trials: int) -> None:
        self.settings = replace(self.settings, failures=failures, half_open_requests=trials)
        self.breaker.reconfigure(self.settings)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.breaker.reopens_at == self.reopens_at
        if self.reopens_at is None:
            expected, may_try = BreakerState.CLOSED, True
        elif self.now < self.reopens_at:
            expected, may_try = BreakerState.OPEN, False
        else:
            expected = BreakerState.HALF_OPEN
            may_try = len(self.counting) < self.settings.half_open_requests
        assert self.breaker.state(self.now) is expected
        assert self.breaker.may_try(self.now) is may_try


TestBreakerMachine = BreakerMachine.TestCase
