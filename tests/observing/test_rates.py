"""A minute of readings, and what is worked out from them. The clock is in the test's hand."""

from __future__ import annotations

import threading

import pytest

from atlas_pkg.observing.rates import KEPT_SECONDS, History, Strip

REQUESTS = ("requests", "")
OF_A = ("requests", "a")


def feed(history: History, *values: float, begin: float = 100.0) -> None:
    """Feed one counter, once a second."""
    for second, value in enumerate(values):
        history.feed(begin + second, {REQUESTS: value})


def test_an_empty_history_knows_nothing() -> None:
    history = History()

    assert history.rate(REQUESTS) == 0
    assert history.rates(REQUESTS) == []
    assert history.share_percent(OF_A, REQUESTS) == 0
    assert history.strip("a") == Strip(requests=[], failed=[], marks="")


def test_one_reading_has_nothing_to_be_compared_with() -> None:
    history = History()
    feed(history, 1000)

    assert history.rate(REQUESTS) == 0
    assert history.rates(REQUESTS) == []


def test_rates_are_differences_over_time() -> None:
    history = History()
    feed(history, 0, 10, 30, 30)

    assert history.rates(REQUESTS) == [10, 20, 0]
    assert history.rate(REQUESTS) == 10
    assert history.rate(REQUESTS, 1) == 0
    assert history.rate(REQUESTS, 2) == 10
    assert history.increase(REQUESTS) == 30


def test_a_late_reading_counts_for_its_whole_time() -> None:
    history = History()
    history.feed(0.0, {REQUESTS: 0})
    history.feed(2.5, {REQUESTS: 50})

    assert history.rates(REQUESTS) == [20]


@pytest.mark.parametrize("now", [100.0, 99.0])
def test_a_clock_that_stands_still_adds_nothing(now: float) -> None:
    history = History()
    history.feed(100.0, {REQUESTS: 1})

    history.feed(now, {REQUESTS: 2})

    assert history.rates(REQUESTS) == []


def test_a_counter_that_began_anew_counts_as_zero() -> None:
    history = History()
    feed(history, 100, 110, 3, 8)

    assert history.rates(REQUESTS) == [10, 0, 5]
    assert history.increase(REQUESTS) == 15


def test_a_minute_is_kept() -> None:
    history = History()
    feed(history, *range(0, 2000, 10))

    assert len(history.rates(REQUESTS)) == KEPT_SECONDS
    assert history.increase(REQUESTS) == 10 * KEPT_SECONDS


def test_an_upstream_that_comes_later_began_at_zero() -> None:
    history = History()
    history.feed(1, {REQUESTS: 5})
    history.feed(2, {REQUESTS: 9, OF_A: 4})
    history.feed(3, {REQUESTS: 9, OF_A: 4})

    assert history.rates(OF_A) == [4, 0]
    assert history.share_percent(OF_A, REQUESTS) == 100


def test_shares_are_those_of_the_last_seconds() -> None:
    history = History()
    for second, (whole, part) in enumerate([(0, 0), (100, 100), (200, 110), (300, 110)]):
        history.feed(second, {REQUESTS: whole, OF_A: part})

    assert history.share_percent(OF_A, REQUESTS, 2) == 5


def test_a_strip_shows_requests_failures_and_states() -> None:
    history = History()
    for second, (requests, failures, mark) in enumerate(
        [(0, 0, "u"), (10, 0, "u"), (12, 2, "d"), (12, 2, "o")]
    ):
        counters = {OF_A: float(requests), ("failures", "a"): float(failures)}
        history.feed(second, counters, marks={"a": mark})
    history.feed(9, {})

    assert history.strip("a") == {
        "requests": [10, 2, 0, 0],
        "failed": [0, 2, 0, 0],
        "marks": "udo-",
    }


def test_reading_and_feeding_go_together() -> None:
    history = History()
    seen: list[float] = []

    def read() -> None:
        seen.extend(history.rate(REQUESTS) for _ in range(300))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    feed(history, *range(0, 30000, 10))
    for reader in readers:
        reader.join(20)

    assert set(seen) <= {0.0, 10.0}
