"""Counts that are exact however many threads count, and text that another maker's parser reads."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from atlas_pkg.observing import metrics, process_stats, prometheus
from atlas_pkg.observing.metrics import (
    ALL,
    BUCKET_BOUNDS,
    BYTES,
    COUNTERS,
    DURATIONS,
    FAILURES,
    GONE,
    MOST_NAMES,
    OTHER,
    REQUESTS,
    RETRIES,
    Counters,
    Snapshot,
    buckets_of,
    estimate_quantile,
    merge,
)
from atlas_pkg.observing.process_stats import STATES, read_process
from atlas_pkg.observing.prometheus import GAUGES, render_prometheus
from atlas_pkg.observing.record import End
from tests.observing.samples import build_now, build_process, count, make_record

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def requests(snapshot: Snapshot, name: str, kind: str) -> float:
    key = name if "/" in name else f"default/{name}"
    return snapshot[REQUESTS.name].get(key, {}).get(kind, 0)


# Counting


def test_requests_are_counted_by_upstream_and_class() -> None:
    counted = count(
        make_record("a", 200),
        make_record("a", 204),
        make_record("a", 404),
        make_record("b", 101),
        make_record("-", 503),
        make_record("-", 499),
        make_record("-", 0),
    )

    assert counted[REQUESTS.name] == {
        "default/a": {"2xx": 2, "4xx": 1},
        "default/b": {"1xx": 1},
        "default/-": {"5xx": 1, "4xx": 1, "other": 1},
    }


def test_bytes_of_bodies_are_counted_for_all_together() -> None:
    first, second = make_record("a"), make_record("b")
    first.body_in, first.body_out = 10, 3_000_000_000
    second.body_in, second.body_out = 1, 2

    assert count(first, second)[BYTES.name] == {ALL: {"in": 11, "out": 3_000_000_002}}


@pytest.mark.parametrize(
    ("took", "bucket"),
    [
        (0.0, "0.001"),
        (0.001, "0.001"),
        (0.0010001, "0.0025"),
        (0.3, "0.5"),
        (60.0, "60.0"),
        (60.1, "+Inf"),
        (1e9, "+Inf"),
    ],
)
def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed(
    took: float, bucket: str
) -> None:
    assert count(make_record(took=took))[DURATIONS.name] == {"default/a": {bucket: 1, "sum": took}}


def test_a_tunnel_is_a_request_without_a_duration() -> None:
    counted = count(make_record(status=101, took=3600.0, end=End.TUNNEL))

    assert requests(counted, "a", "1xx") == 1
    assert counted[DURATIONS.name]["default/a"] == {"sum": 0}


def test_groups_are_counted_apart() -> None:
    one, other, redirect = make_record("a"), make_record("-", 503, end=End.NO_UPSTREAM), None
    redirect = make_record("-", 308, end=End.ROUTE)
    one.group, other.group, redirect.group = "api", "api", "-"

    counted = count(make_record("a"), one, other, redirect)
    found = parse(render_prometheus(counted, build_process([build_now("a", group="api")])))

    assert counted[REQUESTS.name] == {
        "default/a": {"2xx": 1},
        "api/a": {"2xx": 1},
        "api/-": {"5xx": 1},
        "-/-": {"3xx": 1},
    }
    assert counted[FAILURES.name] == {"api/-": {"no-upstream": 1}}
    assert found["atlas_upstream_up", (("upstream", "api/a"),)] == 1


def test_failed_attempts_and_retries_count_where_they_failed() -> None:
    record = make_record("c")
    record.failures, record.retries = [("a", "connect-failed"), ("b", "upstream-failed")], 2
    gave_up = make_record("b", 502, end=End.UPSTREAM_FAILED)
    gave_up.failures, gave_up.retries = [("a", "connect-failed"), ("b", "upstream-failed")], 1

    counted = count(record, gave_up)

    assert counted[FAILURES.name] == {
        "default/a": {"connect-failed": 2},
        "default/b": {"upstream-failed": 2},
    }
    assert counted[RETRIES.name] == {"default/a": {"": 2}, "default/b": {"": 1}}


@pytest.mark.parametrize("end", End)
def test_an_end_is_a_failure_where_something_failed(end: End) -> None:
    failures = count(make_record("a", 503, end=end))[FAILURES.name]

    is_failure = end not in {End.DONE, End.REFUSED, End.CLIENT_GONE, End.TUNNEL, End.ROUTE}
    assert failures == ({"default/a": {end.value: 1}} if is_failure else {})


@pytest.mark.parametrize("end", End)
def test_an_answer_of_our_own_is_nobodys(end: End) -> None:
    counted = count(make_record("a", 502, end=end))

    from_upstream = {End.DONE, End.CLIENT_GONE, End.UPSTREAM_CUT, End.TUNNEL, End.ROUTE}
    assert list(counted[REQUESTS.name]) == ["default/a" if end in from_upstream else "default/-"]


def test_a_failure_after_the_last_attempt_had_been_answered_is_counted_too() -> None:
    record = make_record("b", 200, end=End.UPSTREAM_CUT)
    record.failures, record.retries = [("a", "connect-failed")], 1

    counted = count(record)

    assert counted[FAILURES.name] == {
        "default/a": {"connect-failed": 1},
        "default/b": {"upstream-cut": 1},
    }
    assert counted[RETRIES.name] == {"default/a": {"": 1}}


def test_a_failed_attempt_is_not_counted_again_for_its_end() -> None:
    record = make_record("a", 504, end=End.CONNECT_TIMEOUT)
    record.failures = [("a", "connect-failed")]

    assert count(record)[FAILURES.name] == {"default/a": {"connect-failed": 1}}


# Threads


def test_eight_threads_lose_nothing() -> None:
    counters, rounds = Counters(), 5000
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        records = [make_record(f"u{number % 3}"), make_record("shared", 502, 0.5)]
        records[1].failures = [("shared", "upstream-failed")]
        barrier.wait()
        for _ in range(rounds):
            counters.note(records)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen = counters.snapshot()  # reading disturbs nobody
        assert requests(seen, "shared", "5xx") <= 8 * rounds
    for thread in threads:
        thread.join()

    counted = counters.snapshot()
    assert requests(counted, "-", "5xx") == 0
    assert requests(counted, "shared", "5xx") == 8 * rounds
    assert counted[FAILURES.name]["default/shared"] == {"upstream-failed": 8 * rounds}
    assert counted[DURATIONS.name]["default/shared"]["sum"] == 8 * rounds * 0.5
    assert [requests(counted, f"u{n}", "2xx") for n in range(3)] == [
        3 * rounds,
        3 * rounds,
        2 * rounds,
    ]


def test_the_number_of_names_is_bounded() -> None:
    counters = Counters()

    for number in range(MOST_NAMES + 50):
        counters.note([make_record(f"u{number}")])
    counters.note([make_record("one more")])
    counters.note([make_record("u7")])

    counted = counters.snapshot()
    assert len(counted[REQUESTS.name]) == MOST_NAMES + 1
    assert requests(counted, OTHER, "2xx") == 51
    assert requests(counted, "u7", "2xx") == 2


# Several processes


def test_those_who_left_long_ago_are_counted_on_together() -> None:
    counters = Counters()
    counters.note([make_record("a", took=0.5), make_record("b", 502), make_record("c")])

    def sums() -> dict[str, dict[str, float]]:
        return {
            row: {
                label: sum(labels.get(label, 0) for labels in upstreams.values())
                for labels in upstreams.values()
                for label in labels
            }
            for row, upstreams in counters.snapshot().items()
        }

    before = sums()
    counters.retire(["default/a"], 1000.0)
    counters.retire(["default/a", "default/c"], 1200.0)  # it has come back
    counters.retire(["default/a"], 1250.0)
    counters.retire(["default/a"], 1299.0)
    assert set(counters.snapshot()["atlas_requests_total"]) == {
        "default/a",
        "default/b",
        "default/c",
    }
    counters.retire(["default/a"], 1300.0)
    assert set(counters.snapshot()["atlas_requests_total"]) == {"default/a", GONE, "default/c"}
    counters.retire(["default/a"], 1550.0)

    counted = counters.snapshot()
    assert {name for upstreams in counted.values() for name in upstreams} == {"", "default/a", GONE}
    assert (requests(counted, GONE, "5xx"), requests(counted, GONE, "2xx")) == (1, 1)
    assert sums() == before

    # One that returns begins anew, and so does what comes home late.
    counters.note([make_record("b")])
    assert requests(counters.snapshot(), "b", "2xx") == 1


def test_snapshots_of_several_processes_are_added_up() -> None:
    failed = make_record("b", 502, end=End.UPSTREAM_FAILED)
    failed.failures, failed.retries = [("a", "connect-failed"), ("b", "upstream-failed")], 1
    one, other = Counters(), Counters()
    for record in (make_record("a", 200, 0.5), failed):
        one.note([record])
    for record in (make_record("a", 404, 2.0), make_record("c"), failed):
        other.note([record])

    # As it comes from another process.
    merged = merge([one.snapshot(), json.loads(json.dumps(other.snapshot()))])

    both = count(
        make_record("a", 200, 0.5), failed, make_record("a", 404, 2.0), make_record("c"), failed
    )
    assert merged == both


def test_merging_changes_none_of_its_parts() -> None:
    counters = Counters()
    counters.note([make_record()])
    snapshot = counters.snapshot()
    before = json.dumps(snapshot)

    merge([snapshot, snapshot])

    assert json.dumps(snapshot) == before


def test_nothing_merged_is_nothing() -> None:
    assert merge([]) == {row.name: {} for row in COUNTERS}


# Quantiles


def test_quantiles_are_taken_as_spread_evenly_within_a_bucket() -> None:
    buckets = [0] * (len(BUCKET_BOUNDS) + 1)
    buckets[3] = 10  # 0.005 to 0.01
    buckets[9] = 10  # 0.5 to 1.0

    assert estimate_quantile(buckets, 0.25) == pytest.approx(0.0075)
    assert estimate_quantile(buckets, 0.5) == pytest.approx(0.01)
    assert estimate_quantile(buckets, 0.95) == pytest.approx(0.95)
    assert estimate_quantile(buckets, 0.0) == pytest.approx(0.005)
    assert estimate_quantile(buckets, 1.0) == pytest.approx(1.0)


def test_a_quantile_of_nothing_is_none() -> None:
    assert estimate_quantile([], 0.5) is None
    assert estimate_quantile(buckets_of({}), 0.99) is None


def test_beyond_the_last_bound_a_quantile_stays_there() -> None:
    assert estimate_quantile([*[0] * len(BUCKET_BOUNDS), 5], 0.5) == BUCKET_BOUNDS[-1]


@given(
    st.lists(st.floats(0, 59), min_size=1, max_size=50),
    st.floats(0, 1),
)
@example([0.001], 0.0)
def test_a_quantile_is_within_the_bucket_of_the_true_one(
    durations: list[float], share: float
) -> None:
    counted = count(*(make_record(took=took) for took in durations))

    estimate = estimate_quantile(buckets_of(counted[DURATIONS.name]["default/a"]), share)

    true = sorted(durations)[max(0, math.ceil(share * len(durations)) - 1)]
    low = max((bound for bound in BUCKET_BOUNDS if bound < true), default=0.0)
    high = min(bound for bound in BUCKET_BOUNDS if bound >= true)
    assert estimate is not None
    assert low <= estimate <= high or estimate == pytest.approx(high)


# The text


UP = {"in_flight": 3, "idle": 2, "weight": 5}


def parse(text: str) -> Samples:
    """Read the text with Prometheus's own parser; every series stands there once."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            labels = dict(sample.labels)
            if (group := labels.pop("group", "default")) != "default":
                labels["upstream"] = f"{group}/{labels['upstream']}"
            key = (sample.name, tuple(sorted(labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_the_text_says_what_was_counted() -> None:
    counters = Counters()
    record = make_record("a", 502, 0.02, End.UPSTREAM_FAILED)
    record.failures, record.retries = [("a", "connect-failed"), ("b", "upstream-failed")], 1
    record.body_in, record.body_out = 5, 123_456_789_012
    counters.note([record])

    found = parse(render_prometheus(counters.snapshot(), build_process([build_now("a", **UP)])))

    assert found["atlas_requests_total", (("code_class", "5xx"), ("upstream", "-"))] == 1
    assert found["atlas_retries_total", (("upstream", "a"),)] == 1
    assert (
        found["atlas_upstream_failures_total", (("reason", "upstream-failed"), ("upstream", "b"))]
        == found["atlas_upstream_failures_total", (("reason", "connect-failed"), ("upstream", "a"))]
        == 1
    )
    assert found["atlas_bytes_total", (("direction", "in"),)] == 5
    assert found["atlas_bytes_total", (("direction", "out"),)] == 123_456_789_012
    assert found["atlas_connections", ()] == 7
    assert found["atlas_connections_limit", ()] == 4096
    assert found["atlas_queue", ()] == 2
    assert found["atlas_config_reloads_total", (("result", "success"),)] == 2
    assert found["atlas_config_reloads_total", (("result", "failure"),)] == 0
    assert found["atlas_config_last_reload_success", ()] == 1
    assert found["atlas_build_info", (("version", "1.2.3"),)] == 1
    keys = ("up", "active", "idle", "weight")
    states = [found[f"atlas_upstream_{key}", (("upstream", "a"),)] for key in keys]
    assert states == [1, 3, 2, 5]


def test_of_all_states_the_present_one_is_marked() -> None:
    found = parse(
        render_prometheus(
            Counters().snapshot(), build_process([build_now("a"), build_now("b", "drain")])
        )
    )

    marks: dict[str, dict[str, float]] = {"a": {}, "b": {}}
    for (name, labels), value in found.items():
        if name == "atlas_upstream_state":
            marks[dict(labels)["upstream"]][dict(labels)["state"]] = value
    nothing = dict.fromkeys(STATES, 0.0)
    assert marks == {"a": nothing | {"up": 1}, "b": nothing | {"drain": 1}}


def test_the_histogram_grows_towards_its_end() -> None:
    counters = Counters()
    for took in (0.0005, 0.02, 0.02, 100.0):
        counters.note([make_record("a", took=took)])

    found = parse(render_prometheus(counters.snapshot(), build_process()))

    name = "atlas_request_duration_seconds"
    bounds = [*map(str, BUCKET_BOUNDS), "+Inf"]
    buckets = [found[f"{name}_bucket", (("le", le), ("upstream", "a"))] for le in bounds]
    assert buckets == [1, 1, 1, 1, *[3] * 11, 4]
    assert found[f"{name}_count", (("upstream", "a"),)] == 4
    assert found[f"{name}_sum", (("upstream", "a"),)] == pytest.approx(100.0405)


def test_series_are_there_before_the_first_request() -> None:
    found = parse(render_prometheus(Counters().snapshot(), build_process([build_now("new")])))

    assert found["atlas_requests_total", (("code_class", "5xx"), ("upstream", "new"))] == 0
    assert found["atlas_requests_total", (("code_class", "5xx"), ("upstream", "-"))] == 0
    assert found["atlas_retries_total", (("upstream", "new"),)] == 0
    assert found["atlas_request_duration_seconds_count", (("upstream", "new"),)] == 0


def test_usual_failures_are_there_before_the_first_one() -> None:
    counters = Counters()
    record = make_record("gone", 502, end=End.UPSTREAM_FAILED)
    record.failures = [("gone", "upstream-failed")]
    counters.note([record])

    found = parse(render_prometheus(counters.snapshot(), build_process([build_now("new")])))

    failures = {
        (dict(labels)["upstream"], dict(labels)["reason"]): value
        for (name, labels), value in found.items()
        if name == "atlas_upstream_failures_total"
    }
    usual = dict.fromkeys(
        (
            "connect-failed",
            "connect-timeout",
            "tls",
            "upstream-failed",
            "upstream-timeout",
            "upstream-cut",
        ),
        0,
    )
    assert failures == {
        **{("new", reason): value for reason, value in usual.items()},
        ("-", "no-upstream"): 0,
        ("-/-", "no-upstream"): 0,
        **{("gone", reason): int(reason == "upstream-failed") for reason in usual},
    }


def test_requests_without_an_answer_are_told_when_there_are_any() -> None:
    counters = Counters()
    counters.note([make_record("-", 0, end=End.CLIENT_GONE)])

    found = parse(render_prometheus(counters.snapshot(), build_process()))

    assert found["atlas_requests_total", (("code_class", "other"), ("upstream", "-"))] == 1


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
@example('back\\slash "quote" \\n\nline')
def test_any_name_survives_the_text(name: str) -> None:
    counters = Counters()
    counters.note([make_record(name)])

    text = render_prometheus(counters.snapshot(), build_process())

    lines = [line for line in text.split("\n") if line.startswith("atlas_retries_total{")]
    found = dict.fromkeys(
        sample.labels["upstream"]
        for line in lines
        for family in text_string_to_metric_families(line + "\n")
        for sample in family.samples
    )
    assert set(found) == {"-", name}


def test_the_order_is_that_of_the_names() -> None:
    counters = Counters()
    for name in ("b", "a", "c"):
        counters.note([make_record(name)])

    text = render_prometheus(counters.snapshot(), build_process([build_now("z"), build_now("d")]))

    found = [key for key in parse(text) if key[0] == "atlas_retries_total"]
    assert [dict(labels)["upstream"] for _, labels in found] == ["-/-", *"-abcdz"]
    assert text == render_prometheus(
        counters.snapshot(), build_process([build_now("d"), build_now("z")])
    )


# The process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_the_process_is_described() -> None:
    filled = {**build_process(), "process": read_process()}

    found = parse(render_prometheus(Counters().snapshot(), filled))  # type: ignore[arg-type]

    values = {name: value for (name, _), value in found.items() if name.startswith("process_")}
    assert set(values) >= {
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
        "process_threads",
    }
    assert all(value > 0 for value in values.values())
    assert 1e6 < values["process_resident_memory_bytes"] < values["process_virtual_memory_bytes"]
    assert values["process_start_time_seconds"] > 1.7e9
    assert values["process_open_fds"] == pytest.approx(
        len(list(Path("/proc/self/fd").iterdir())), abs=2
    )


def test_without_proc_less_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_stats, "_PROC", tmp_path)

    assert set(read_process()) <= {"cpu_seconds", "max_fds"}


# The rows


def test_a_row_more_is_a_counter_more(monkeypatch: pytest.MonkeyPatch) -> None:
    row = metrics.Counter(
        "atlas_long_total",
        "Requests that took long.",
        "",
        lambda author, records: [(author, "", sum(item.ended_at > 1 for item in records))],
        ("",),
    )
    for module in (metrics, prometheus):
        monkeypatch.setattr(module, "COUNTERS", (*COUNTERS, row))

    snapshot = count(make_record("a", took=2.0), make_record("a"))
    text = render_prometheus(merge([snapshot, snapshot]), build_process([build_now("b")]))

    found = {
        dict(labels)["upstream"]: value
        for (name, labels), value in parse(text).items()
        if name == row.name
    }
    assert found == {"-": 0, "-/-": 0, "a": 2, "b": 0}


def test_every_row_has_a_name_of_its_own_and_says_what_it_is() -> None:
    rows = [*COUNTERS, *GAUGES]

    assert len({row.name for row in rows}) == len(rows)
    assert all(row.help.endswith(".") for row in rows)
