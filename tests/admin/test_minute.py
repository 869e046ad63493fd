"""The page's numbers, from snapshots and states that the test spells out."""

from __future__ import annotations

from atlas_pkg.admin.minute import Minute
from atlas_pkg.observing.event_log import Journal
from atlas_pkg.observing.metrics import BUCKET_BOUNDS, NOBODY, Snapshot, UpstreamCounts
from atlas_pkg.observing.process_stats import UpstreamNow
from atlas_pkg.observing.rates import KEPT_SECONDS

FIVE_MS = BUCKET_BOUNDS.index(0.005)


def build_counts(good: int = 0, bad: int = 0, *, failures: int = 0) -> UpstreamCounts:
    """`good` answers of 200 and `bad` ones of 502, each of 2.5 to 5 ms and 100 bytes."""
    buckets = [0] * (len(BUCKET_BOUNDS) + 1)
    buckets[FIVE_MS] = good + bad
    classes = {"other": 0, "1xx": 0, "2xx": good, "3xx": 0, "4xx": 0, "5xx": bad}
    return UpstreamCounts(
        requests=classes,
        failures={"connect": failures} if failures else {},
        retries=failures,
        reused=0,
        bytes_in=0,
        bytes_out=100 * (good + bad),
        duration_buckets=buckets,
        duration_sum=0.0,
    )


def build_now(name: str, kind: str = "up") -> UpstreamNow:
    return UpstreamNow(
        name=name,
        address="10.0.0.1",
        port=3000,
        kind=kind,
        state=kind,
        why="",
        weight=1,
        configured_weight=1,
        backup=False,
        in_flight=0,
        max_connections=0,
        idle=0,
    )


def build_minute() -> Minute:
    return Minute(Journal(clock=lambda: 1000.0, monotonic=lambda: 0.0))


def tick(minute: Minute, second: float, /, **counts: UpstreamCounts) -> Snapshot:
    """One second; `nobody` stands for `NOBODY`."""
    named = {NOBODY if name == "nobody" else name: found for name, found in counts.items()}
    snapshot = Snapshot(upstreams=named)
    upstreams = [build_now(name) for name in named if name != NOBODY]
    minute.tick(second, snapshot, upstreams, connections=7, queue=1)
    return snapshot


def test_before_the_first_tick_all_is_zero() -> None:
    minute = build_minute()

    assert minute.samples() == []
    present = minute.present()
    assert (present["rate"], present["connections"], present["p50_ms"]) == (0, 0, None)
    (row,) = minute.rows([build_now("a")], Snapshot(upstreams={}))
    assert (row["total"], row["share_percent"], row["p50_ms"], row["since"]) == (0, 0, None, None)
    assert row["classes"] == {"2xx": 0, "3xx": 0, "4xx": 0, "5xx": 0}


def test_a_second_is_what_came_in_it() -> None:
    minute = build_minute()
    tick(minute, 0, a=build_counts(100))
    tick(minute, 1, a=build_counts(190, 10), nobody=build_counts(0, 25))

    sample = minute.samples()[-1]

    assert sample["rate"] == 125
    assert sample["bytes_out_rate"] == 12500
    assert sample["error_percent"] == 100 * 35 / 125
    assert (sample["connections"], sample["queue"]) == (7, 1)
    assert 2.5 <= (sample["p50_ms"] or 0) <= (sample["p99_ms"] or 0) <= 5.0


def test_the_present_is_smoother_than_a_second() -> None:
    minute = build_minute()
    for second, total in enumerate((0, 0, 0, 0, 0, 50)):
        tick(minute, second, a=build_counts(total))

    assert minute.samples()[-1]["rate"] == 50
    assert minute.present()["rate"] == 10


def test_a_minute_is_kept() -> None:
    minute = build_minute()
    for second in range(100):
        tick(minute, second, a=build_counts(second))

    assert len(minute.samples()) == KEPT_SECONDS


def test_rows_say_how_each_upstream_did() -> None:
    minute = build_minute()
    tick(minute, 0, a=build_counts(0), b=build_counts(0))
    snapshot = tick(
        minute,
        1,
        a=build_counts(29, 1),
        b=build_counts(10, failures=4),
        nobody=build_counts(0, 60),
    )

    a, b = minute.rows([build_now("a"), build_now("b")], snapshot)

    assert (a["total"], a["rate"], a["share_percent"]) == (30, 30, 75)
    assert a["classes"] == {"2xx": 29, "3xx": 0, "4xx": 0, "5xx": 1}
    assert (b["failures"], b["retries"], b["share_percent"]) == ({"connect": 4}, 4, 25)
    assert b["strip"] == {"requests": [10], "failed": [4], "marks": "u"}
    assert a["since"] == 1000.0


def test_other_classes_are_shown_where_there_are_any() -> None:
    minute = build_minute()
    counts = build_counts(5)
    counts["requests"]["other"] = 2
    snapshot = tick(minute, 0, a=counts)

    (row,) = minute.rows([build_now("a")], snapshot)

    assert row["classes"] == {"2xx": 5, "3xx": 0, "4xx": 0, "5xx": 0, "other": 2}


def test_an_upstreams_latency_is_that_of_its_last_minute() -> None:
    minute = build_minute()
    slow = build_counts()
    slow["duration_buckets"][-2] = 1000  # long ago
    tick(minute, 0, a=slow)
    for second in range(1, 80):
        tick(minute, second, a=slow)
    quick = build_counts(10)
    quick["duration_buckets"][-2] = 1000
    snapshot = tick(minute, 80, a=quick)

    (row,) = minute.rows([build_now("a")], snapshot)

    assert 2.5 <= (row["p99_ms"] or 0) <= 5.0


def test_counters_of_a_process_that_was_replaced_do_not_count_backwards() -> None:
    minute = build_minute()
    tick(minute, 0, a=build_counts(1000))
    snapshot = tick(minute, 1, a=build_counts(10))

    (row,) = minute.rows([build_now("a")], snapshot)

    assert (row["rate"], row["p50_ms"]) == (0, None)
    assert minute.present()["rate"] == 0
