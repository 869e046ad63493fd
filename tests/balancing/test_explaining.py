"""Why an upstream was chosen: what speaks for each, and why others are left out."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.drawing import PowerOfTwo, Random
from atlas_pkg.balancing.explaining import MOST_NAMED, SPARED
from atlas_pkg.balancing.lease import Lease, Outcome, Wish
from atlas_pkg.balancing.member import START, Member
from atlas_pkg.balancing.strategies import STRATEGIES, Strategy
from atlas_pkg.balancing.upstream import AdminState
from atlas_pkg.balancing.verdict import Verdict
from atlas_pkg.choice import Candidate, Choice
from atlas_pkg.config.model import CircuitBreaker, HealthCheck, SlowStart, UpstreamConfig
from tests.balancing.samples import Clock, build_config, build_members, build_upstream, seed

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
        "c": "turn at 0.25, weight 2",
        "b": "turn at 0.50, weight 1",
    },
    "random": {"a": "drawn, 1 chance in 3", "c": "1 chance in 3", "b": "1 chance in 3"},
    "least_connections": {
        "a": "0 in flight / weight 3 = 0.00",
        "b": "0 in flight / weight 1 = 0.00",
        "c": "0 in flight / weight 2 = 0.00",
    },
    "power_of_two": {
        "a": "0 in flight / weight 3 = 0.00, drawn against c",
        "c": "0 in flight / weight 2 = 0.00, drawn against a",
        "b": "0 in flight / weight 1 = 0.00",
    },
    "ip_hash": {
        "a": "hash ring: first behind the key",
        "c": "hash ring: number 2 behind the key",
        "b": "hash ring: number 3 behind the key",
    },
    "consistent_hash": {
        "a": "hash ring: first behind the key",
        "c": "hash ring: number 2 behind the key",
        "b": "hash ring: number 3 behind the key",
    },
}


def build(*upstreams: UpstreamConfig, strategy: str = "round_robin", **tables: object) -> Balancer:
    return Balancer(build_config(*upstreams, strategy=strategy, **tables))


def ask(balancer: Balancer, wish: Wish = Wish()) -> Choice:  # noqa: B008 - immutable
    """Take a lease, explained; it is not given back."""
    return balancer.lease_explained(wish)[1]


def left_out(choice: Choice) -> dict[str, str]:
    return {item.name: item.left_out for item in choice.candidates if item.left_out}


def judge(balancer: Balancer, name: str, *, is_up: bool, reason: str) -> None:
    verdict = Verdict(
        is_up=is_up, has_flipped=True, has_passed=is_up, reason=reason, latency=0.1, since=0.0
    )
    balancer.note_probe(balancer.by_name[name], verdict)


def fail(balancer: Balancer, name: str) -> None:
    """Have one request to `name` fail."""
    others = [upstream for upstream in balancer.upstreams if upstream.name != name]
    balancer.lease(Wish(excluded=others)).release(Outcome.FAILURE)


# What speaks for whom


@pytest.mark.parametrize("strategy", ALL)
def test_scores_are_in_the_terms_of_the_strategy(strategy: str) -> None:
    balancer = build(
        build_upstream("a", 3), build_upstream("b"), build_upstream("c", 2), strategy=strategy
    )
    seed(balancer, random.Random(1))

    choice = ask(balancer, Wish(b"key 2"))

    scores = {item.name: item.score for item in choice.candidates}
    assert scores == SCORES[strategy]
    assert list(scores) == list(SCORES[strategy]), "the likeliest comes first"
    assert (choice.strategy, choice.cause, choice.waits) == (strategy, "strategy", "")
    assert choice.chosen == next(iter(scores))


def test_an_upstream_over_its_load_bound_says_so() -> None:
    balancer = build(build_upstream("a"), build_upstream("b"), strategy="consistent_hash")
    first = ask(balancer, Wish(b"key")).chosen
    ask(balancer, Wish(b"key"))

    choice = ask(balancer, Wish(b"key"))

    assert choice.chosen != first
    assert choice.candidates == (
        Candidate(choice.chosen, "hash ring: number 2 behind the key"),
        Candidate(first, "hash ring: first behind the key, but over its load bound: 2 of 2"),
    )


@pytest.mark.parametrize("strategy", ALL)
@given(data=st.data())
def test_the_ranking_is_what_would_be_chosen(strategy: str, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    members = build_members(**{f"u{number}": weight for number, weight in enumerate(weights)})
    for member in members:
        member.upstream.in_flight = data.draw(st.integers(0, 5))
    made = make(strategy, members, data.draw(st.integers(0, 1000)))
    made.prepare(members)
    for _ in range(data.draw(st.integers(0, 9))):
        made.choose(b"warm", ())
    excluded = {member.upstream for member in members if data.draw(st.booleans())}
    key = data.draw(st.binary(max_size=3))

    ranked = [upstream for upstream, _ in made.rank(key, excluded)]

    assert ranked == [upstream for upstream, _ in made.rank(key, excluded)], "it has left a trace"
    passed_over = set(excluded)
    for upstream in ranked:
        assert made.choose(key, passed_over) is upstream
        passed_over.add(upstream)
    assert made.choose(key, passed_over) is None


def make(strategy: str, members: list[Member], number: int) -> Strategy:
    """Make a strategy whose dice, if it has any, are those of this number."""
    if strategy in {"random", "power_of_two"}:
        kind = Random if strategy == "random" else PowerOfTwo
        return kind(generator=random.Random(number))
    return STRATEGIES[strategy](START, members)


@pytest.mark.parametrize("strategy", ALL)
def test_explained_choices_are_those_that_would_have_been_made(strategy: str) -> None:
    def run(*, explains: bool) -> list[str]:
        names = ("a", "b", "c", "d")
        upstreams = [build_upstream(name, weight) for weight, name in enumerate(names, 1)]
        balancer = build(*upstreams, strategy=strategy)
        seed(balancer, random.Random(3))
        leases: list[Lease] = []
        chosen = []
        for number in range(200):
            wish = Wish(b"%d" % (number % 7))
            lease = balancer.lease_explained(wish)[0] if explains else balancer.lease_now(wish)
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
        build_upstream(
            name,
            weight=0 if name == "light" else 1,
            backup=name == "backup",
            max_connections=1 if name == "full" else 0,
            health_check=check if name == "down" else None,
        )
        for name in names
    ]
    config = build_config(*upstreams, circuit_breaker=CircuitBreaker(failures=1, open_for=10.0))
    balancer = Balancer(config, clock=clock)
    judge(balancer, "down", is_up=False, reason="status 500")
    balancer.set_admin_state(balancer.by_name["drained"], AdminState.DRAIN)
    balancer.set_admin_state(balancer.by_name["away"], AdminState.MAINTENANCE)
    fail(balancer, "broken")
    clock.now += 6.8
    held = balancer.lease(Wish(excluded=[balancer.by_name["good"]]))
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
    old = Balancer(build_config(build_upstream("a")))
    new = Balancer(
        build_config(build_upstream("a"), build_upstream("new", health_check=check)), old
    )
    new.activate()

    assert left_out(ask(new)) == {"new": "waits for its first probe"}


def test_a_half_open_breaker_and_its_trials_are_told() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=1, open_for=10.0, half_open_requests=1)
    config = build_config(
        build_upstream("a"), build_upstream("b"), strategy="round_robin", circuit_breaker=breaker
    )
    balancer = Balancer(config, clock=clock)
    fail(balancer, "b")
    clock.now += 10

    trial = ask(balancer, Wish(excluded=[balancer.by_name["a"]]))
    next_one = ask(balancer)

    assert trial.candidates[0] == Candidate("b", "its turn; circuit breaker half-open: a trial")
    assert left_out(next_one) == {"b": "circuit breaker half-open, its trials under way"}


def test_what_was_tried_already_is_left_out_of_a_retry() -> None:
    balancer = build(build_upstream("a"), build_upstream("b"))

    choice = ask(balancer, Wish(excluded=(balancer.by_name["a"],)))

    assert (choice.chosen, choice.cause) == ("b", "strategy, for a retry")
    assert left_out(choice) == {"a": "tried already"}


def test_a_backup_is_left_out_while_an_ordinary_one_is_merely_full() -> None:
    balancer = build(build_upstream("a", max_connections=1), build_upstream("b", backup=True))
    ask(balancer)

    choice = ask(balancer)

    assert left_out(choice) == {
        "a": "full: 1 of 1 in flight",
        "b": "backup, and an ordinary one is merely full",
    }


def test_a_backup_that_is_used_is_a_candidate_like_any_other() -> None:
    balancer = build(build_upstream("a"), build_upstream("b", backup=True))
    balancer.set_admin_state(balancer.by_name["a"], AdminState.MAINTENANCE)

    choice = ask(balancer)

    assert choice.candidates == (Candidate("b", "its turn"), Candidate("a", "", "maintenance"))


def test_a_host_name_that_is_not_resolved_is_remarked() -> None:
    balancer = build(build_upstream("a", address="upstream.test"))

    assert ask(balancer).candidates == (Candidate("a", "its turn; host name not resolved"),)


def test_slow_start_tells_whom_it_has_spared() -> None:
    clock = Clock()
    config = build_config(
        build_upstream("a", health_check=HealthCheck()),
        build_upstream("b"),
        strategy="round_robin",
        slow_start=SlowStart(duration=10.0),
    )
    balancer = Balancer(config, clock=clock, chance=lambda: 0.99)
    judge(balancer, "a", is_up=False, reason="refused")
    judge(balancer, "a", is_up=True, reason="HTTP 200")
    clock.now += 1

    choice = ask(balancer)

    assert (choice.chosen, choice.cause) == ("b", "strategy, after slow start")
    assert choice.candidates == (
        Candidate("a", "its turn; slow start", SPARED),
        Candidate("b", "its turn after 1 other"),
    )


def test_a_recovering_one_that_is_chosen_was_not_spared() -> None:
    clock = Clock()
    config = build_config(
        build_upstream("a", health_check=HealthCheck()),
        build_upstream("b"),
        strategy="round_robin",
        slow_start=SlowStart(duration=10.0),
    )
    balancer = Balancer(config, clock=clock, chance=lambda: 0.0)
    judge(balancer, "a", is_up=False, reason="refused")
    judge(balancer, "a", is_up=True, reason="HTTP 200")

    choice = ask(balancer)

    assert (choice.chosen, choice.cause, left_out(choice)) == ("a", "strategy", {})


# Sticky clients


def test_the_cookie_decides_where_its_upstream_can_be_used() -> None:
    balancer = build(build_upstream("a"), build_upstream("b"))

    choice = ask(balancer, Wish(sticky=balancer.by_name["b"]))

    assert (choice.chosen, choice.cause) == ("b", "sticky cookie")
    assert Candidate("b", "its cookie names it") in choice.candidates


def test_a_sticky_client_stays_with_one_that_is_drained() -> None:
    balancer = build(build_upstream("a"), build_upstream("b"))
    balancer.set_admin_state(balancer.by_name["b"], AdminState.DRAIN)

    choice = ask(balancer, Wish(sticky=balancer.by_name["b"]))

    assert (choice.chosen, choice.cause) == ("b", "sticky cookie")
    assert choice.candidates[0] == Candidate(
        "b", "its cookie names it; new clients stay away: drain"
    )
    assert left_out(choice) == {}


def test_a_sticky_client_whose_upstream_is_gone_hears_why() -> None:
    balancer = build(build_upstream("a"), build_upstream("b", health_check=HealthCheck()))
    judge(balancer, "b", is_up=False, reason="connect refused")

    choice = ask(balancer, Wish(sticky=balancer.by_name["b"]))

    assert choice.chosen == "a"
    assert choice.cause == "strategy, since the upstream of the cookie cannot be used"
    assert left_out(choice) == {"b": "down: connect refused"}


# Nobody


def test_a_full_house_waits_in_the_queue() -> None:
    balancer = build(build_upstream("a", max_connections=1))
    ask(balancer)

    lease, choice = balancer.lease_explained()

    assert (lease, choice.chosen) == (None, "")
    assert choice.waits == "all that could be used are full: it waits in the queue"


def test_a_sticky_client_waits_for_its_own_upstream() -> None:
    balancer = build(build_upstream("a", max_connections=1), build_upstream("b"))
    sticky = Wish(sticky=balancer.by_name["a"])
    ask(balancer, sticky)

    choice = ask(balancer, sticky)

    assert choice.cause == "sticky cookie"
    assert choice.waits == "the upstream of its cookie is full: it waits in the queue"


def test_where_nobody_is_available_the_account_is_not_lost() -> None:
    balancer = build(build_upstream("a", health_check=HealthCheck()))
    judge(balancer, "a", is_up=False, reason="status 503")

    lease, choice = balancer.lease_explained()

    assert lease is None
    assert (choice.chosen, choice.waits, choice.cause) == ("", "", "nobody could be chosen")
    assert left_out(choice) == {"a": "down: status 503"}


def test_without_upstreams_there_are_no_candidates() -> None:
    lease, choice = build().lease_explained()

    assert (lease, choice.candidates, choice.chosen, choice.waits) == (None, (), "", "")


# Many


@pytest.mark.parametrize("strategy", ALL)
def test_of_a_thousand_upstreams_a_few_are_named_and_the_rest_counted(strategy: str) -> None:
    upstreams = [build_upstream(f"u{number}", health_check=HealthCheck()) for number in range(1000)]
    balancer = build(*upstreams, strategy=strategy)
    for number in range(400):
        judge(balancer, f"u{number}", is_up=False, reason=f"status {500 + number % 3}")
    balancer.set_admin_state(balancer.by_name["u999"], AdminState.MAINTENANCE)

    choice = ask(balancer, Wish(b"key"))

    named = [item for item in choice.candidates if not item.left_out]
    assert len(choice.candidates) == MOST_NAMED
    assert len(named) == MOST_NAMED // 2
    assert choice.chosen in {item.name for item in named}
    assert dict(choice.others) == {"available": 599 - 5, "down": 400 - 5, "maintenance": 1}


def test_a_sticky_upstream_is_named_among_a_thousand() -> None:
    upstreams = [build_upstream(f"u{number}", health_check=HealthCheck()) for number in range(1000)]
    balancer = build(*upstreams)
    for number in range(400, 1000):
        judge(balancer, f"u{number}", is_up=False, reason="status 500")

    missed = ask(balancer, Wish(sticky=balancer.by_name["u700"]))
    kept = ask(balancer, Wish(sticky=balancer.by_name["u300"]))

    assert "u700" in left_out(missed)
    assert (kept.chosen, kept.candidates[0].name) == ("u300", "u300")


def test_those_who_waited_before_are_served_before() -> None:
    balancer = build(build_upstream("a", max_connections=1))
    held = balancer.lease()
    got: list[Lease] = []
    waiting = threading.Thread(target=lambda: got.append(balancer.lease()))
    waiting.start()
    while not balancer.ledger.queue:
        pass

    held.release()
    lease, choice = balancer.lease_explained()
    waiting.join(20)

    assert lease is None
    assert choice.waits
    assert len(got) == 1


def test_a_verdict_that_comes_after_the_checks_have_ended_is_too_late() -> None:
    # A probe was under way when a reload took the checks away: nobody would correct its verdict.
    balancer = build(build_upstream("a"), build_upstream("b"))

    judge(balancer, "a", is_up=False, reason="status 503")

    assert [balancer.lease().upstream.name for _ in range(4)] == ["a", "b", "a", "b"]
