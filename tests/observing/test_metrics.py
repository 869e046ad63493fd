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

from atlas_pkg.observing import process_stats
from atlas_pkg.observing.metrics import (
    BUCKET_BOUNDS,
    MOST_NAMES,
    OTHER_NAME,
    Snapshot,
    Tallies,
    UpstreamCounts,
    estimate_quantile,
    merge,
    sum_buckets,
)
from atlas_pkg.observing.process_stats import (
    STATES,
    Gauges,
    UpstreamGauges,
    merge_gauges,
    read_process,
)
from atlas_pkg.observing.prometheus import render_prometheus
from atlas_pkg.observing.record import End, Record

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def make_record(
    upstream: str = "a", status: int = 200, took: float = 0.003, end: End = End.DONE
) -> Record:
    # From zero on, where a difference of floats is what it looks like.
    record = Record("127.0.0.1", b"GET / HTTP/1.1", 0.0)
    record.upstream, record.status, record.ended_at, record.end = upstream, status, took, end
    return record


def count(*records: Record) -> dict[str, UpstreamCounts]:
    tallies = Tallies()
    tallies.note(records)
    return tallies.snapshot()["upstreams"]


# Counting


def test_requests_are_counted_by_upstream_and_class() -> None:
    counts = count(
        make_record("a", 200),
        make_record("a", 204),
        make_record("a", 404),
        make_record("b", 101),
        make_record("-", 503),
        make_record("-", 499),
        make_record("-", 0),
    )

    assert counts["a"]["requests"] == {
        "other": 0,
        "1xx": 0,
        "2xx": 2,
        "3xx": 0,
        "4xx": 1,
        "5xx": 0,
    }
    assert counts["b"]["requests"]["1xx"] == 1
    assert [counts["-"]["requests"][kind] for kind in ("other", "4xx", "5xx")] == [1, 1, 1]
    assert list(counts) == ["-", "a", "b"]


def test_bodies_and_reused_connections_are_counted() -> None:
    first, second = make_record(), make_record()
    first.body_in, first.body_out = 10, 3_000_000_000
    second.body_in, second.body_out, second.reused = 1, 2, True

    row = count(first, second)["a"]

    assert (row["bytes_in"], row["bytes_out"], row["reused"]) == (11, 3_000_000_002, 1)


@pytest.mark.parametrize(
    ("took", "bucket"),
    [(0.0, 0), (0.001, 0), (0.0010001, 1), (0.3, 8), (60.0, 14), (60.1, 15), (1e9, 15)],
)
def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed(
    took: float, bucket: int
) -> None:
    row = count(make_record(took=took))["a"]

    assert row["duration_buckets"].index(1) == bucket
    assert row["duration_sum"] == took


def test_a_tunnel_is_a_request_without_a_duration() -> None:
    row = count(make_record(status=101, took=3600.0, end=End.TUNNEL))["a"]

    assert row["requests"]["1xx"] == 1
    assert (sum(row["duration_buckets"]), row["duration_sum"]) == (0, 0.0)


def test_failed_attempts_and_retries_count_where_they_failed() -> None:
    record = make_record("c")
    record.failures, record.retries = [("a", "connect"), ("b", "head")], 2
    gave_up = make_record("b", 502, end=End.UPSTREAM_FAILED)
    gave_up.failures, gave_up.retries = [("a", "connect"), ("b", "head")], 1

    counts = count(record, gave_up)

    assert counts["a"]["failures"] == {"connect": 2}
    assert counts["b"]["failures"] == {"head": 2}
    assert [counts[name]["retries"] for name in "abc"] == [2, 1, 0]
    assert counts["c"]["failures"] == {}


@pytest.mark.parametrize("end", End)
def test_an_end_is_a_failure_where_something_failed(end: End) -> None:
    counts = count(make_record("a", 503, end=end))

    is_failure = end not in {End.DONE, End.REFUSED, End.CLIENT_GONE, End.TUNNEL}
    failures = counts["a"]["failures"] if "a" in counts else {}
    assert failures == ({end.value: 1} if is_failure else {})


@pytest.mark.parametrize("end", End)
def test_an_answer_of_our_own_is_nobodys(end: End) -> None:
    counts = count(make_record("a", 502, end=end))

    from_upstream = {End.DONE, End.CLIENT_GONE, End.UPSTREAM_CUT, End.TUNNEL}
    author = "a" if end in from_upstream else "-"
    assert [name for name, row in counts.items() if row["requests"]["5xx"]] == [author]


def test_a_failure_after_the_last_attempt_had_been_answered_is_counted_too() -> None:
    record = make_record("b", 200, end=End.UPSTREAM_CUT)
    record.failures, record.retries = [("a", "connect")], 1

    counts = count(record)

    assert [counts[name]["failures"] for name in "ab"] == [{"connect": 1}, {"upstream-cut": 1}]
    assert [counts[name]["retries"] for name in "ab"] == [1, 0]


def test_a_failed_attempt_is_not_counted_again_for_its_end() -> None:
    record = make_record("a", 504, end=End.CONNECT_TIMEOUT)
    record.failures = [("a", "connect")]

    assert count(record)["a"]["failures"] == {"connect": 1}


# Threads


def test_eight_threads_lose_nothing() -> None:
    tallies, rounds = Tallies(), 5000
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        records = [make_record(f"u{number % 3}"), make_record("shared", 502, 0.5)]
        records[1].failures = [("shared", "head")]
        barrier.wait()
        for _ in range(rounds):
            tallies.note(records)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen = tallies.snapshot()["upstreams"]  # reading disturbs nobody
        assert sum(row["requests"]["5xx"] for row in seen.values()) <= 8 * rounds
    for thread in threads:
        thread.join()

    counts = tallies.snapshot()["upstreams"]
    assert counts["shared"]["requests"]["5xx"] == 8 * rounds
    assert counts["shared"]["failures"] == {"head": 8 * rounds}
    assert counts["shared"]["duration_sum"] == 8 * rounds * 0.5
    assert [counts[f"u{n}"]["requests"]["2xx"] for n in range(3)] == [
        3 * rounds,
        3 * rounds,
        2 * rounds,
    ]


def test_the_number_of_names_is_bounded() -> None:
    tallies = Tallies()

    for number in range(MOST_NAMES + 50):
        tallies.note([make_record(f"u{number}")])
    tallies.note([make_record("one more")])
    tallies.note([make_record("u7")])

    counts = tallies.snapshot()["upstreams"]
    assert len(counts) == MOST_NAMES + 1
    assert counts[OTHER_NAME]["requests"]["2xx"] == 51
    assert counts["u7"]["requests"]["2xx"] == 2


# Several processes


def test_snapshots_of_several_processes_are_added_up() -> None:
    failed = make_record("b", 502, end=End.UPSTREAM_FAILED)
    failed.failures, failed.retries = [("a", "connect"), ("b", "send")], 1
    one, other = Tallies(), Tallies()
    for record in (make_record("a", 200, 0.5), failed):
        one.note([record])
    for record in (make_record("a", 404, 2.0), make_record("c"), failed):
        other.note([record])

    # As it comes from another process.
    merged = merge([one.snapshot(), json.loads(json.dumps(other.snapshot()))])["upstreams"]

    both = count(
        make_record("a", 200, 0.5), failed, make_record("a", 404, 2.0), make_record("c"), failed
    )
    assert merged == both
    assert list(merged) == ["-", "a", "b", "c"]


def test_merging_changes_none_of_its_parts() -> None:
    tallies = Tallies()
    tallies.note([make_record()])
    snapshot = tallies.snapshot()
    before = json.dumps(snapshot)

    merge([snapshot, snapshot])

    assert json.dumps(snapshot) == before


def test_nothing_merged_is_nothing() -> None:
    assert merge([]) == Snapshot(upstreams={})


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
    assert estimate_quantile(sum_buckets([]), 0.99) is None


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
    row = count(*(make_record(took=took) for took in durations))["a"]

    estimate = estimate_quantile(row["duration_buckets"], share)

    true = sorted(durations)[max(0, math.ceil(share * len(durations)) - 1)]
    low = max((bound for bound in BUCKET_BOUNDS if bound < true), default=0.0)
    high = min(bound for bound in BUCKET_BOUNDS if bound >= true)
    assert estimate is not None
    assert low <= estimate <= high or estimate == pytest.approx(high)


# The text


def make_gauges(**upstreams: UpstreamGauges) -> Gauges:
    return Gauges(
        version="1.2.3",
        connections=7,
        connections_limit=4096,
        queue=2,
        upstreams=upstreams,
        reloads={"success": 2},
        last_reload_success=True,
        process={},
    )


UP = UpstreamGauges(up=True, state="up", active=3, idle=2, weight=5)
DRAINED = UpstreamGauges(up=False, state="drain", active=1, idle=0, weight=5)


def parse(text: str) -> Samples:
    """Read the text with Prometheus's own parser; every series stands there once."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_the_text_says_what_was_counted() -> None:
    tallies = Tallies()
    record = make_record("a", 502, 0.02, End.UPSTREAM_FAILED)
    record.failures, record.retries = [("a", "connect"), ("b", "head")], 1
    record.body_in, record.body_out = 5, 123_456_789_012
    tallies.note([record])

    found = parse(render_prometheus(tallies.snapshot(), make_gauges(a=UP)))

    assert found["atlas_requests_total", (("code_class", "5xx"), ("upstream", "-"))] == 1
    assert found["atlas_retries_total", (("upstream", "a"),)] == 1
    assert (
        found["atlas_upstream_failures_total", (("reason", "head"), ("upstream", "b"))]
        == found["atlas_upstream_failures_total", (("reason", "connect"), ("upstream", "a"))]
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
    found = parse(render_prometheus(Tallies().snapshot(), make_gauges(a=UP, b=DRAINED)))

    marks: dict[str, dict[str, float]] = {"a": {}, "b": {}}
    for (name, labels), value in found.items():
        if name == "atlas_upstream_state":
            marks[dict(labels)["upstream"]][dict(labels)["state"]] = value
    nothing = dict.fromkeys(STATES, 0.0)
    assert marks == {"a": nothing | {"up": 1}, "b": nothing | {"drain": 1}}


def test_the_histogram_grows_towards_its_end() -> None:
    tallies = Tallies()
    for took in (0.0005, 0.02, 0.02, 100.0):
        tallies.note([make_record("a", took=took)])

    found = parse(render_prometheus(tallies.snapshot(), make_gauges()))

    name = "atlas_request_duration_seconds"
    bounds = [*map(str, BUCKET_BOUNDS), "+Inf"]
    buckets = [found[f"{name}_bucket", (("le", le), ("upstream", "a"))] for le in bounds]
    assert buckets == [1, 1, 1, 1, *[3] * 11, 4]
    assert found[f"{name}_count", (("upstream", "a"),)] == 4
    assert found[f"{name}_sum", (("upstream", "a"),)] == pytest.approx(100.0405)


def test_series_are_there_before_the_first_request() -> None:
    found = parse(render_prometheus(Tallies().snapshot(), make_gauges(new=UP)))

    assert found["atlas_requests_total", (("code_class", "5xx"), ("upstream", "new"))] == 0
    assert found["atlas_requests_total", (("code_class", "5xx"), ("upstream", "-"))] == 0
    assert found["atlas_retries_total", (("upstream", "new"),)] == 0
    assert found["atlas_request_duration_seconds_count", (("upstream", "new"),)] == 0


def test_usual_failures_are_there_before_the_first_one() -> None:
    tallies = Tallies()
    record = make_record("gone", 502, end=End.UPSTREAM_FAILED)
    record.failures = [("gone", "head")]
    tallies.note([record])

    found = parse(render_prometheus(tallies.snapshot(), make_gauges(new=UP)))

    failures = {
        (dict(labels)["upstream"], dict(labels)["reason"]): value
        for (name, labels), value in found.items()
        if name == "atlas_upstream_failures_total"
    }
    usual = dict.fromkeys(("connect", "send", "head", "upstream-cut"), 0)
    assert failures == {
        **{("new", reason): value for reason, value in usual.items()},
        ("-", "no-upstream"): 0,
        ("gone", "head"): 1,  # no longer in the configuration: only what was counted
    }


def test_requests_without_an_answer_are_told_when_there_are_any() -> None:
    tallies = Tallies()
    tallies.note([make_record("-", 0, end=End.CLIENT_GONE)])

    found = parse(render_prometheus(tallies.snapshot(), make_gauges()))

    assert found["atlas_requests_total", (("code_class", "other"), ("upstream", "-"))] == 1


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
@example('back\\slash "quote" \\n\nline')
def test_any_name_survives_the_text(name: str) -> None:
    tallies = Tallies()
    tallies.note([make_record(name)])

    text = render_prometheus(tallies.snapshot(), make_gauges())

    lines = [line for line in text.split("\n") if line.startswith("atlas_retries_total{")]
    found = dict.fromkeys(
        sample.labels["upstream"]
        for line in lines
        for family in text_string_to_metric_families(line + "\n")
        for sample in family.samples
    )
    assert set(found) == {"-", name}


def test_the_order_is_that_of_the_names() -> None:
    tallies = Tallies()
    for name in ("b", "a", "c"):
        tallies.note([make_record(name)])

    text = render_prometheus(tallies.snapshot(), make_gauges(z=UP, d=UP))

    found = [key for key in parse(text) if key[0] == "atlas_retries_total"]
    assert [dict(labels)["upstream"] for _, labels in found] == ["-", "a", "b", "c", "d", "z"]
    assert text == render_prometheus(tallies.snapshot(), make_gauges(d=UP, z=UP))


# The process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_the_process_is_described() -> None:
    filled = {**make_gauges(), "process": read_process()}

    found = parse(render_prometheus(Tallies().snapshot(), filled))  # type: ignore[arg-type]

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


def test_several_processes_are_described_as_one() -> None:
    one = make_gauges(a=UP, b=UP)
    other = make_gauges(a=DRAINED)
    one["process"] = {"threads": 3, "start_time": 20.5, "open_fds": 4}
    other["process"] = {"threads": 4, "start_time": 10.5}
    other["reloads"], other["last_reload_success"] = {"success": 1, "failure": 1}, False

    merged = merge_gauges([one, json.loads(json.dumps(other))])

    assert (merged["connections"], merged["connections_limit"]) == (14, 8192)
    assert merged["queue"] == 4
    assert merged["upstreams"] == {
        "a": UpstreamGauges(up=False, state="drain", active=4, idle=2, weight=5),
        "b": UP,
    }
    assert merged["reloads"] == {"success": 2, "failure": 1}
    assert merged["last_reload_success"] is False
    assert merged["process"] == {"threads": 7, "start_time": 10.5, "open_fds": 4}
