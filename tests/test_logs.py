"""One line per cause: what repeats is counted, not written."""

from __future__ import annotations

import logging

import pytest

from atlas_pkg.logs import Throttle

log = logging.getLogger("atlas.test")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test turns."""
    clock = [1000.0]
    monkeypatch.setattr("atlas_pkg.logs.time.monotonic", lambda: clock[0])
    return clock


def test_what_repeats_is_logged_once_and_counted(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    throttle = Throttle(log, 5.0)

    for _ in range(4):
        throttle.write(logging.WARNING, "refused", "upstream %s refused", "a")
    now[0] += 5.0
    throttle.write(logging.WARNING, "refused", "upstream %s refused", "a")
    now[0] += 5.0
    throttle.write(logging.WARNING, "refused", "upstream %s refused", "a")

    assert caplog.messages == [
        "upstream a refused",
        "upstream a refused (3 more like this before)",
        "upstream a refused",
    ]


def test_causes_do_not_hide_each_other(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    throttle = Throttle(log, 5.0)

    throttle.write(logging.WARNING, "a", "first")
    now[0] += 1.0
    throttle.write(logging.WARNING, "b", "second")
    throttle.write(logging.WARNING, "a", "first")

    assert caplog.messages == ["first", "second"]


def test_what_is_below_the_level_is_not_counted(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "atlas.test")
    throttle = Throttle(log, 5.0)

    throttle.write(logging.INFO, "a", "quiet")
    throttle.write(logging.WARNING, "a", "loud at %g", now[0])

    assert caplog.messages == ["loud at 1000"]


def test_the_memory_for_causes_is_bounded(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    throttle = Throttle(log, 5.0)

    for number in range(5000):
        throttle.write(logging.WARNING, f"cause {number}", "at %g", now[0])

    assert len(caplog.messages) == 5000
    assert len(throttle._causes) <= 1000
