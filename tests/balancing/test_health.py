"""Health checks: what probes do to an upstream's state, the timetable of probes, and the threads.

The timetable is asked with a time that the test makes up; the threads run against probes that the
test scripts, and at last against real sockets.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.balancing import health
from atlas_pkg.balancing.health import HealthChecker, HealthState, Patient, RiseFall, Timetable
from atlas_pkg.balancing.probe import Result
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import HealthCheck, UpstreamConfig
from atlas_pkg.errors import Side, StreamError
from tests import fakes
from tests.toolkit import wait_until

PASS = Result(True, "status 200")
FAIL = Result(False, "status 503")

CHECK = HealthCheck(path="/", interval=10.0, timeout=5.0, rise=2, fall=3)


def upstream(name: str = "a") -> Upstream:
    return Upstream(UpstreamConfig(name, "192.0.2.1", 80))


class NoChance(random.Random):
    """Stretches and shortens nothing."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Bench:
    """A timetable, a clock, and probes that take no time, or all of theirs.

    `finds` says what a probe of an upstream finds: a result, or None for silence.
    """

    def __init__(self, generator: random.Random | None = None) -> None:
        self.now = 0.0
        self.finds: dict[str, Result | None] = {}
        self.begun: list[tuple[float, str]] = []
        self.told: list[tuple[float, str, HealthState]] = []
        self.table = Timetable(generator or NoChance())
        self.under_way: list[tuple[float, int, Patient, Result]] = []

    def watch(self, *upstreams: Upstream, check: HealthCheck = CHECK) -> None:
        self.table.watch([(upstream, check) for upstream in upstreams], (), self.now)

    def run_until(self, instant: float) -> None:
        """Let time pass, from one thing that is due to the next."""
        while True:
            for patient in self.table.take_due(self.now):
                name = patient.upstream.name
                self.begun.append((self.now, name))
                found = self.finds.get(name, PASS)
                end = self.now if found is not None else self.now + patient.check.timeout
                result = found or Result(False, "no answer in time")
                heapq.heappush(self.under_way, (end, len(self.begun), patient, result))
            while self.under_way and self.under_way[0][0] <= self.now:
                _, _, patient, result = heapq.heappop(self.under_way)
                state = self.table.conclude(patient, result)
                if state is not None:
                    self.told.append((self.now, patient.upstream.name, state))
                self.table.reschedule(patient, self.now)
            rest = self.table.rest(self.now)
            following = [self.under_way[0][0]] if self.under_way else []
            following += [] if rest is None else [self.now + rest]
            if not following or min(following) > instant:
                break
            self.now = min(following)
        self.now = instant

    def starts(self, name: str = "a") -> list[float]:
        """When probes of this upstream began."""
        return [when for when, who in self.begun if who == name]

    def flips(self) -> list[tuple[float, str, bool]]:
        """When states changed, and to what."""
        return [(when, who, told.is_up) for when, who, told in self.told if told.has_flipped]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Rise and fall


def add(health: RiseFall, results: Sequence[Result], check: HealthCheck = CHECK) -> list[bool]:
    return [health.add(result, check).is_up for result in results]


def test_an_upstream_goes_down_after_failures_in_a_row_and_up_after_successes() -> None:
    health = RiseFall(is_new=False)

    assert add(health, [FAIL, FAIL, PASS, FAIL, FAIL, FAIL]) == [True] * 5 + [False]
    assert add(health, [PASS, FAIL, PASS, PASS]) == [False] * 3 + [True]


def test_a_new_upstream_is_down_until_one_probe_has_passed() -> None:
    health = RiseFall(is_new=True)

    assert add(health, [FAIL, FAIL, PASS, FAIL]) == [False, False, True, True]
    assert add(health, [FAIL, FAIL, PASS, PASS]) == [True, False, False, True]


def test_a_state_tells_what_was_found() -> None:
    health = RiseFall(is_new=False)
    check = replace(CHECK, fall=1)

    assert health.add(PASS, check) == HealthState(True, False, True, "status 200")
    assert health.add(FAIL, check) == HealthState(False, True, False, "status 503")
    assert health.add(PASS, check) == HealthState(False, False, True, "status 200")


def test_probes_come_faster_while_the_state_is_in_doubt() -> None:
    health = RiseFall(is_new=False)

    intervals = []
    for result in [PASS, FAIL, FAIL, FAIL, FAIL, PASS, PASS]:
        add(health, [result])
        intervals.append(health.interval(CHECK))

    assert intervals == [10.0, 2.0, 2.0, 10.0, 10.0, 2.0, 10.0]
    assert RiseFall(is_new=True).interval(CHECK) == 2.0
    assert RiseFall(is_new=True).interval(replace(CHECK, interval=0.5)) == 0.5


@given(results=st.lists(st.booleans(), max_size=60), rise=st.integers(1, 4), fall=st.integers(1, 4))
def test_a_state_changes_only_after_equal_results_in_a_row(
    results: list[bool], rise: int, fall: int
) -> None:
    check = replace(CHECK, rise=rise, fall=fall)

    told = add(RiseFall(is_new=False), [PASS if result else FAIL for result in results], check)

    is_up = True
    for index, result in enumerate(results):
        needed = fall if is_up else rise
        latest = results[max(0, index + 1 - needed) : index + 1]
        if latest == [not is_up] * needed:
            is_up = result
        assert told[index] is is_up


# The timetable


def test_probes_begin_at_once_and_come_again_after_the_interval(bench: Bench) -> None:
    bench.watch(upstream())

    bench.run_until(35.0)

    assert bench.starts() == [0.0, 10.0, 20.0, 30.0]


def test_first_probes_of_many_are_spread_a_little() -> None:
    bench = Bench()
    bench.watch(*(upstream(str(number)) for number in range(1000)))

    bench.run_until(5.0)

    times = [when for when, _ in bench.begun]
    assert len(set(times)) == len(times) == 1000
    assert times[0] == 0.0
    assert times[-1] == pytest.approx(2.0, abs=0.01)


def test_a_dead_upstream_is_known_as_such_after_seconds(bench: Bench) -> None:
    bench.watch(upstream())
    bench.run_until(25.0)

    bench.finds["a"] = FAIL
    bench.run_until(60.0)

    assert bench.starts() == [0.0, 10.0, 20.0, 30.0, 32.0, 34.0, 44.0, 54.0]
    assert bench.flips() == [(34.0, "a", False)]


def test_one_failed_probe_changes_nothing(bench: Bench) -> None:
    bench.finds["a"] = FAIL
    bench.watch(upstream())
    bench.run_until(1.0)

    bench.finds["a"] = PASS
    bench.run_until(30.0)

    assert bench.flips() == []
    assert bench.starts() == [0.0, 2.0, 12.0, 22.0]


def test_every_result_is_told(bench: Bench) -> None:
    bench.watch(upstream())

    bench.run_until(25.0)

    assert [(when, who, told.has_passed) for when, who, told in bench.told] == [
        (0.0, "a", True),
        (10.0, "a", True),
        (20.0, "a", True),
    ]


def test_intervals_vary_by_a_tenth_at_most() -> None:
    bench = Bench(random.Random(1))
    bench.watch(upstream())

    bench.run_until(5000.0)

    starts = bench.starts()
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert 9.0 <= min(gaps) < 9.2
    assert 10.8 < max(gaps) <= 11.0


def test_a_silent_upstream_fails_when_the_time_is_up(bench: Bench) -> None:
    bench.finds["a"] = None
    bench.watch(upstream())

    bench.run_until(12.0)

    assert bench.starts() == [0.0, 5.0, 10.0]
    (_, _, first), *_ = bench.told
    assert not first.has_passed
    assert first.reason == "no answer in time"
    assert bench.told[0][0] == 5.0


def test_probes_of_one_upstream_do_not_overlap(bench: Bench) -> None:
    bench.finds["a"] = None
    bench.watch(upstream(), check=replace(CHECK, interval=1.0, timeout=30.0))

    bench.run_until(100.0)

    assert bench.starts() == [0.0, 30.0, 60.0, 90.0]


def test_slow_probes_delay_no_other(bench: Bench) -> None:
    silent = [upstream(f"silent {number}") for number in range(200)]
    bench.finds.update({listed.name: None for listed in silent})
    bench.watch(*silent, upstream())

    bench.run_until(25.0)

    first = bench.starts()[0]
    assert first < 0.5
    assert bench.starts() == pytest.approx([first, first + 10, first + 20])


# Reloads


def test_an_upstream_that_a_reload_adds_is_down_until_its_first_passed_probe(bench: Bench) -> None:
    old, new = upstream("old"), upstream("new")
    bench.watch(old)
    bench.run_until(1.0)

    bench.finds["new"] = FAIL
    bench.table.watch([(old, CHECK), (new, CHECK)], [new], bench.now)
    bench.run_until(6.0)
    bench.finds["new"] = PASS
    bench.run_until(8.0)

    told = [(when, state.is_up) for when, who, state in bench.told if who == "new"]
    assert told == [(1.0, False), (3.0, False), (5.0, False), (7.0, True)]
    assert bench.flips() == [(7.0, "new", True)]


def test_upstreams_that_stay_keep_schedule_and_counts(bench: Bench) -> None:
    listed = upstream()
    bench.finds["a"] = FAIL
    bench.watch(listed)
    bench.run_until(3.0)

    for instant in (3.2, 3.4, 3.6):
        bench.watch(upstream("b"), listed)
        bench.run_until(instant)
    bench.table.watch([(listed, replace(CHECK))], [listed], bench.now)
    bench.run_until(20.0)

    assert bench.starts() == [0.0, 2.0, 4.0, 14.0]
    assert bench.flips() == [(4.0, "a", False)]


def test_new_settings_are_tried_at_once_and_leave_the_state_alone(bench: Bench) -> None:
    listed = upstream()
    bench.finds["a"] = FAIL
    bench.watch(listed, check=replace(CHECK, fall=1))
    bench.run_until(1.0)

    bench.watch(listed, check=replace(CHECK, path="/new"))
    bench.run_until(1.5)

    assert bench.starts() == [0.0, 1.0]
    assert bench.flips() == [(0.0, "a", False)]
    assert not bench.told[-1][2].is_up


def test_an_upstream_that_left_is_neither_probed_nor_told_of(bench: Bench) -> None:
    bench.finds["a"] = None
    bench.watch(upstream(), upstream("b"))
    bench.run_until(1.0)

    bench.watch()
    bench.run_until(100.0)

    assert [who for _, who in bench.begun] == ["a", "b"]
    assert [who for _, who, _ in bench.told] == ["b"]


def test_an_upstream_that_comes_back_begins_anew(bench: Bench) -> None:
    bench.finds["a"] = FAIL
    bench.watch(upstream())
    bench.run_until(3.0)

    bench.watch(upstream())
    bench.run_until(5.5)

    assert bench.starts() == [0.0, 2.0, 3.0, 5.0]
    assert bench.flips() == []


def test_what_a_probe_under_old_settings_finds_is_not_told(bench: Bench) -> None:
    listed = upstream()
    bench.finds["a"] = None
    bench.watch(listed)
    bench.run_until(1.0)

    bench.watch(listed, check=replace(CHECK, timeout=2.0))
    bench.run_until(5.5)

    assert bench.starts() == [0.0, 1.0, 3.0, 5.0]
    assert [when for when, _, _ in bench.told] == [3.0, 5.0]


def test_lists_that_come_and_go_leave_nothing_behind(bench: Bench) -> None:
    for number in range(50):
        bench.watch(upstream("a"), check=replace(CHECK, interval=10.0 + number))

    assert len(bench.table._heap) == 1


# The threads


class Told:
    """A receiver that keeps what it was told, by name."""

    def __init__(self) -> None:
        self.all: list[tuple[str, HealthState]] = []
        self.latest: dict[str, HealthState] = {}

    def __call__(self, upstream: Upstream, state: HealthState) -> None:
        self.latest[upstream.name] = state
        self.all.append((upstream.name, state))


QUICK = HealthCheck(path="/", interval=0.02, timeout=5.0, rise=1, fall=1)


class Ward:
    """A checker whose probes are scripted: a result, or an error to raise, by name."""

    def __init__(self) -> None:
        self.told = Told()
        self.finds: dict[str, Result | Exception] = {}
        self.probed: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.checker = HealthChecker(self.told, probe=self.probe)

    def probe(self, upstream: Upstream, _: HealthCheck) -> Result:
        self.probed.append(upstream.name)
        if upstream.name.startswith("silent"):
            self.may_answer.wait(30)
        found = self.finds.get(upstream.name, PASS)
        if isinstance(found, Exception):
            raise found
        return found

    def watch(self, *upstreams: Upstream, check: HealthCheck = QUICK) -> None:
        self.checker.watch([(upstream, check) for upstream in upstreams])


@pytest.fixture
def ward() -> Iterator[Ward]:
    made = Ward()
    made.checker.start()
    yield made
    made.checker.stop()
    made.may_answer.set()


def probes_of(ward: Ward, name: str, more: int = 3) -> None:
    """Wait for some more probes of one upstream."""
    before = ward.probed.count(name)
    wait_until(lambda: ward.probed.count(name) >= before + more, f"probes of {name}")


def test_only_a_change_of_state_is_logged(ward: Ward, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ward.finds["a"] = FAIL
    ward.watch(upstream())
    probes_of(ward, "a")
    ward.finds["a"] = PASS
    probes_of(ward, "a")

    wait_until(lambda: len(caplog.records) == 2, "two lines")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "upstream a is down: status 503"),
        ("INFO", "upstream a is up: status 200"),
    ]


def test_a_fault_of_this_machine_changes_nothing(
    ward: Ward, caplog: pytest.LogCaptureFixture
) -> None:
    ward.finds["a"] = StreamError(Side.UPSTREAM, "too many open files", is_own_fault=True)
    ward.watch(upstream())
    probes_of(ward, "a")

    assert ward.told.all == []
    assert [record.getMessage() for record in caplog.records] == [
        "cannot probe upstreams: too many open files"
    ]


def test_a_probe_that_breaks_does_not_end_the_checks(
    ward: Ward, caplog: pytest.LogCaptureFixture
) -> None:
    ward.finds["a"] = ValueError("a bug")
    ward.watch(upstream(), upstream("b"))

    probes_of(ward, "a")
    probes_of(ward, "b")

    assert caplog.records[0].getMessage() == "upstream a: its health check broke"


def test_a_receiver_that_breaks_does_not_end_the_checks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []

    def break_down(upstream: Upstream, _: HealthState) -> None:
        calls.append(upstream.name)
        raise ValueError("a bug")

    checker = HealthChecker(break_down, probe=lambda *_: PASS)
    checker.start()
    checker.watch([(upstream(), QUICK)])

    wait_until(lambda: len(calls) >= 3, "probes")
    checker.stop()
    assert len(caplog.records) >= 2


def test_probes_that_hang_delay_no_other(ward: Ward) -> None:
    ward.may_answer.clear()
    ward.watch(*(upstream(f"silent {number}") for number in range(20)), upstream())

    probes_of(ward, "a")

    wait_until(lambda: len(ward.probed) - ward.probed.count("a") == 20, "the first probes of all")
    assert ward.checker._threads <= 21


def test_there_are_only_so_many_threads(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_THREADS", 3)
    ward.may_answer.clear()
    ward.watch(*(upstream(f"silent {number}") for number in range(5)))
    wait_until(lambda: len(ward.probed) == 3, "the first probes")

    ward.may_answer.set()

    wait_until(lambda: len(set(ward.probed)) == 5, "the others")
    assert ward.checker._threads == 3


def test_one_thread_is_enough_for_one_probe_at_a_time(ward: Ward) -> None:
    ward.watch(upstream())

    probes_of(ward, "a", 10)

    assert ward.checker._threads == 1


def test_what_is_found_after_the_end_is_not_told(ward: Ward) -> None:
    ward.may_answer.clear()
    ward.watch(upstream("silent"))
    wait_until(lambda: ward.probed, "a probe")

    ward.checker.stop()
    ward.may_answer.set()

    assert ward.told.all == []
    assert ward.checker._thread is not None
    assert not ward.checker._thread.is_alive()


def test_real_upstreams_are_probed() -> None:
    told = Told()
    checker = HealthChecker(told)
    with fakes.named("a") as alive, fakes.silent("b") as silent:
        listed = [
            Upstream(UpstreamConfig(fake.name, fake.address, fake.port)) for fake in (alive, silent)
        ]
        checker.start()
        checker.watch([(listed[1], QUICK), (listed[0], QUICK)])
        wait_until(lambda: alive.requests >= 3, "probes")
        assert told.latest["a"].is_up

        alive.close()
        wait_until(lambda: not told.latest["a"].is_up, "a change of state")

        assert told.latest["a"].reason in {"connect refused", "closed without an answer"}
        assert "b" not in told.latest
        checker.stop()


def test_a_list_wakes_the_checker_from_a_long_rest() -> None:
    told = Told()
    checker = HealthChecker(told)
    with fakes.named("a") as alive:
        listed = Upstream(UpstreamConfig("a", alive.address, alive.port))
        checker.start()
        checker.watch([])
        checker.watch([(listed, replace(CHECK, interval=1e9))])

        wait_until(lambda: "a" in told.latest, "a probe")
    checker.stop()


def test_a_checker_that_never_ran_can_be_stopped_twice() -> None:
    checker = HealthChecker(Told())
    checker.watch([(upstream(), CHECK)])

    checker.stop()
    checker.stop()
    checker.watch([])
