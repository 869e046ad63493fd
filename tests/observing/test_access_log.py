"""The access log as its operator sees it: files, pipes, rotation, and work under pressure."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atlas_pkg.errors import StartError
from atlas_pkg.line_writer import PORTION
from atlas_pkg.observing import access_log
from atlas_pkg.observing.access_log import AccessLog
from atlas_pkg.observing.record import Record
from tests.toolkit import wait_until

OpenLog = Callable[..., AccessLog]

LINE = re.compile(r'192\.0\.2\.7 - - \[[^]]+\] "GET /(\d+) HTTP/1\.1" 200 0 "-" "x*-?"')


@pytest.fixture
def open_log() -> Iterator[OpenLog]:
    """Open access logs that end with the test."""
    opened: list[AccessLog] = []

    def open_one(path: Path | str, format_name: str = "combined", **more: int) -> AccessLog:
        log = AccessLog(str(path), format_name, **more)
        opened.append(log)
        return log

    yield open_one
    for log in opened:
        log.close()


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A named pipe, and the end to read from, which nobody reads from until the test does."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    yield path, reader
    with contextlib.suppress(OSError):  # the test may have closed it
        os.close(reader)


def make_record(number: int = 0, user_agent: bytes = b"") -> Record:
    record = Record("192.0.2.7", b"GET /%d HTTP/1.1" % number, time.monotonic())
    record.status, record.ended_at, record.origin = 200, record.head_at, (b"", user_agent)
    return record


def numbers(text: str) -> list[int]:
    """Return the number in each line; every line must be whole."""
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(found), [line for line in text.splitlines() if not LINE.fullmatch(line)][:3]
    return [int(match[1]) for match in found if match]


def read_to_end(reader: int) -> str:
    """Read a pipe until nobody writes to it any more."""
    pieces = []
    while piece := os.read(reader, 65536):
        pieces.append(piece)
    return b"".join(pieces).decode()


# Files


def test_lines_are_written_in_order(tmp_path: Path, open_log: OpenLog) -> None:
    path = tmp_path / "access.log"
    log = open_log(path)

    for number in range(3 * PORTION):
        log.note([make_record(number)])
    log.close()

    assert numbers(path.read_text()) == list(range(3 * PORTION))
    assert log.dropped == 0


def test_a_line_is_there_soon_and_after_a_rest_too(tmp_path: Path, open_log: OpenLog) -> None:
    path = tmp_path / "access.log"
    log = open_log(path)

    for number in range(3):
        wait_until(lambda: log._writer.is_resting, "the writer to rest")
        log.note([make_record(number)])
        wait_until(lambda: len(numbers(path.read_text())) == number + 1, "the line")  # noqa: B023


def test_the_time_is_that_of_the_clock(tmp_path: Path, open_log: OpenLog) -> None:
    path = tmp_path / "access.log"
    log = open_log(path, "json")
    before = time.time()

    log.note([make_record()])
    log.close()

    written = time.strptime(json.loads(path.read_text())["time"][:19], "%Y-%m-%dT%H:%M:%S")
    assert before - 2 < time.mktime(written) < time.time() + 2


def test_what_is_there_already_stays(tmp_path: Path, open_log: OpenLog) -> None:
    path = tmp_path / "access.log"
    path.write_text("kept\n")
    log = open_log(path)

    log.note([make_record(1)])
    log.close()

    kept, rest = path.read_text().split("\n", 1)
    assert (kept, numbers(rest)) == ("kept", [1])


def test_a_dash_is_standard_output(capfd: pytest.CaptureFixture[str], open_log: OpenLog) -> None:
    log = open_log("-")

    log.note([make_record(1)])
    log.reopen()
    log.note([make_record(2)])
    log.close()

    assert numbers(capfd.readouterr().out) == [1, 2]
    os.fstat(1)  # still open


def test_eight_threads_share_a_log(tmp_path: Path, open_log: OpenLog) -> None:
    path = tmp_path / "access.log"
    log = open_log(path)

    def work(first: int) -> None:
        for number in range(first, first + 500):
            log.note([make_record(number)])

    threads = [threading.Thread(target=work, args=(500 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()

    assert sorted(numbers(path.read_text())) == list(range(4000))


# Paths that cannot be opened


def test_a_path_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    sentences = {
        tmp_path: "Is a directory",
        tmp_path / "missing" / "log": "No such file or directory",
        tmp_path / "file" / "log": "Not a directory",
        tmp_path / "pipe": "No such device or address",  # nobody reads from it
    }

    for path, sentence in sentences.items():
        with pytest.raises(StartError) as caught:
            AccessLog(str(path), "combined")
        assert str(caught.value) == f"log.access: cannot open {path}: {sentence}"


def test_what_cannot_be_reopened_goes_on_as_it_was(
    tmp_path: Path, open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = open_log(folder / "access.log")
    folder.rename(tmp_path / "moved")

    log.reopen()
    log.note([make_record(1)])
    log.close()

    assert numbers((tmp_path / "moved" / "access.log").read_text()) == [1]
    (message,) = caplog.messages
    assert message.endswith("No such file or directory; the file in use stays")


# Rotation and changes


def test_after_rotation_lines_go_to_the_new_file(tmp_path: Path, open_log: OpenLog) -> None:
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"
    log = open_log(path)
    log.note([make_record(1)])
    wait_until(path.read_text, "the line")

    path.rename(old)
    log.reopen()
    wait_until(lambda: log._next is None, "the new file to be taken over")
    log.note([make_record(2)])
    log.close()

    assert numbers(old.read_text()) == [1]
    assert numbers(path.read_text()) == [2]


def test_rotation_closes_the_old_file(tmp_path: Path, open_log: OpenLog) -> None:
    log = open_log(tmp_path / "access.log")
    before = len(list(Path("/dev/fd").iterdir()))

    for _ in range(10):  # some before the writer has taken over the one before
        log.reopen()
    wait_until(lambda: log._next is None and log._writer.is_resting, "the new file")

    assert len(list(Path("/dev/fd").iterdir())) == before


def test_path_and_format_may_change_while_it_runs(tmp_path: Path, open_log: OpenLog) -> None:
    log = open_log(tmp_path / "one")
    log.note([make_record(1)])
    wait_until((tmp_path / "one").read_text, "the line")

    log.switch(str(tmp_path / "two"), "json")
    log.note([make_record(2)])
    log.reopen()
    log.close()

    assert numbers((tmp_path / "one").read_text()) == [1]
    assert json.loads((tmp_path / "two").read_text())["target"] == "/2"


def test_a_change_that_fails_changes_nothing(tmp_path: Path, open_log: OpenLog) -> None:
    log = open_log(tmp_path / "one")

    with pytest.raises(StartError):
        log.switch(str(tmp_path), "json")
    log.note([make_record(1)])
    log.reopen()
    log.close()

    assert numbers((tmp_path / "one").read_text()) == [1]


# Under pressure


def test_a_reader_that_stops_costs_lines_and_no_time(
    pipe: tuple[Path, int], open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    path, reader = pipe
    log = open_log(path, most_waiting=500)
    noted = 5000  # far more than a pipe holds

    for number in range(noted):
        log.note([make_record(number)])
    assert log.dropped >= noted - 500 - 1500
    assert caplog.messages == ["access log: lines are lost: they come faster than they are written"]
    closing = threading.Thread(target=log.close)
    closing.start()
    written = numbers(read_to_end(reader))
    closing.join()

    assert written == sorted(written)
    assert len(written) + log.dropped == noted
    assert caplog.messages[1:] == [f"access log: {log.dropped} lines were lost in all"]


def test_closing_waits_for_nobody_for_long(
    pipe: tuple[Path, int], open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    path, reader = pipe
    log = open_log(path)
    for number in range(3000):
        log.note([make_record(number)])

    began_at = time.monotonic()
    log.close(patience=0.1)

    assert time.monotonic() - began_at < 15
    assert "lines are lost" in caplog.text
    os.close(reader)  # the writer's thread ends, too


def test_what_comes_after_the_end_is_counted(tmp_path: Path, open_log: OpenLog) -> None:
    log = open_log(tmp_path / "access.log")
    log.close()

    log.note([make_record()])

    assert log.dropped == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_once(open_log: OpenLog, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log("/dev/full")

    for number in range(3 * PORTION):
        log.note([make_record(number)])
    wait_until(lambda: log.dropped == 3 * PORTION, "all lines to be lost")

    assert caplog.messages == ["access log: lines are lost: /dev/full: No space left on device"]


def test_a_line_torn_by_a_full_disk_spoils_no_other(
    tmp_path: Path, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.log"
    real_write, calls = os.write, []

    def write(fd: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real_write(fd, data[:10] if len(calls) == 1 else data)

    monkeypatch.setattr(access_log.os, "write", write)
    log = open_log(path)

    log.note([make_record(1)])
    wait_until(lambda: log.dropped, "the disk to be full")
    log.note([make_record(2)])
    log.close()

    torn, rest = path.read_text().split("\n", 1)
    assert (torn, numbers(rest)) == ("192.0.2.7 ", [2])


def test_a_record_that_cannot_be_written_does_not_end_the_log(
    tmp_path: Path, open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "access.log"
    log = open_log(path)
    broken = make_record(1)
    broken.status = None  # type: ignore[assignment]

    log.note([broken])
    wait_until(lambda: log.dropped == 1, "the record to be found broken")
    log.note([make_record(2)])
    log.close()

    assert numbers(path.read_text()) == [2]
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


# Several processes


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_lines_of_several_writers_stay_whole(
    kind: str, tmp_path: Path, pipe: tuple[Path, int], open_log: OpenLog
) -> None:
    path = pipe[0] if kind == "pipe" else tmp_path / "access.log"
    logs = [open_log(path) for _ in range(3)]
    seen: list[str] = []
    reading = threading.Thread(target=lambda: seen.append(read_to_end(pipe[1])))
    reading.start()

    for number in range(1500):
        logs[number % 3].note([make_record(number, b"x" * 900)])
    for log in logs:
        log.close()
    reading.join()

    text = seen[0] if kind == "pipe" else path.read_text()
    assert sorted(numbers(text)) == list(range(1500))
