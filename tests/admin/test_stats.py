"""The document behind the page: how it is made of reports, and what is said of it in a sentence."""

from __future__ import annotations

import json

from atlas_pkg.admin.aggregate import judge_readiness, merge_reports
from atlas_pkg.admin.stats import About, Stats, build_stats, judge
from atlas_pkg.control.report import ProcessReport
from atlas_pkg.observing.event_log import ErrorLine, Events
from atlas_pkg.observing.metrics import Snapshot, merge
from atlas_pkg.observing.process_stats import Reload, UpstreamNow
from atlas_pkg.observing.rates import Rates
from tests.admin.support import build_stats as build_sample
from tests.admin.support import build_upstream
from tests.observing.explain_support import NOW
from tests.observing.samples import build_now, count, make_record

ABOUT = About("http", ["127.0.0.1:8080"], "/etc/atlas.toml", 2)


def build_report(
    pid: int, *upstreams: UpstreamNow, counted: Snapshot | None = None, **more: object
) -> ProcessReport:
    report = ProcessReport(
        version="1.2.3",
        pids=[pid],
        state="serving",
        generation=3,
        log_level="info",
        connections=7,
        connections_limit=4096,
        certificates={},
        queue=2,
        for_threads=0,
        upstreams=list(upstreams),
        reloads={"success": 2, "failure": 0},
        last_reload=None,
        process={},
        counted=counted or merge([]),
        errors=[],
        wanted={"one_in": 0, "next_from": ""},
        timelines=[],
    )
    report.update(more)  # type: ignore[typeddict-item]
    return report


def build(*reports: ProcessReport, rates: Rates | None = None) -> Stats:
    return build_stats(
        ABOUT,
        merge_reports(reports),
        rates or Rates(),
        Events(lambda: NOW),
        readiness=judge_readiness(reports),
        uptime=5.0,
    )


# Several processes as one


def test_what_each_process_has_for_itself_is_added_up() -> None:
    process = {"threads": 3.0, "start_time": 20.5, "open_fds": 4.0}
    one = build_report(1, build_now("a", in_flight=3, idle=2, max_connections=10), process=process)
    other = build_report(
        2,
        build_now("a", in_flight=1, max_connections=10),
        process={"threads": 4.0, "start_time": 10.5},
        reloads={"success": 1, "failure": 1},
    )

    # As it comes from another process.
    whole = merge_reports([one, json.loads(json.dumps(other))])

    assert whole["pids"] == [1, 2]
    assert (whole["connections"], whole["connections_limit"], whole["queue"]) == (14, 8192, 4)
    assert whole["upstreams"] == [build_now("a", in_flight=4, idle=2, max_connections=20)]
    assert whole["reloads"] == {"success": 2, "failure": 1}
    assert whole["process"] == {"threads": 7, "start_time": 10.5, "open_fds": 4}


def test_of_an_upstream_the_worst_opinion_is_shown_with_how_many_share_it() -> None:
    reports = [build_report(pid, build_now("a", kind)) for pid, kind in enumerate(("up", "down"))]

    (a,) = merge_reports(reports)["upstreams"]

    assert (a["kind"], a["state"]) == ("down", "down in 1 of 2 processes")


def test_upstreams_stay_in_the_order_of_the_configuration() -> None:
    one, other = (
        build_report(pid, *map(build_now, names)) for pid, names in enumerate(("ba", "bac"))
    )

    assert [item["name"] for item in merge_reports([one, other])["upstreams"]] == ["b", "a", "c"]


def test_a_refused_reload_is_shown_before_one_that_was_not() -> None:
    good = Reload(time=2.0, ok=True, error="", generation=4)
    bad = Reload(time=1.0, ok=False, error="no", generation=3)
    reports = [
        build_report(1, last_reload=good, generation=4),
        build_report(2, last_reload=bad),
        build_report(3),
    ]

    assert merge_reports(reports)["last_reload"] == {**bad, "generation": 4}


def test_errors_of_all_are_one_list() -> None:
    error = ErrorLine(
        group="default",
        time=1.0,
        client="::1",
        line="GET /",
        upstream="-",
        status=503,
        text="nobody",
        count=2,
    )

    whole = merge_reports([build_report(pid, errors=[error]) for pid in (1, 2)])

    assert [item["count"] for item in whole["errors"]] == [4]


def test_of_no_process_nothing_is_known() -> None:
    whole = merge_reports([])

    assert (whole["pids"], whole["upstreams"], whole["connections"]) == ([], [], 0)
    assert whole["last_reload"] is None


def test_ready_is_when_every_process_has_an_upstream() -> None:
    up, down = build_now("a"), build_now("a", "down")
    starting = build_report(1, up, state="starting")

    assert judge_readiness([build_report(1, up), build_report(2, up)]) == (
        True,
        "1 of 1 upstreams usable",
    )
    assert (
        judge_readiness([build_report(1, up), build_report(2, down)])[1] == "no upstream is usable"
    )
    assert judge_readiness([build_report(1)])[1] == "no upstreams are configured"
    assert judge_readiness([build_report(2, up), starting])[1] == "starting"
    assert judge_readiness([starting, build_report(2, up, state="draining")])[1] == "draining"
    assert judge_readiness([])[1] == "no process says how it is"
    assert judge_readiness([build_report(1, build_now("a", weight=0))])[0] is False


# The document


def test_a_row_has_what_is_counted_and_how_it_is() -> None:
    failed = make_record("a", 0)
    failed.failures, failed.retries = [("b", "connect")], 1
    counted = count(make_record("a"), make_record("a", 404), failed)

    a, b = build(build_report(1, build_now("a"), build_now("b"), counted=counted))["upstreams"]

    assert a["classes"] == {"2xx": 1, "3xx": 0, "4xx": 1, "5xx": 0, "other": 1}
    assert (a["total"], a["failures"], a["retries"]) == (3, {}, 0)
    assert b["classes"] == {"2xx": 0, "3xx": 0, "4xx": 0, "5xx": 0}
    assert (b["total"], b["failures"], b["retries"]) == (0, {"connect": 1}, 1)
    assert (a["since"], a["p50_ms"]) == (None, None)


def test_the_numbers_at_the_head_are_those_of_now() -> None:
    report = build_report(1, build_now("a"), counted=count(make_record("a"), make_record("-", 503)))
    rates = Rates()
    rates.feed(0, merge([]), report)
    rates.feed(1, report["counted"], report)

    stats = build(build_report(1, counted=report["counted"], connections=8), rates=rates)

    totals = stats["totals"]
    assert (totals["requests"], totals["rate"], totals["error_percent"]) == (2, 2, 50)
    assert (totals["connections"], totals["max_connections"], totals["queue"]) == (8, 4096, 2)
    assert len(stats["history"]) == 1


# In a sentence


def test_a_refused_reload_is_a_warning_however_well_the_upstreams_are() -> None:
    stats = build_sample(build_upstream("a"), build_upstream("b"))
    stats["last_reload"] = {"time": NOW, "ok": False, "error": "no", "generation": 4}
    ill = build_sample(build_upstream("a", kind="down", state="down", why="refused"))
    ill["last_reload"] = stats["last_reload"]

    assert judge(stats) == {
        "level": "warn",
        "text": "The configuration file was refused",
        "details": ["All 2 upstreams are up"],
    }
    assert judge(ill) == {
        "level": "warn",
        "text": "0 of 1 upstreams are up",
        "details": ["the configuration file was refused", "a: down, refused"],
    }


def test_verdicts() -> None:
    up, down = build_upstream("a"), build_upstream("b", kind="down", state="down", why="refused")
    draining = build_sample(up)
    draining["state"] = "draining"
    unready = build_sample(down)
    unready["ready"], unready["ready_reason"] = False, "no upstream is usable"
    apart = build_upstream("c", kind="down", state="down", group="api")

    verdicts = [
        judge(stats)
        for stats in (
            build_sample(up),
            build_sample(up, up),
            build_sample(up, down),
            build_sample(*[down] * 9),
            build_sample(),
            draining,
            unready,
            build_sample(up, apart),
        )
    ]

    assert [(verdict["level"], verdict["text"]) for verdict in verdicts] == [
        ("good", "The upstream is up"),
        ("good", "All 2 upstreams are up"),
        ("warn", "1 of 2 upstreams is up"),
        ("warn", "0 of 9 upstreams are up"),
        ("bad", "No upstreams are configured"),
        ("warn", "Draining: no new clients"),
        ("bad", "Not ready: no upstream is usable"),
        ("bad", "No upstream of group api is usable"),
    ]
    assert verdicts[2]["details"] == ["b: down, refused"]
    assert verdicts[3]["details"][-1] == "and 5 more"
