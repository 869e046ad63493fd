"""The same as the page, as text for a terminal."""

from __future__ import annotations

import re

from atlas_pkg.admin.stats import Stats, judge
from atlas_pkg.admin.text import show_status, show_upstreams
from atlas_pkg.observing.event_log import Event
from tests.admin.support import build_stats, build_upstream
from tests.admin.test_page import build_error
from tests.observing.explain_support import NOW
from tests.observing.samples import build_now


def show(stats: Stats) -> str:
    return show_status(stats, judge(stats))


def test_it_begins_with_how_atlas_is() -> None:
    stats = build_stats(build_upstream("a"), build_upstream("b", kind="down", state="down"))

    assert show(stats).splitlines()[:2] == ["1 of 2 upstreams is up", "  b: down"]


def test_upstreams_are_a_table() -> None:
    a = build_upstream("a", weight=5, max_connections=100, failures={"connect": 3})
    b = build_upstream("west", address="::1", backup=True, kind="down", state="down", why="refused")
    b["p50_ms"] = None

    lines = show(build_stats(a, b)).splitlines()

    at = next(index for index, line in enumerate(lines) if line.startswith("upstream "))
    rows = [re.split(r"  +", line) for line in lines[at : at + 3]]
    assert rows == [
        [
            *("upstream", "address", "state", "weight", "in flight", "idle", "per s", "share"),
            *("requests", "5xx", "failures", "p50", "p95", "p99"),
        ],
        [
            *("a", "10.0.0.1:3000", "up", "5 (file: 1)", "2 of 100", "3", "12.4", "50.0 %"),
            *("12345", "0", "3", "1.3", "4.8", "31.0"),
        ],
        [
            *("west (backup)", "[::1]:3000", "down, refused", "1", "2", "3", "12.4", "50.0 %"),
            *("12345", "0", "0", "-", "4.8", "31.0"),
        ],
    ]
    assert (
        len({lines[at + row].index(cell) for row, cell in enumerate(("state", "up", "down"))}) == 1
    )


def test_without_numbers_the_table_says_how_they_are() -> None:
    assert show_upstreams([build_now("a", "down", why="status 500", in_flight=4)]) == [
        "upstream  address        state             weight  in flight  idle",
        "a         10.0.0.1:3000  down, status 500  1       4          0",
    ]
    assert len(show_upstreams([])) == 1


def test_a_refused_reload_is_told_with_its_reason() -> None:
    stats = build_stats()
    stats["last_reload"] = {"time": NOW - 42, "ok": False, "error": "a < b\nc", "generation": 4}

    text = show(stats)

    assert "last reload    REFUSED 42 s ago\n" in text
    assert "a < b\n                 c\n" in text


def test_events_and_errors_are_lines() -> None:
    stats = build_stats(build_upstream("a"))
    stats["events"] = [Event(time=NOW, kind="refused", upstream="", text="refused: one\ntwo")]
    stats["errors"] = [build_error(count=1234), build_error(upstream="a", status=502)]

    lines = show(stats).splitlines()

    assert lines[-6:] == [
        "Last events (UTC)",
        "  08:00:00  refused: one two",
        "",
        "Last errors (UTC)",
        "  08:00:00  503 x1234 GET / HTTP/1.1: no upstream was available; client 192.0.2.7",
        "  08:00:00  502 GET / HTTP/1.1: no upstream was available; client 192.0.2.7, upstream a",
    ]


def test_nothing_gets_out_that_a_terminal_might_obey() -> None:
    hostile = "\x1b[2J\r\u202e"
    stats = build_stats(build_upstream(hostile, why=hostile))
    stats["errors"] = [build_error(line=hostile)]
    stats["events"] = [Event(time=NOW, kind="state", upstream=hostile, text=hostile)]

    assert all(line.isprintable() for line in show(stats).split("\n"))


def test_spans_have_the_unit_that_is_read() -> None:
    for seconds, told in ((-1, "0 s"), (59.9, "60 s"), (60, "1 min"), (7260, "2 h"), (2e5, "2 d")):
        stats = build_stats()
        stats["uptime"] = seconds
        assert f"up for {told}," in show(stats)
