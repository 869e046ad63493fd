"""Choosing and counting under one lock, across configurations and threads."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import threading
import time
from collections import Counter

import pytest

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.lease import Lease, Outcome, Wish
from atlas_pkg.balancing.recovery import TRICKLE
from atlas_pkg.balancing.upstream import AdminState, Upstream
from atlas_pkg.balancing.verdict import Verdict
from atlas_pkg.config.model import CircuitBreaker, HealthCheck, SlowStart
from atlas_pkg.errors import NoUpstream
from tests.balancing.samples import Clock, build_config, build_upstream, seed
from tests.toolkit import Threads

BREAKER = CircuitBreaker(failures=2, open_for=10.0)


def take(balancer: Balancer, times: int, wish: Wish = Wish()) -> str:  # noqa: B008 - immutable
    """Lease and release, one at a time."""
    names = ""
    for _ in range(times):
        lease = balancer.lease(wish)
        names += lease.upstream.name
        lease.release()
    return names


def hold(balancer: Balancer, times: int) -> list[Lease]:
    return [balancer.lease() for _ in range(times)]


def fail(balancer: Balancer, upstream: Upstream, times: int = 1) -> None:
    """Have requests to `upstream` fail."""
    for _ in range(times):
        lease = balancer.lease(Wish(sticky=upstream))
        assert lease.upstream is upstream
        lease.release(Outcome.FAILURE)


def verdict(is_up: bool, reason: str = "") -> Verdict:
    return Verdict(is_up, True, is_up, reason, 0.0, 0.0)


def test_a_lease_counts_the_request_until_it_is_released() -> None:
    balancer = Balancer(build_config(build_upstream("a")))

    one, two = balancer.lease(), balancer.lease()
    assert one.upstream is two.upstream
    assert one.upstream.in_flight == balancer.ledger.in_flight == 2

    one.release()
    two.release()
    assert one.upstream.in_flight == balancer.ledger.in_flight == 0


@pytest.mark.parametrize("weights", [(), (0, 0)])
def test_without_an_available_upstream_there_is_none_to_lease(weights: tuple[int, ...]) -> None:
    listed = [build_upstream(str(number), weight) for number, weight in enumerate(weights)]

    with pytest.raises(NoUpstream):
        Balancer(build_config(*listed)).lease()


def test_an_upstream_is_the_same_as_long_as_name_address_and_port_are() -> None:
    a, b, c = (build_upstream(name) for name in "abc")
    old = Balancer(build_config(a, b, c))
    lease = old.lease()

    listed = (c, build_upstream("a", 9), build_upstream("b", port=81))
    new = Balancer(build_config(*listed), old)

    assert new.by_name["a"] is old.upstreams[0]
    assert new.by_name["b"] is not old.upstreams[1]
    assert new.by_name["c"] is old.upstreams[2]
    assert new.new == [new.by_name["b"]]
    assert new.by_name["a"].in_flight == 1
    lease.release()
    assert new.by_name["a"].in_flight == 0


def test_turns_go_on_across_a_configuration_without_upstreams() -> None:
    a, b = build_upstream("a"), build_upstream("b")
    first = Balancer(build_config(a, b))
    assert first.lease().upstream.name == "a"

    between = Balancer(build_config(), first)
    last = Balancer(build_config(a, b), between)
    last.activate()

    assert last.lease().upstream.name == "b"


def test_the_newest_configuration_chooses_for_all() -> None:
    old = Balancer(build_config(build_upstream("a")))
    new = Balancer(build_config(build_upstream("b")), old)
    assert take(old, 1) == take(new, 1) == "a"

    new.activate()

    assert take(old, 1) == take(new, 1) == "b"


def test_shares_are_exact_whoever_asks() -> None:
    listed = [build_upstream(name, weight) for name, weight in {"a": 3, "b": 2, "c": 1}.items()]
    balancer = Balancer(build_config(*listed))
    threads = Threads()

    for _ in range(8):
        threads.start(take, balancer, 600)

    assert Counter("".join(threads.join())) == {"a": 2400, "b": 1600, "c": 800}
    assert [known.in_flight for known in balancer.upstreams] == [0, 0, 0]


# Who is available


def test_one_that_is_down_is_left_out_until_it_is_up() -> None:
    a, b = build_upstream("a", health_check=HealthCheck()), build_upstream("b")
    balancer = Balancer(build_config(a, b))

    balancer.note_probe(balancer.by_name["a"], verdict(False, "status 500"))
    assert take(balancer, 4) == "bbbb"
    assert "down (status 500)" in balancer.describe()[0]

    balancer.note_probe(balancer.by_name["a"], verdict(True))
    assert Counter(take(balancer, 4)) == {"a": 2, "b": 2}


def test_one_that_a_reload_adds_waits_for_its_first_probe() -> None:
    check = HealthCheck()
    a, b = (build_upstream(name, health_check=check) for name in "ab")
    old = Balancer(build_config(a))
    assert take(old, 1) == "a"  # there is no better guess at the start

    new = Balancer(build_config(a, b), old)
    new.activate()
    assert take(new, 3) == "aaa"

    again = Balancer(build_config(b, a), new)
    again.activate()
    assert take(again, 3) == "aaa"
    again.note_probe(again.by_name["b"], verdict(True))
    assert Counter(take(again, 4)) == {"a": 2, "b": 2}


def test_without_checks_everybody_is_up_again() -> None:
    old = Balancer(build_config(build_upstream("a", health_check=HealthCheck())))
    old.note_probe(old.upstreams[0], verdict(False))
    with pytest.raises(NoUpstream):
        old.lease()

    new = Balancer(build_config(build_upstream("a")), old)
    new.activate()

    assert take(new, 1) == "a"


def test_a_breaker_opens_lets_a_trial_through_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    config = build_config(build_upstream("a"), build_upstream("b"), circuit_breaker=BREAKER)
    balancer = Balancer(config, clock=clock)
    a = balancer.by_name["a"]

    fail(balancer, a, 2)
    assert take(balancer, 4) == "bbbb"
    assert "upstream a: circuit breaker open for 10 s" in caplog.messages

    clock.now += 10.0
    trial = balancer.lease()
    others = hold(balancer, 3)
    assert [lease.upstream.name for lease in [trial, *others]] == ["a", "b", "b", "b"]

    trial.release(Outcome.SUCCESS)
    assert Counter(take(balancer, 4)) == {"a": 2, "b": 2}
    assert "upstream a: circuit breaker closed" in caplog.messages
    assert len(caplog.messages) == 2


def test_a_failed_trial_opens_the_breaker_for_longer(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    config = build_config(build_upstream("a"), build_upstream("b"), circuit_breaker=BREAKER)
    balancer = Balancer(config, clock=clock)
    fail(balancer, balancer.by_name["a"], 2)

    clock.now += 10.0
    fail(balancer, balancer.by_name["a"])

    clock.now += 19.0
    assert take(balancer, 3) == "bbb"
    clock.now += 1.0
    assert "a" in take(balancer, 3)
    assert "upstream a: circuit breaker open for 20 s" in caplog.messages


def test_what_is_not_the_upstreams_doing_counts_neither_way() -> None:
    config = build_config(build_upstream("a"), build_upstream("b"), circuit_breaker=BREAKER)
    balancer = Balancer(config, clock=Clock())
    a = balancer.by_name["a"]

    fail(balancer, a)
    balancer.lease(Wish(sticky=a)).release(Outcome.NONE)
    assert "a" in take(balancer, 2)  # closed yet, and these two releases say nothing
    fail(balancer, a)

    assert take(balancer, 2) == "bb"


@pytest.mark.parametrize("other", [{"weight": 0}, {"health_check": HealthCheck()}, None])
def test_the_last_one_available_is_never_taken_out(other: dict[str, object] | None) -> None:
    listed = [build_upstream("a")]
    if other is not None:
        listed.append(build_upstream("b", **other))  # type: ignore[arg-type]
    balancer = Balancer(build_config(*listed, circuit_breaker=BREAKER), clock=Clock())
    if len(listed) == 2:
        balancer.note_probe(balancer.by_name["b"], verdict(False))

    fail(balancer, balancer.by_name["a"], 50)

    assert take(balancer, 3) == "aaa"


def test_of_two_that_fail_one_stays() -> None:
    config = build_config(build_upstream("a"), build_upstream("b"), circuit_breaker=BREAKER)
    balancer = Balancer(config, clock=Clock())
    under_way = hold(balancer, 20)

    for lease in under_way:
        lease.release(Outcome.FAILURE)

    assert len(set(take(balancer, 4))) == 1


def test_a_passed_probe_closes_the_breaker_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    listed = [build_upstream(name, health_check=HealthCheck()) for name in "ab"]
    balancer = Balancer(build_config(*listed, circuit_breaker=BREAKER), clock=Clock())
    a = balancer.by_name["a"]
    fail(balancer, a, 2)
    caplog.clear()

    balancer.note_probe(a, Verdict(True, False, True, "status 200", 0.0, 0.0))
    balancer.note_probe(a, Verdict(True, False, True, "status 200", 0.0, 0.0))

    assert "a" in take(balancer, 2)
    assert caplog.messages == ["upstream a: circuit breaker closed by a passed probe"]


def test_a_tunnel_that_settles_a_trial_closes_the_breaker_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    config = build_config(build_upstream("a"), build_upstream("b"), circuit_breaker=BREAKER)
    balancer = Balancer(config, clock=clock)
    a = balancer.by_name["a"]
    fail(balancer, a, 2)
    clock.now += 10.0

    lease = balancer.lease(Wish(sticky=a))
    lease.settle(Outcome.SUCCESS)

    assert caplog.messages[-1] == "upstream a: circuit breaker closed"
    assert a.in_flight == 1
    lease.release()
    assert a.in_flight == 0


def test_an_administrator_takes_upstreams_out_and_in() -> None:
    balancer = Balancer(build_config(build_upstream("a"), build_upstream("b")))
    a = balancer.by_name["a"]

    balancer.set_admin_state(a, AdminState.DRAIN)
    assert take(balancer, 3) == "bbb"
    assert take(balancer, 2, Wish(sticky=a)) == "aa"

    balancer.set_admin_state(a, AdminState.MAINTENANCE)
    assert take(balancer, 2, Wish(sticky=a)) == "bb"

    balancer.set_admin_state(a, AdminState.READY)
    assert Counter(take(balancer, 4)) == {"a": 2, "b": 2}


@pytest.mark.parametrize("strategy", ["weighted_round_robin", "least_connections", "power_of_two"])
def test_an_administrators_weight_holds_at_once(strategy: str) -> None:
    config = build_config(build_upstream("a"), build_upstream("b"), strategy=strategy)
    balancer = Balancer(config)

    balancer.set_weight(balancer.by_name["a"], 0)
    assert take(balancer, 4) == "bbbb"

    balancer.set_weight(balancer.by_name["a"], 3)
    shares = Counter(lease.upstream.name for lease in hold(balancer, 400))
    assert abs(shares["a"] - 300) < 15

    balancer.set_weight(balancer.by_name["a"], None)
    shares = Counter(lease.upstream.name for lease in hold(balancer, 2000))
    assert balancer.by_name["a"].weight_override is None


# Backups


def test_a_backup_serves_only_when_nobody_else_is_available() -> None:
    listed = [build_upstream("a"), build_upstream("b"), build_upstream("c", backup=True)]
    balancer = Balancer(build_config(*listed))
    assert "c" not in take(balancer, 6)

    balancer.set_admin_state(balancer.by_name["a"], AdminState.MAINTENANCE)
    assert take(balancer, 2) == "bb"
    balancer.set_admin_state(balancer.by_name["b"], AdminState.MAINTENANCE)
    assert take(balancer, 2) == "cc"

    balancer.set_admin_state(balancer.by_name["a"], AdminState.READY)
    assert take(balancer, 2) == "aa"


def test_full_is_not_unavailable_for_a_backup() -> None:
    listed = [build_upstream("a", max_connections=1), build_upstream("b", backup=True)]
    balancer = Balancer(build_config(*listed))
    assert balancer.lease().upstream.name == "a"

    with balancer.ledger.lock:
        assert balancer.take(Wish()) is None
        assert balancer.may_wait(Wish())


# Sticky


def test_a_client_stays_with_its_upstream_as_long_as_that_serves() -> None:
    listed = [build_upstream("a", health_check=HealthCheck()), build_upstream("b")]
    balancer = Balancer(build_config(*listed))
    a = balancer.by_name["a"]
    wish = Wish(sticky=a)
    assert take(balancer, 4, wish) == "aaaa"

    balancer.note_probe(a, verdict(False))
    assert take(balancer, 2, wish) == "bb"
    balancer.note_probe(a, verdict(True))
    assert take(balancer, 2, wish) == "aa"

    balancer.set_weight(a, 0)
    assert take(balancer, 2, wish) == "aa"


def test_a_client_of_a_removed_upstream_is_sent_to_another() -> None:
    old = Balancer(build_config(build_upstream("a"), build_upstream("b")))
    new = Balancer(build_config(build_upstream("b")), old)
    new.activate()

    assert take(new, 2, Wish(sticky=old.by_name["a"])) == "bb"


# Slow start


def recovering(strategy: str, clock: Clock) -> tuple[Balancer, Upstream]:
    """A balancer of three, of which one has recovered just now."""
    listed = [build_upstream(name, health_check=HealthCheck()) for name in "abc"]
    config = build_config(*listed, strategy=strategy, slow_start=SlowStart(duration=30.0))
    balancer = Balancer(config, clock=clock, chance=random.Random(6).random)
    a = balancer.by_name["a"]
    balancer.note_probe(a, verdict(False))
    balancer.note_probe(a, verdict(True))
    return balancer, a


def ramp(strategy: str) -> dict[float, float]:
    """What part of its full share a recovered upstream gets, by the part of the time passed."""
    clock = Clock()
    balancer, _ = recovering(strategy, clock)
    shares = {}
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        clock.now = 1000.0 + part * 30.0
        shares[part] = take(balancer, 3000).count("a") / 1000
    print(strategy, {f"{part:.0%}": f"{share:.0%}" for part, share in shares.items()})
    return shares


@pytest.mark.parametrize(
    "strategy", ["round_robin", "weighted_round_robin", "random", "power_of_two"]
)
def test_one_that_has_recovered_ramps_up(strategy: str) -> None:
    for part, share in ramp(strategy).items():
        # Round robin comes to it the sooner for having passed it over.
        assert abs(share - max(TRICKLE, part)) < 0.12


def test_by_load_a_recovered_one_ramps_up_too() -> None:
    shares = ramp("least_connections")

    assert list(shares.values()) == sorted(shares.values())
    for part, share in shares.items():
        assert 0.5 * max(TRICKLE, part) < share < max(TRICKLE, part) + 0.05


@pytest.mark.parametrize("strategy", ["round_robin", "least_connections"])
def test_two_that_have_recovered_do_not_pass_to_each_other(strategy: str) -> None:
    balancer, _ = recovering(strategy, Clock())
    balancer.note_probe(balancer.by_name["b"], verdict(False))
    balancer.note_probe(balancer.by_name["b"], verdict(True))

    shares = Counter(take(balancer, 1000))

    assert shares["a"] < 100
    assert shares["b"] < 100


def test_when_all_have_recovered_none_waits() -> None:
    listed = [build_upstream(str(number), health_check=HealthCheck()) for number in range(100)]
    config = build_config(*listed, strategy="round_robin", slow_start=SlowStart(duration=30.0))
    balancer = Balancer(config, clock=Clock(), chance=random.Random(6).random)
    for is_up in (False, True):
        for upstream in balancer.upstreams:
            balancer.note_probe(upstream, verdict(is_up))

    served = {lease.upstream for lease in hold(balancer, 1000)}

    assert len(served) > 50


def test_one_that_is_alone_is_not_spared() -> None:
    balancer, a = recovering("round_robin", Clock())
    for name in "bc":
        balancer.set_admin_state(balancer.by_name[name], AdminState.MAINTENANCE)

    assert take(balancer, 20) == "a" * 20
    assert a.recovered_at is not None


def test_at_the_start_nobody_is_spared() -> None:
    listed = [build_upstream(name, health_check=HealthCheck()) for name in "ab"]
    config = build_config(*listed, slow_start=SlowStart(duration=30.0))

    assert Counter(take(Balancer(config, clock=Clock()), 20)) == {"a": 10, "b": 10}


# By requests in flight


def test_least_connections_is_exact_under_concurrency() -> None:
    listed = [build_upstream(str(number)) for number in range(7)]
    balancer = Balancer(build_config(*listed, strategy="least_connections"))
    clients, rounds = 64, 30
    barrier = threading.Barrier(clients, timeout=30.0)
    seen: list[list[int]] = []

    def ask() -> None:
        for _ in range(rounds):
            lease = balancer.lease()
            if barrier.wait() == 0:  # all hold one now
                seen.append([upstream.in_flight for upstream in balancer.upstreams])
            barrier.wait()
            lease.release()
            barrier.wait()

    threads = Threads()
    for _ in range(clients):
        threads.start(ask)
    threads.join()

    assert len(seen) == rounds
    assert all(sorted(counts) == [9, 9, 9, 9, 9, 9, 10] for counts in seen)
    assert not any(upstream.in_flight for upstream in balancer.upstreams)


def simulate(strategy: str, times: dict[str, float], *, rate: float, count: int) -> list[float]:
    """Latencies of `count` requests that come at random, `rate` a second; time is simulated.

    Each upstream works on one request at a time, which takes it so long as `times` says.
    """
    dice = random.Random(7)
    balancer = Balancer(
        build_config(*(build_upstream(name) for name in times), strategy=strategy), clock=Clock()
    )
    seed(balancer, random.Random(8))
    free_at = dict.fromkeys(times, 0.0)
    ends: list[tuple[float, int, Lease]] = []
    latencies = []
    now = 0.0
    for number in itertools.islice(itertools.count(), count):
        now += dice.expovariate(rate)
        while ends and ends[0][0] <= now:
            heapq.heappop(ends)[2].release()
        lease = balancer.lease()
        name = lease.upstream.name
        free_at[name] = max(free_at[name], now) + times[name]
        heapq.heappush(ends, (free_at[name], number, lease))
        latencies.append(free_at[name] - now)
    return sorted(latencies)


def test_by_load_one_slow_upstream_does_not_spoil_the_rest() -> None:
    times = {"a": 0.01, "b": 0.01, "c": 0.01, "slow": 0.1}
    p99 = {}

    for strategy in ("round_robin", "random", "power_of_two", "least_connections"):
        latencies = simulate(strategy, times, rate=38.0, count=20_000)
        p50, p99[strategy] = latencies[10_000], latencies[19_800]
        print(f"{strategy}: p50 {p50 * 1e3:.0f} ms, p99 {p99[strategy] * 1e3:,.0f} ms")

    assert p99["least_connections"] * 3 < p99["round_robin"]
    assert p99["power_of_two"] * 3 < p99["round_robin"]
    assert p99["power_of_two"] < 2 * p99["least_connections"]


# Cost


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("strategy", ["round_robin", "least_connections", "power_of_two"])
def test_a_lease_among_a_thousand_is_cheap(strategy: str, limit: int) -> None:
    listed = [build_upstream(str(number), max_connections=limit) for number in range(1000)]
    balancer = Balancer(build_config(*listed, strategy=strategy))
    leases = hold(balancer, 300)
    for lease in leases:
        lease.release()

    began = time.process_time()
    leases = hold(balancer, 300)
    for lease in leases:
        lease.release()
    each = (time.process_time() - began) / 300

    print(f"{strategy}, limit {limit}: {each * 1e6:.1f} µs for a lease and its release")
    assert each < (0.02 if limit else 0.001)  # with every lease somebody is full


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
