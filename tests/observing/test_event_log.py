"""Events and errors in words. The clock is in the test's hand."""

from __future__ import annotations

import pytest

from atlas_pkg.balancing.breaker import Breaker
from atlas_pkg.balancing.upstream import AdminState, Upstream
from atlas_pkg.config.model import CircuitBreaker, UpstreamConfig
from atlas_pkg.observing.event_log import (
    MOST_ERRORS,
    MOST_EVENTS,
    Errors,
    Events,
    merge_errors,
)
from atlas_pkg.observing.process_stats import UpstreamNow, state_of
from atlas_pkg.observing.record import End, Record
from atlas_pkg.observing.timeline import MOST_LINE
from tests.observing.samples import build_now


def in_state(name: str, kind: str, why: str = "", *, words: str = "") -> UpstreamNow:
    return build_now(name, kind, state=words or kind, why=why)


def up(name: str = "a") -> UpstreamNow:
    return in_state(name, "up", "HTTP 200")


def down(name: str = "a") -> UpstreamNow:
    return in_state(name, "down", "refused")


class Clock:
    """Both clocks at once, a million seconds apart."""

    def __init__(self) -> None:
        self.now = 1000.0

    def wall(self) -> float:
        return self.now + 1e6

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events(clock: Clock) -> Events:
    return Events(clock.wall)


@pytest.fixture
def errors(clock: Clock) -> Errors:
    return Errors(clock=clock.wall, monotonic=clock.monotonic)


def build_record(end: End, line: bytes = b"GET / HTTP/1.1", **more: object) -> Record:
    record = Record("192.0.2.7", line, 999.0)
    record.end = end
    record.status = 502
    for name, value in more.items():
        setattr(record, name, value)
    return record


@pytest.mark.parametrize("kind", ["open", "half-open"])
def test_a_breaker_that_has_closed_is_told(events: Events, kind: str) -> None:
    events.watch([in_state("a", kind)])
    events.watch([up()])

    assert [event["text"] for event in events.lines()] == ["circuit breaker closed, up: HTTP 200"]


def test_events_are_told_newest_first(events: Events, clock: Clock) -> None:
    events.note("reload", "reloaded")
    clock.now += 5
    events.note("steering", "state drain", upstream="a")

    assert events.lines() == [
        {"time": 1001005.0, "kind": "steering", "upstream": "a", "text": "state drain"},
        {"time": 1001000.0, "kind": "reload", "upstream": "", "text": "reloaded"},
    ]


def test_both_lists_are_bounded(events: Events, errors: Errors) -> None:
    for number in range(200):
        events.note("reload", str(number))
        errors.note([build_record(End.ERROR, b"GET /%d HTTP/1.1" % number)])

    assert len(events.lines()) == MOST_EVENTS
    assert events.lines()[0]["text"] == "199"
    assert len(errors.lines()) == MOST_ERRORS
    assert errors.lines()[0]["line"] == "GET /199 HTTP/1.1"
    assert errors.lines()[-1]["line"] == f"GET /{200 - MOST_ERRORS} HTTP/1.1"


def test_a_change_of_state_is_an_event_with_its_cause(events: Events, clock: Clock) -> None:
    events.watch([up(), up("b")])
    clock.now += 7

    events.watch([down(), up("b")])

    assert events.lines() == [
        {"time": 1001007.0, "kind": "state", "upstream": "a", "text": "down: refused"}
    ]
    assert events.since("a") == 1001007.0
    assert events.since("b") == 1001000.0


def test_what_stays_is_no_event_whatever_the_words(events: Events, clock: Clock) -> None:
    events.watch([in_state("a", "open", words="breaker open, 8 s left")])
    clock.now += 1

    events.watch([in_state("a", "open", words="breaker open, 7 s left")])

    assert events.lines() == []
    assert events.since("a") == 1001000.0


def test_upstreams_that_come_and_go_are_no_event(events: Events) -> None:
    events.watch([up()])
    events.watch([down("b")])

    assert events.lines() == []
    assert events.since("a") is None
    assert events.since("c") is None


@pytest.mark.parametrize("end", [End.DONE, End.CLIENT_GONE, End.TUNNEL])
def test_what_went_well_is_no_error(errors: Errors, end: End) -> None:
    errors.note([build_record(end, status=499)])

    assert errors.lines() == []


def test_what_counts_as_an_error_is_listed_whoever_answered(errors: Errors) -> None:
    errors.note([build_record(End.DONE, status=499), build_record(End.DONE, status=500)])

    (line,) = errors.lines()
    assert (line["status"], line["text"]) == (500, "the upstream's own answer")


@pytest.mark.parametrize(
    "end", [end for end in End if end not in {End.DONE, End.CLIENT_GONE, End.TUNNEL}]
)
def test_every_failure_has_its_words(errors: Errors, end: End) -> None:
    errors.note([build_record(end)])

    assert len(errors.lines()[0]["text"]) > 10


def test_an_error_says_who_what_and_when(errors: Errors) -> None:
    errors.note([build_record(End.UPSTREAM_FAILED, upstream="a", ended_at=998.5)])

    assert errors.lines() == [
        {
            "time": 1000998.5,
            "client": "192.0.2.7",
            "line": "GET / HTTP/1.1",
            "group": "default",
            "upstream": "a",
            "status": 502,
            "text": "the upstream failed before its answer had begun",
            "count": 1,
        }
    ]


def test_errors_that_are_alike_are_one_line_with_the_time_of_the_last(
    errors: Errors, clock: Clock
) -> None:
    other = build_record(End.NO_UPSTREAM, b"GET /other HTTP/1.1", ended_at=1000.0)
    for number in range(17):
        clock.now += 1
        alike = build_record(End.NO_UPSTREAM, ended_at=clock.now, address=f"192.0.2.{number}")
        errors.note([alike])
        if not number:
            errors.note([other])

    lines = errors.lines()

    assert [(error["line"], error["count"]) for error in lines] == [
        ("GET / HTTP/1.1", 17),
        ("GET /other HTTP/1.1", 1),
    ]
    assert (lines[0]["time"], lines[0]["client"]) == (1001017.0, "192.0.2.16")


@pytest.mark.parametrize(
    "more", [{"status": 504}, {"upstream": "b"}, {"line": b"GET /b"}, {"end": End.ERROR}]
)
def test_errors_that_differ_stay_apart(errors: Errors, more: dict[str, object]) -> None:
    errors.note([build_record(End.UPSTREAM_FAILED)])
    errors.note([build_record(**{"end": End.UPSTREAM_FAILED, **more})])  # type: ignore[arg-type]

    assert [error["count"] for error in errors.lines()] == [1, 1]


def test_errors_of_several_processes_are_one_list(errors: Errors, clock: Clock) -> None:
    another = Errors(clock=clock.wall, monotonic=clock.monotonic)
    for at, line in enumerate((b"GET /a", b"GET /b", b"GET /a")):
        errors.note([build_record(End.NO_UPSTREAM, line, ended_at=900.0 + at)])
    another.note([build_record(End.NO_UPSTREAM, b"GET /b", ended_at=950.0)])

    merged = merge_errors([*errors.lines(), *another.lines()])

    assert [(error["line"], error["count"], error["time"]) for error in merged] == [
        ("GET /b", 2, 1000950.0),
        ("GET /a", 2, 1000902.0),
    ]
    assert [error["count"] for error in errors.lines()] == [2, 1], "its parts are unchanged"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"GET /a?token=secret HTTP/1.1", "GET /a?… HTTP/1.1"),
        (b"GET /a?x y?z HTTP/1.1", "GET /a?… HTTP/1.1"),
        (b"GET /a?token=secret", "GET /a?…"),
        (b"\x16\x03\x01\x00\n", "\ufffd" * 5),
        (b"GET /caf\xe9 HTTP/1.1", "GET /café HTTP/1.1"),
        (b"", ""),
    ],
)
def test_request_lines_are_shown_without_query_and_controls(
    errors: Errors, line: bytes, shown: str
) -> None:
    errors.note([build_record(End.REFUSED, line)])

    assert errors.lines()[0]["line"] == shown


def test_long_request_lines_are_cut(errors: Errors) -> None:
    errors.note([build_record(End.REFUSED, b"GET /" + b"a" * 8000)])

    assert len(errors.lines()[0]["line"]) == MOST_LINE


# States in words


def build_upstream() -> Upstream:
    return Upstream(UpstreamConfig("a", "127.0.0.1", 80))


def test_an_unchecked_upstream_is_up_without_a_word() -> None:
    assert state_of(build_upstream(), 0.0, is_checked=False) == ("up", "up", "")


def test_a_checked_upstream_says_what_the_check_found() -> None:
    upstream = build_upstream()

    assert state_of(upstream, 0.0, is_checked=True).why == "no probe yet"
    upstream.health_reason = "HTTP 200"
    assert state_of(upstream, 0.0, is_checked=True) == ("up", "up", "HTTP 200")
    upstream.is_up, upstream.health_reason = False, "refused"
    assert state_of(upstream, 0.0, is_checked=True) == ("down", "down", "refused")
    upstream.health_reason = "waits for its first probe"
    assert state_of(upstream, 0.0, is_checked=True).kind == "checking"


def test_a_breaker_says_how_long_it_stays_open() -> None:
    upstream = build_upstream()
    upstream.breaker = Breaker(CircuitBreaker(failures=1, open_for=10.0))

    assert state_of(upstream, 0.0, is_checked=False).kind == "up"
    upstream.breaker.fail(upstream.breaker.begin(0.0), 0.0)
    assert state_of(upstream, 2.0, is_checked=False)[:2] == ("open", "breaker open, 8 s left")
    assert state_of(upstream, 10.0, is_checked=False).kind == "half-open"


def test_an_administrators_word_comes_first() -> None:
    upstream = build_upstream()
    upstream.admin_state = AdminState.DRAIN
    assert state_of(upstream, 0.0, is_checked=False) == ("drain", "drain", "no new clients")

    upstream.admin_state = AdminState.MAINTENANCE
    upstream.is_up, upstream.health_reason = False, "refused"

    state = state_of(upstream, 0.0, is_checked=True)
    assert state == ("maintenance", "maintenance", "no requests; besides: down")
