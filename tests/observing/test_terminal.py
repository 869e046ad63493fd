"""Explained exchanges on a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from pathlib import Path

import pytest

from atlas_pkg.choice import Candidate, Choice
from atlas_pkg.observing.access_log import EXPLAINED, AccessLog
from atlas_pkg.observing.record import End, Record
from atlas_pkg.observing.terminal import COLUMNS, MOST_BYTES, Blocks
from tests.observing.explain_support import CHOICE, build_record

BLOCK = """\
12:00:00.250  192.0.2.7  GET /a?… HTTP/1.1
  200, done, upstream green, connection reused, red failed (connect), id 4f: 100.0 ms
  head         10.00 ms  |======                                                          |
  choice       20.00 ms  |      =============                                             |
  connect       5.00 ms  |                   ===                                          |
  wait         60.00 ms  |                      =======================================   |
  body          5.00 ms  |                                                             ===|
  least_connections chose green: strategy, after slow start
    x red    0 in flight / weight 3 = 0.00; slow start; left out: slow start: skipped this time
    > green  1 in flight / weight 1 = 1.00
    x blue   left out: down: status 500
      and 482 others: 480 down, 2 full

"""


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def show(record: Record) -> str:
    """The block of an exchange that ended at 12:00:00.250."""
    (block,) = Blocks().format([record], 43200.25 - record.ended_at)
    return block.decode()


def test_a_block_tells_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    record = build_record(
        choices=[CHOICE], failures=[("red", "connect")], reused=True, request_id=b"4f"
    )

    assert show(record) == BLOCK


def test_what_standard_output_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))

    assert "GET /a?\\u2026 HTTP/1.1\n" in show(build_record(choices=[]))


def test_without_standard_output_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    assert show(build_record(choices=[])).isascii()


def test_nothing_that_a_terminal_obeys_gets_out() -> None:
    choice = Choice("random", "strategy\x1b[2J", (Candidate("a\x9b31m\u202e", "\r\n\tx"),))

    text = show(build_record(b"GET /\x1b]0;x\x07 HTTP/1.1", choices=[choice], upstream="\x1b[0m"))

    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert len(text.splitlines()) == len(show(build_record(choices=[choice])).splitlines())


def test_a_block_fits_into_100_columns_and_what_a_pipe_takes() -> None:
    candidates = tuple(Candidate("n" * 300, "s" * 300, "why" * 100) for _ in range(10))
    choices = [Choice("least_connections", "strategy", candidates, "n" * 300)] * 30

    record = build_record(b"GET /" + b"x" * 5000, choices=choices)
    (data,) = Blocks().format([record], 0.0)

    assert len(data) <= MOST_BYTES
    assert max(map(len, data.decode().splitlines())) <= COLUMNS
    assert data.endswith(b"\n\n")


def test_an_answer_of_ours_is_told_without_upstream() -> None:
    record = build_record(
        choices=[Choice("round_robin", "nobody could be chosen", ())],
        end=End.NO_UPSTREAM,
        status=503,
        upstream="-",
        chosen_at=0.0,
    )

    text = show(record)

    assert "  503, no-upstream: 100.0 ms\n" in text
    assert "  round_robin chose nobody: nobody could be chosen\n" in text
    assert re.findall(r"^  (\w+) +[\d.]+ ms", text, re.MULTILINE) == ["head", "choice"]


def test_an_upstream_that_could_not_be_reached_had_no_connection() -> None:
    # An earlier attempt had a connection, and a used one.
    record = build_record(choices=[], chosen_at=100.05, connected_at=100.04, reused=True)
    record.end, record.status = End.CONNECT_FAILED, 502

    assert "  502, connect-failed, upstream green, no connection: 100.0 ms\n" in show(record)


def test_blocks_are_written_by_the_writer_of_the_access_log(tmp_path: Path) -> None:
    path = tmp_path / "out"
    log = AccessLog(str(path), EXPLAINED, what="explanations")
    now = time.monotonic()
    for number in range(3):
        log.note([build_record(b"GET /%d HTTP/1.1" % number, choices=[CHOICE], ended_at=now)])
    log.close()

    blocks = path.read_text().split("\n\n")
    assert [f"GET /{number} HTTP/1.1" in blocks[number] for number in range(3)] == [True] * 3
    assert blocks[3] == ""


def test_lost_explanations_are_not_called_lines_of_the_access_log(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "full"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path), EXPLAINED, most_waiting=0, what="explanations")
    log.note([build_record(choices=[])])
    log.close()
    os.close(reader)

    assert "explanations: lines are lost: they come faster than they are written" in caplog.text
    assert "access log" not in caplog.text
