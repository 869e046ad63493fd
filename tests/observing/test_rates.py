"""A minute of readings, and what is worked out from them. The clock is in the test's hand."""

from __future__ import annotations

import threading

import pytest

from atlas_pkg.observing.metrics import (
    ALL,
    BYTES,
    DURATIONS,
    FAILURES,
    REQUESTS,
    Snapshot,
    merge,
    name_key,
)
from atlas_pkg.observing.process_stats import STATES
from atlas_pkg.observing.rates import KEPT_SECONDS, Rates
from tests.observing.samples import build_now, build_process


def counted(
    name: str, good: int = 0, bad: int = 0, *, failures: int = 0, slow: int = 0
) -> Snapshot:
    """`good` answers of 200 and `bad` ones of 502, of 2.5 to 5 ms and 100 bytes; `slow` ones."""
    snapshot = merge([])
    key = name_key("default", name)
    snapshot[REQUESTS.name][key] = {"2xx": good + slow, "5xx": bad}
    snapshot[DURATIONS.name][key] = {"0.005": good + bad, "60.0": slow, "sum": 1.0}
    snapshot[FAILURES.name][key] = {"connect": failures}
    snapshot[BYTES.name][ALL] = {"in": 0, "out": 100 * (good + bad)}
    return snapshot


def feed(rates: Rates, second: float, *snapshots: Snapshot, kind: str = "up") -> None:
    rates.feed(second, merge(snapshots), build_process([build_now("a", kind)]))


def test_before_the_first_reading_all_is_zero() -> None:
    rates = Rates()

    present, a = rates.present(), rates.of_upstream("default/a")

    assert rates.samples() == []
    assert (present["rate"], present["connections"], present["p50_ms"]) == (0, 0, None)
    assert (a["rate"], a["share_percent"], a["p50_ms"]) == (0, 0, None)
    assert a["strip"] == {"requests": [], "failed": [], "marks": ""}


def test_one_reading_has_nothing_to_be_compared_with() -> None:
    rates = Rates()
    feed(rates, 0, counted("a", 1000))

    assert rates.samples() == []
    assert rates.present()["rate"] == 0
    assert rates.of_upstream("default/a")["p50_ms"] is None


def test_a_second_is_what_came_in_it() -> None:
    rates = Rates()
    feed(rates, 0, counted("a", 100))
    feed(rates, 1, counted("a", 190, 10), counted("-", 0, 25))

    (sample,) = rates.samples()

    assert sample["rate"] == 125
    assert sample["bytes_out_rate"] == 12500
    assert sample["error_percent"] == 100 * 35 / 125
    assert (sample["connections"], sample["queue"]) == (7, 2)
    assert 2.5 <= (sample["p50_ms"] or 0) <= (sample["p99_ms"] or 0) <= 5.0


def test_the_present_is_smoother_than_a_second() -> None:
    rates = Rates()
    for second, total in enumerate((0, 0, 0, 0, 0, 50)):
        feed(rates, second, counted("a", total))

    assert rates.samples()[-1]["rate"] == 50
    assert rates.present()["rate"] == 10


def test_a_late_reading_counts_for_its_whole_time() -> None:
    rates = Rates()
    feed(rates, 0, counted("a"))
    feed(rates, 2.5, counted("a", 50))

    assert rates.samples()[-1]["rate"] == 20


@pytest.mark.parametrize("now", [100.0, 99.0])
def test_a_clock_that_stands_still_adds_nothing(now: float) -> None:
    rates = Rates()
    feed(rates, 100, counted("a", 1))

    feed(rates, now, counted("a", 2))

    assert rates.samples() == []


def test_a_minute_is_kept() -> None:
    rates = Rates()
    for second in range(100):
        feed(rates, second, counted("a", 10 * second))

    assert [sample["rate"] for sample in rates.samples()] == [10] * KEPT_SECONDS


def test_an_upstream_says_how_it_did() -> None:
    rates = Rates()
    feed(rates, 0, counted("a"), counted("b"))
    feed(rates, 1, counted("a", 29, 1), counted("b", 10, failures=4), counted("-", 0, 60))

    a, b = rates.of_upstream("default/a"), rates.of_upstream("default/b")

    assert (a["rate"], a["share_percent"]) == (30, 75)
    assert (b["rate"], b["share_percent"]) == (10, 25)
    assert a["strip"] == {"requests": [30], "failed": [0], "marks": "u"}
    assert b["strip"] == {"requests": [10], "failed": [4], "marks": "-"}


def test_an_upstream_that_comes_later_began_at_zero() -> None:
    rates = Rates()
    for second, name in enumerate("bba"):
        feed(rates, second, counted(name, 4))

    assert rates.of_upstream("default/a")["strip"]["requests"] == [0, 4]


@pytest.mark.parametrize(
    ("kind", "mark"),
    [*zip(STATES, "ooddduu", strict=True)],
)
def test_a_strip_has_a_letter_for_every_state(kind: str, mark: str) -> None:
    rates = Rates()
    for second in range(2):
        feed(rates, second, counted("a"), kind=kind)

    assert rates.of_upstream("default/a")["strip"]["marks"] == mark


def test_an_upstreams_latency_is_that_of_its_last_minute() -> None:
    rates = Rates()
    for second in range(80):
        feed(rates, second, counted("a", slow=1000))
    feed(rates, 80, counted("a", 10, slow=1000))

    assert 2.5 <= (rates.of_upstream("default/a")["p99_ms"] or 0) <= 5.0


def test_counters_that_began_anew_do_not_count_backwards() -> None:
    rates = Rates()
    for second, total in enumerate((1000, 10, 15)):
        feed(rates, second, counted("a", total))

    assert [sample["rate"] for sample in rates.samples()] == [0, 5]
    assert rates.of_upstream("default/a")["p50_ms"] is None


def test_reading_and_feeding_go_together() -> None:
    rates = Rates()
    seen: list[float] = []

    def read() -> None:
        seen.extend(rates.present()["rate"] for _ in range(100))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for second in range(500):
        feed(rates, second, counted("a", 10 * second))
    for reader in readers:
        reader.join(20)

    assert set(seen) <= {0.0, 10.0}
