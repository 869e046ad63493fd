"""Why an upstream was chosen: what speaks for each, and why others are left out."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection

import pytest

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.explain import MOST_NAMED, SKIPPED
from atlas_pkg.balancing.health import HealthState
from atlas_pkg.balancing.lease import ANYWHERE, NOBODY, Affinity, Lease, Outcome
from atlas_pkg.balancing.strategies import STRATEGIES
from atlas_pkg.balancing.upstream import AdminState, Upstream
from atlas_pkg.choice import Candidate, Choice
from atlas_pkg.config.model import CircuitBreaker, HealthCheck, SlowStart, UpstreamConfig
from atlas_pkg.errors import NoUpstream
from tests.balancing.samples import Clock, build_config, build_settings, seed

ALL = sorted(STRATEGIES)

# What each strategy says of three idle upstreams a, b and c with the weights 3, 1 and 2.
SCORES = {
    "round_robin": {
        "a": "its turn",
        "b": "its turn after 1 other",
        "c": "its turn after 2 others",
    },
    "weighted_round_robin": {
        "a": "turn at 0.17, weight 3",
        "b": "turn at 0.50, weight 1",
        "c": "turn at 0.25, weight 2",
    },
    "random": {"a": "1 chance in 3", "b": "1 chance in 3", "c": "1 chance in 3"},
    "least_connections": {
        "a": "0 in flight / weight 3 = 0.00",
        "b": "0 in flight / weight 1 = 0.00",
        "c": "0 in flight / weight 2 = 0.00",
    },
    "power_of_two": {
        "a": "0 in flight / weight 3 = 0.00, drawn against c",
        "b": "0 in flight / weight 1 = 0.00",
        "c": "0 in flight / weight 2 = 0.00, drawn against a",
    },
    "ip_hash": {
        "a": "hash ring: first behind the key",
        "b": "hash ring: further behind the key",
        "c": "hash ring: further behind the key",
    },
    "consistent_hash": {
        "a": "hash ring: first behind the key",
        "b": "hash ring: further behind the key",
        "c": "hash ring: further behind the key",
    },
}


def build(*upstreams: UpstreamConfig, strategy: str = "round_robin", **tables: object) -> Balancer:
    return Balancer(build_settings(*upstreams, strategy=strategy, **tables))


def ask(
    balancer: Balancer, affinity: Affinity = ANYWHERE, tried: Collection[Upstream] = NOBODY
) -> Choice:
    """Take a lease if there is one, explained; it is not given back."""
    choices: list[Choice] = []
    with contextlib.suppress(NoUpstream):
        balancer.lease_now(affinity, tried, choices)
    (choice,) = choices
    return choice


def left_out(choice: Choice) -> dict[str, str]:
    return {item.name: item.left_out for item in choice.candidates if item.left_out}


def judge(balancer: Balancer, name: str, *, is_up: bool, reason: str) -> None:
    balancer.note_probe(balancer.by_name[name], HealthState(is_up, True, is_up, reason))


def fail(balancer: Balancer, name: str) -> None:
    """Have one request to `name` fail."""
    others = [upstream for upstream in balancer.upstreams if upstream.name != name]
    balancer.lease(tried=others).release(Outcome.FAILURE)


# What speaks for whom


@pytest.mark.parametrize("strategy", SCORES)
def test_scores_are_in_the_terms_of_the_strategy(strategy: str) -> None:
    balancer = build(
        build_config("a", 3), build_config("b"), build_config("c", 2), strategy=strategy
    )
    seed(balancer, random.Random(1))

    choice = ask(balancer, Affinity(b"key 2"))

    scores = {item.name: item.score for item in choice.candidates}
    assert scores == SCORES[strategy]
    assert (choice.strategy, choice.cause, choice.waits) == (strategy, "strategy", "")
    assert choice.chosen == next(iter(scores))


def test_an_upstream_over_its_load_bound_says_so() -> None:
    balancer = build(build_config("a"), build_config("b"), strategy="consistent_hash")
    first = ask(balancer, Affinity(b"key")).chosen
    ask(balancer, Affinity(b"key"))

    choice = ask(balancer, Affinity(b"key"))

    assert choice.chosen != first
    assert choice.candidates == (
        Candidate(choice.chosen, f"hash ring: number 2, since {first} is over its load bound"),
        Candidate(first, "hash ring: first behind the key, but over its load bound: 2 of 2"),
    )


@pytest.mark.parametrize("strategy", ALL)
def test_explained_choices_are_those_that_would_have_been_made(strategy: str) -> None:
    def run(*, explains: bool) -> list[str]:
        names = ("a", "b", "c", "d")
        upstreams = [build_config(name, weight) for weight, name in enumerate(names, 1)]
        balancer = build(*upstreams, strategy=strategy)
        seed(balancer, random.Random(3))
        leases: list[Lease] = []
        chosen = []
        for number in range(200):
            affinity = Affinity(b"%d" % (number % 7))
            lease = balancer.lease_now(affinity, NOBODY, [] if explains else None)
            assert lease is not None
            chosen.append(lease.upstream.name)
            leases.append(lease)
            if number % 3:
                leases.pop(number % len(leases)).release()
        return chosen

    assert run(explains=True) == run(explains=False)


# Why not the others


def test_every_reason_for_leaving_one_out_is_told() -> None:
    clock = Clock()
    check = HealthCheck()
    names = ("good", "down", "drained", "away", "light", "broken", "backup", "full")
    upstreams = [
        build_config(
            name,
            weight=0 if name == "light" else 1,
            backup=name == "backup",
            max_connections=1 if name == "full" else 0,
            health_check=check if name == "down" else None,
        )
        for name in names
    ]
    settings = build_settings(*upstreams, circuit_breaker=CircuitBreaker(failures=1, open_for=10.0))
    balancer = Balancer(settings, clock=clock)
    judge(balancer, "down", is_up=False, reason="status 500")
    balancer.set_admin_state(balancer.by_name["drained"], AdminState.DRAIN)
    balancer.set_admin_state(balancer.by_name["away"], AdminState.MAINTENANCE)
    fail(balancer, "broken")
    clock.now += 6.8
    held = balancer.lease(tried=[balancer.by_name["good"]])
    assert held.upstream.name == "full"

    choice = ask(balancer)

    assert choice.chosen == "good"
    assert left_out(choice) == {
        "down": "down: status 500",
        "drained": "drain",
        "away": "maintenance",
        "light": "weight 0",
        "broken": "circuit breaker open for 3.2 s",
        "backup": "backup, and an ordinary one is available",
        "full": "full: 1 of 1 in flight",
    }


def test_one_that_waits_for_its_first_probe_is_not_called_down() -> None:
    check = HealthCheck()
    balancer = build(build_config("a"))
    balancer.apply(build_settings(build_config("a"), build_config("new", health_check=check)))

    assert left_out(ask(balancer)) == {"new": "waits for its first probe"}


def test_a_half_open_breaker_and_its_trials_are_told() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=1, open_for=10.0, half_open_requests=1)
    settings = build_settings(
        build_config("a"), build_config("b"), strategy="round_robin", circuit_breaker=breaker
    )
    balancer = Balancer(settings, clock=clock)
    fail(balancer, "b")
    clock.now += 10

    trial = ask(balancer, tried=[balancer.by_name["a"]])
    next_one = ask(balancer)

    assert trial.candidates[0] == Candidate("b", "its turn; circuit breaker half-open: a trial")
    assert left_out(next_one) == {"b": "circuit breaker half-open, its trials under way"}


def test_what_was_tried_already_is_left_out_of_a_retry() -> None:
    balancer = build(build_config("a"), build_config("b"))

    choice = ask(balancer, tried=(balancer.by_name["a"],))

    assert (choice.chosen, choice.cause) == ("b", "strategy, for a retry")
    assert left_out(choice) == {"a": "tried already"}


def test_a_backup_is_left_out_while_an_ordinary_one_is_merely_full() -> None:
    balancer = build(build_config("a", max_connections=1), build_config("b", backup=True))
    ask(balancer)

    choice = ask(balancer)

    assert left_out(choice) == {
        "a": "full: 1 of 1 in flight",
        "b": "backup, and an ordinary one is merely full",
    }


def test_a_backup_that_steps_in_for_a_retry_says_so() -> None:
    balancer = build(build_config("a"), build_config("b", backup=True))

    choice = ask(balancer, tried=(balancer.by_name["a"],))

    assert choice.candidates[0] == Candidate("b", "backup, and all others have been tried")
    assert left_out(choice) == {"a": "tried already"}


def test_a_backup_that_is_used_is_a_candidate_like_any_other() -> None:
    balancer = build(build_config("a"), build_config("b", backup=True))
    balancer.set_admin_state(balancer.by_name["a"], AdminState.MAINTENANCE)

    choice = ask(balancer)

    assert choice.candidates == (Candidate("b", "its turn"), Candidate("a", "", "maintenance"))


def test_a_host_name_that_is_not_resolved_is_remarked() -> None:
    balancer = build(build_config("a", address="upstream.test"))

    assert ask(balancer).candidates == (Candidate("a", "its turn; host name not resolved"),)


def test_slow_start_tells_whom_it_has_skipped() -> None:
    clock = Clock()
    settings = build_settings(
        build_config("a", health_check=HealthCheck()),
        build_config("b"),
        strategy="round_robin",
        slow_start=SlowStart(duration=10.0),
    )
    balancer = Balancer(settings, clock=clock, chance=lambda: 0.99)
    judge(balancer, "a", is_up=False, reason="refused")
    judge(balancer, "a", is_up=True, reason="HTTP 200")
    clock.now += 1

    choice = ask(balancer)

    assert (choice.chosen, choice.cause) == ("b", "strategy, after slow start")
    assert choice.candidates == (
        Candidate("b", "its turn"),
        Candidate("a", "its turn after 1 other; slow start", SKIPPED),
    )


def test_a_recovering_one_that_is_chosen_was_not_skipped() -> None:
    clock = Clock()
    settings = build_settings(
        build_config("a", health_check=HealthCheck()),
        build_config("b"),
        strategy="round_robin",
        slow_start=SlowStart(duration=10.0),
    )
    balancer = Balancer(settings, clock=clock, chance=lambda: 0.0)
    judge(balancer, "a", is_up=False, reason="refused")
    judge(balancer, "a", is_up=True, reason="HTTP 200")

    choice = ask(balancer)

    assert (choice.chosen, choice.cause, left_out(choice)) == ("a", "strategy", {})


# Sticky clients


def test_the_cookie_decides_where_its_upstream_can_be_used() -> None:
    balancer = build(build_config("a"), build_config("b"))

    choice = ask(balancer, Affinity(sticky=balancer.by_name["b"]))

    assert (choice.chosen, choice.cause) == ("b", "sticky cookie")
    assert Candidate("b", "its cookie names it") in choice.candidates


def test_a_sticky_client_stays_with_one_that_is_drained() -> None:
    balancer = build(build_config("a"), build_config("b"))
    balancer.set_admin_state(balancer.by_name["b"], AdminState.DRAIN)

    choice = ask(balancer, Affinity(sticky=balancer.by_name["b"]))

    assert (choice.chosen, choice.cause) == ("b", "sticky cookie")
    assert choice.candidates[0] == Candidate(
        "b", "its cookie names it; new clients stay away: drain"
    )
    assert left_out(choice) == {}


def test_a_sticky_client_whose_upstream_is_gone_hears_why() -> None:
    balancer = build(build_config("a"), build_config("b", health_check=HealthCheck()))
    judge(balancer, "b", is_up=False, reason="connect refused")

    choice = ask(balancer, Affinity(sticky=balancer.by_name["b"]))

    assert choice.chosen == "a"
    assert choice.cause == "strategy, since the upstream of the cookie cannot be used"
    assert left_out(choice) == {"b": "down: connect refused"}


# Nobody


def test_a_full_house_waits_in_the_queue() -> None:
    balancer = build(build_config("a", max_connections=1))
    ask(balancer)

    choice = ask(balancer)

    assert choice.chosen == ""
    assert choice.waits == "all that could be used are full: it waits in the queue"


def test_a_sticky_client_waits_for_its_own_upstream() -> None:
    balancer = build(build_config("a", max_connections=1), build_config("b"))
    sticky = Affinity(sticky=balancer.by_name["a"])
    ask(balancer, sticky)

    choice = ask(balancer, sticky)

    assert choice.cause == "sticky cookie"
    assert choice.waits == "the upstream of its cookie is full: it waits in the queue"


def test_where_nobody_is_available_the_account_is_not_lost() -> None:
    balancer = build(build_config("a", health_check=HealthCheck()))
    judge(balancer, "a", is_up=False, reason="status 503")

    choice = ask(balancer)

    assert (choice.chosen, choice.waits, choice.cause) == ("", "", "nobody could be chosen")
    assert left_out(choice) == {"a": "down: status 503"}


def test_without_upstreams_there_are_no_candidates() -> None:
    choice = ask(build())

    assert (choice.candidates, choice.chosen, choice.waits) == ((), "", "")


# Many


@pytest.mark.parametrize("strategy", ALL)
def test_of_a_thousand_upstreams_a_few_are_named_and_the_rest_counted(strategy: str) -> None:
    upstreams = [build_config(f"u{number}", health_check=HealthCheck()) for number in range(1000)]
    balancer = build(*upstreams, strategy=strategy)
    for number in range(400):
        judge(balancer, f"u{number}", is_up=False, reason=f"status {500 + number % 3}")
    balancer.set_admin_state(balancer.by_name["u999"], AdminState.MAINTENANCE)

    choice = ask(balancer, Affinity(b"key"))

    named = [item for item in choice.candidates if not item.left_out]
    assert len(choice.candidates) == MOST_NAMED
    assert len(named) == MOST_NAMED // 2
    assert choice.chosen in {item.name for item in named}
    assert dict(choice.others) == {"available": 599 - 5, "down": 400 - 5, "maintenance": 1}


def test_a_sticky_upstream_is_named_among_a_thousand() -> None:
    upstreams = [build_config(f"u{number}", health_check=HealthCheck()) for number in range(1000)]
    balancer = build(*upstreams)
    for number in range(400, 1000):
        judge(balancer, f"u{number}", is_up=False, reason="status 500")

    missed = ask(balancer, Affinity(sticky=balancer.by_name["u700"]))
    kept = ask(balancer, Affinity(sticky=balancer.by_name["u300"]))

    assert "u700" in left_out(missed)
    assert (kept.chosen, kept.candidates[0].name) == ("u300", "u300")
