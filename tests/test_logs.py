"""One line per cause: what repeats is counted, not written."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import select
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from atlas_pkg import logs
from atlas_pkg.logs import Throttle
from tests.toolkit import wait_until

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


# Standard error


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[logging.Logger, int]]:
    """A logger whose standard error is a small pipe, and the end to read from."""
    before = set(threading.enumerate())
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        handler = logs._StandardError()
        logger = logging.getLogger("atlas.pipe")
        monkeypatch.setattr(logger, "handlers", [handler])
        monkeypatch.setattr(logger, "propagate", False)
        logger.setLevel(logging.INFO)
        yield logger, reader
        os.close(reader)  # whoever is still writing is free
        handler.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(20)  # what it still writes must not go to who has that descriptor next


def write_in_background(logger: logging.Logger) -> None:
    handler = logger.handlers[0]  # behind it pytest has put its own
    assert isinstance(handler, logs._StandardError)
    handler.write_in_background()


def read_all(reader: int) -> str:
    """What is in the pipe by now."""
    os.set_blocking(reader, False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(reader, 65536):
            text += data
    return text.decode()


def test_lines_lost_by_a_slow_reader_are_counted_and_told(
    pipe: tuple[logging.Logger, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, reader = pipe
    monkeypatch.setattr(logs, "MOST_WAITING", 100)
    write_in_background(logger)

    for number in range(20_000):
        logger.info("line %d of many that nobody reads", number)
    text = ""

    def are_all_told() -> bool:
        nonlocal text
        text += read_all(reader)
        lost = sum(map(int, re.findall(r"(\d+) lines of this log were lost", text)))
        return 0 < lost == 20_000 - text.count("that nobody reads")

    wait_until(are_all_told, "each line, or its loss, to be told")


def test_without_a_thread_a_stalled_reader_costs_half_a_second_once(
    pipe: tuple[logging.Logger, int],
) -> None:
    logger, reader = pipe

    began = time.monotonic()
    for number in range(2000):
        logger.info("line %d", number)
    assert time.monotonic() - began < 15
    read_all(reader)
    logger.info("the reader is back")

    assert re.search(r"the reader is back\n.*\d+ lines of this log were lost", read_all(reader))


def test_what_the_interpreter_passes_over_is_logged_once(
    now: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", None)
    monkeypatch.setattr(sys, "excepthook", None)
    monkeypatch.setattr(threading, "excepthook", None)
    logs.write_in_background()

    class Clumsy:
        def __init__(self, byte: int) -> None:
            self.byte = byte

        def __del__(self) -> None:
            raise ValueError(f"{self.byte} is no text")

    for byte in range(3):
        Clumsy(byte)  # what a client sends makes the difference
    now[0] += 5.0
    Clumsy(3)

    told = "the interpreter has passed over an error: ValueError: {} is no text"
    assert caplog.messages == [told.format(0), f"{told.format(3)} (2 more like this before)"]


def test_closing_writes_what_waits(pipe: tuple[logging.Logger, int]) -> None:
    logger, reader = pipe
    write_in_background(logger)

    logger.info("last words")
    logger.handlers[0].close()

    assert read_all(reader) == "last words\n"


def test_closing_does_not_wait_for_ever(pipe: tuple[logging.Logger, int]) -> None:
    logger, _ = pipe
    write_in_background(logger)
    for number in range(2000):
        logger.info("line %d that nobody reads", number)

    began = time.monotonic()
    logger.handlers[0].close()

    assert time.monotonic() - began < 15


def test_what_the_watching_library_says_while_we_end_is_no_error_of_ours() -> None:
    logs.set_up("info")

    assert not logging.getLogger("watchdog.observers.inotify").isEnabledFor(logging.ERROR)
