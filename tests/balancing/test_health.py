"""Health checks: the timetable of probes, and what results do to a verdict.

Time is the test's own, and probes are generators that the test scripts. The last tests run the
thread against real sockets.
"""

from __future__ import annotations

import itertools
import logging
import random
import selectors
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.balancing.health import HealthChecker
from atlas_pkg.balancing.probe import Outcome, Probe, Wait
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.balancing.verdict import Judge, Verdict
from atlas_pkg.config.model import HealthCheck, UpstreamConfig
from tests import fakes
from tests.toolkit import wait_until

PASS = Outcome(True, "status 200")
FAIL = Outcome(False, "status 503")

CHECK = HealthCheck(path="/", interval=10.0, timeout=5.0, rise=2, fall=3)


def upstream(name: str = "a") -> Upstream:
    return Upstream(UpstreamConfig(name, "192.0.2.1", 80))


class NoChance(random.Random):
    """Stretches and shortens nothing."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Bench:
    """A checker without its thread: a clock, scripted probes, and what it told.

    `finds` says what a probe of an upstream finds: an outcome, None for silence, or an error.
    """

    def __init__(self, generator: random.Random | None = None) -> None:
        self.now = 0.0
        self.finds: dict[str, Outcome | Exception | None] = {}
        self.begun: list[tuple[float, str]] = []
        self.open: list[socket.socket] = []
        self.told: list[tuple[float, str, Verdict]] = []
        self.checker = HealthChecker(
            self.note,
            probe=self.probe,
            clock=lambda: self.now,
            generator=generator or NoChance(),
        )

    def note(self, upstream: Upstream, verdict: Verdict) -> None:
        self.told.append((self.now, upstream.name, verdict))

    def probe(self, upstream: Upstream, _: HealthCheck) -> Probe:
        self.begun.append((self.now, upstream.name))
        found = self.finds.get(upstream.name, PASS)
        if found is None:
            yield from self.be_silent()
            return Outcome(False, "no answer in time")
        if isinstance(found, Exception):
            raise found
        return found

    def be_silent(self) -> Iterator[Wait]:
        ours, theirs = socket.socketpair()
        self.open.append(ours)
        with ours, theirs:
            try:
                yield Wait(ours, selectors.EVENT_READ)
            except TimeoutError:
                return

    def watch(self, *upstreams: Upstream, check: HealthCheck = CHECK) -> None:
        self.checker.watch([(upstream, check) for upstream in upstreams])

    def run_until(self, instant: float) -> None:
        """Let time pass, from one step that is due to the next."""
        while True:
            patience = self.checker.step(0.0)
            if patience is None or self.now + patience > instant:
                break
            self.now += patience
        self.now = instant

    def starts(self, name: str = "a") -> list[float]:
        """When probes of this upstream began."""
        return [when for when, who in self.begun if who == name]

    def flips(self) -> list[tuple[float, str, bool]]:
        """When verdicts changed, and to what."""
        return [(when, who, told.is_up) for when, who, told in self.told if told.has_flipped]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.checker.stop()


# Verdicts


def hear(judge: Judge, outcomes: Sequence[Outcome], check: HealthCheck = CHECK) -> list[bool]:
    return [judge.hear(outcome, check, latency=0.0, now=0.0).is_up for outcome in outcomes]


def test_an_upstream_goes_down_after_failures_in_a_row_and_up_after_successes() -> None:
    judge = Judge(is_new=False, now=0.0)

    assert hear(judge, [FAIL, FAIL, PASS, FAIL, FAIL, FAIL]) == [True] * 5 + [False]
    assert hear(judge, [PASS, FAIL, PASS, PASS]) == [False] * 3 + [True]


def test_a_new_upstream_is_down_until_one_probe_has_passed() -> None:
    judge = Judge(is_new=True, now=0.0)

    assert hear(judge, [FAIL, FAIL, PASS, FAIL]) == [False, False, True, True]
    assert hear(judge, [FAIL, FAIL, PASS, PASS]) == [True, False, False, True]


def test_a_verdict_tells_what_was_found_and_since_when_it_stands() -> None:
    judge = Judge(is_new=False, now=1.0)
    check = replace(CHECK, fall=1)

    first = judge.hear(PASS, check, latency=0.1, now=2.0)
    second = judge.hear(FAIL, check, latency=0.2, now=3.0)
    third = judge.hear(PASS, check, latency=0.3, now=4.0)

    assert first == Verdict(True, False, True, "status 200", 0.1, since=1.0)
    assert second == Verdict(False, True, False, "status 503", 0.2, since=3.0)
    assert third == Verdict(False, False, True, "status 200", 0.3, since=3.0)


def test_probes_come_faster_while_a_verdict_is_in_doubt() -> None:
    judge = Judge(is_new=False, now=0.0)

    intervals = []
    for outcome in [PASS, FAIL, FAIL, FAIL, FAIL, PASS, PASS]:
        hear(judge, [outcome])
        intervals.append(judge.interval(CHECK))

    assert intervals == [10.0, 2.0, 2.0, 10.0, 10.0, 2.0, 10.0]
    assert Judge(is_new=True, now=0.0).interval(CHECK) == 2.0
    assert Judge(is_new=True, now=0.0).interval(replace(CHECK, interval=0.5)) == 0.5


@given(results=st.lists(st.booleans(), max_size=60), rise=st.integers(1, 4), fall=st.integers(1, 4))
def test_a_verdict_changes_only_after_equal_results_in_a_row(
    results: list[bool], rise: int, fall: int
) -> None:
    check = replace(CHECK, rise=rise, fall=fall)

    told = hear(
        Judge(is_new=False, now=0.0), [PASS if result else FAIL for result in results], check
    )

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
    bench.checker.stop()


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
    bench.checker.stop()


def test_a_silent_upstream_fails_when_the_time_is_up(bench: Bench) -> None:
    bench.finds["a"] = None
    bench.watch(upstream())

    bench.run_until(12.0)

    assert bench.starts() == [0.0, 5.0, 10.0]
    (_, _, first), *_ = bench.told
    assert not first.has_passed
    assert first.reason == "no answer in time"
    assert first.latency == 5.0
    assert bench.open[0].fileno() == -1


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


def test_an_answer_that_lies_there_has_come_in_time(bench: Bench) -> None:
    ours, theirs = socket.socketpair()

    def probe(_: Upstream, __: HealthCheck) -> Probe:
        yield Wait(ours, selectors.EVENT_READ)
        return PASS

    bench.checker._make_probe = probe
    bench.watch(upstream())
    with ours, theirs:
        bench.run_until(1.0)
        theirs.send(b"x")
        bench.now = 100.0  # the thread did not run for long
        bench.checker.step(0.0)

    assert [told.has_passed for _, _, told in bench.told] == [True]


def test_turns_out_of_date_do_not_pile_up(bench: Bench) -> None:
    bench.watch(upstream(), check=replace(CHECK, interval=0.01, timeout=1e6))

    bench.run_until(20.0)

    assert len(bench.begun) > 1900
    assert len(bench.checker._turns) < 200


def test_the_longest_interval_is_no_problem(bench: Bench) -> None:
    bench.watch(upstream(), check=replace(CHECK, interval=1e9, timeout=1e9))

    patience = bench.checker.step(0.0)

    assert patience == 3600.0


# Reloads


def test_an_upstream_that_a_reload_adds_is_down_until_its_first_passed_probe(bench: Bench) -> None:
    old, new = upstream("old"), upstream("new")
    bench.watch(old)
    bench.run_until(1.0)

    bench.finds["new"] = FAIL
    bench.checker.watch([(old, CHECK), (new, CHECK)], awaiting=[new])
    bench.run_until(6.0)
    bench.finds["new"] = PASS
    bench.run_until(8.0)

    told = [(when, verdict.is_up) for when, who, verdict in bench.told if who == "new"]
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
    bench.checker.watch([(listed, replace(CHECK))], awaiting=[listed])
    bench.run_until(20.0)

    assert bench.starts() == [0.0, 2.0, 4.0, 14.0]
    assert bench.flips() == [(4.0, "a", False)]


def test_new_settings_are_tried_at_once_and_leave_the_verdict_alone(bench: Bench) -> None:
    listed = upstream()
    bench.finds["a"] = FAIL
    bench.watch(listed, check=replace(CHECK, fall=1))
    bench.run_until(1.0)

    bench.watch(listed, check=replace(CHECK, path="/new"))
    bench.run_until(1.5)

    assert bench.starts() == [0.0, 1.0]
    assert bench.flips() == [(0.0, "a", False)]
    assert not bench.told[-1][2].is_up


def test_new_settings_end_the_probe_under_way(bench: Bench) -> None:
    listed = upstream()
    bench.finds["a"] = None
    bench.watch(listed)
    bench.run_until(1.0)

    bench.watch(listed, check=replace(CHECK, timeout=2.0))
    bench.run_until(3.5)

    assert bench.open[0].fileno() == -1
    assert [when for when, _, _ in bench.told] == [3.0]


def test_an_upstream_that_left_is_neither_probed_nor_told_of(bench: Bench) -> None:
    bench.finds["a"] = None
    bench.watch(upstream(), upstream("b"))
    bench.run_until(1.0)

    bench.watch()
    bench.run_until(100.0)

    assert bench.open[0].fileno() == -1
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


# Faults


def test_only_a_change_of_verdict_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bench.finds["a"] = FAIL
    bench.watch(upstream())
    bench.run_until(50.0)
    bench.finds["a"] = PASS
    bench.run_until(100.0)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "upstream a is down: status 503"),
        ("INFO", "upstream a is up: status 200"),
    ]


def test_a_fault_of_this_machine_is_no_verdict(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.finds["a"] = OSError(24, "Too many open files")
    bench.watch(upstream())

    bench.run_until(25.0)

    assert bench.starts() == [0.0, 10.0, 20.0]
    assert bench.told == []
    assert [record.getMessage() for record in caplog.records] == [
        "cannot probe upstreams: [Errno 24] Too many open files"
    ]


def test_a_probe_that_breaks_does_not_end_the_checks(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.finds["a"] = ValueError("a bug")
    bench.watch(upstream(), upstream("b"))

    bench.run_until(15.0)

    assert bench.starts() == [0.0, 10.0]
    assert len(bench.starts("b")) == 2
    assert caplog.records[0].getMessage() == "upstream a: its health check broke"


def test_a_receiver_that_breaks_does_not_end_the_checks(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object) -> None:
        raise ValueError("a bug")

    bench.checker._on_verdict = break_down
    bench.watch(upstream())

    bench.run_until(25.0)

    assert bench.starts() == [0.0, 10.0, 20.0]
    assert len(caplog.records) == 3


# The thread


class Told:
    """A receiver that keeps the latest verdict by name."""

    def __init__(self) -> None:
        self.latest: dict[str, Verdict] = {}

    def __call__(self, upstream: Upstream, verdict: Verdict) -> None:
        self.latest[upstream.name] = verdict


def test_the_thread_probes_real_upstreams() -> None:
    told = Told()
    checker = HealthChecker(told)
    quick = HealthCheck(path="/", interval=0.05, timeout=5.0, fall=1)
    with fakes.named("a") as alive, fakes.silent("b") as silent:
        listed = [
            Upstream(UpstreamConfig(fake.name, fake.address, fake.port)) for fake in (alive, silent)
        ]
        checker.start()
        checker.watch([(listed[1], quick), (listed[0], quick)])
        wait_until(lambda: alive.requests >= 3, "probes")
        assert told.latest["a"].is_up

        alive.close()
        wait_until(lambda: not told.latest["a"].is_up, "a change of verdict")

        assert told.latest["a"].reason in {"connect refused", "closed without an answer"}
        assert "b" not in told.latest
        checker.stop()
        wait_until(lambda: silent.connected == 0, "the end of the probe under way")
    assert checker._thread is not None
    assert not checker._thread.is_alive()


def test_a_list_wakes_the_thread_from_a_long_rest() -> None:
    told = Told()
    checker = HealthChecker(told)
    with fakes.named("a") as alive:
        listed = Upstream(UpstreamConfig("a", alive.address, alive.port))
        checker.start()
        checker.watch([])
        checker.watch([(listed, CHECK)])

        wait_until(lambda: "a" in told.latest, "a probe")
    checker.stop()


def test_a_checker_that_never_ran_can_be_stopped_twice() -> None:
    checker = HealthChecker(Told())
    checker.watch([(upstream(), CHECK)])

    checker.stop()
    checker.stop()
    checker.watch([])
