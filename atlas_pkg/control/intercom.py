"""How the admin process asks worker processes how they are.

Between them is a socket pair for each worker's place, made before any process is forked. So a
worker process that replaces another finds the same line, and no address can be wrong. A question is
one JSON line, an answer another, with the question's number.

Either side may die in the middle of a line, or leave lines that nobody reads. Hence:

* A worker process sends a line end first: it closes what a dead predecessor began. A line that is
  no JSON object is passed over. Questions are so short that they are written whole or not at all.
* Numbers never repeat, not even in the next admin process: they begin with the clock. An answer to
  a question that is no longer open is passed over.
* Whoever ends as it should says so, and is asked no more. Whoever just dies is waited for.
* A question says until when somebody waits; `time.monotonic` is the same in all processes. A worker
  process passes over those that it finds too late.

There is one question only, with the last exchanges or without, so nothing can come in the wrong
order: changes are on the board (`board.py`), and who is asked looks there first.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from atlas_pkg.control.report import ProcessReport
from atlas_pkg.logs import Throttle

log = logging.getLogger("atlas.intercom")

# How long an answer may take. One takes a millisecond, or some tens while a process is busy.
PATIENCE = 1.0

_PIECE = 1 << 16


class Report(Protocol):
    """Describes this process."""

    def __call__(self, *, explains: bool) -> ProcessReport:
        """With the last exchanges, if it `explains`."""


class Intercom:
    """All lines. Made before forking; then each process takes its ends and closes the others."""

    def __init__(self, count: int) -> None:
        self._pairs = [socket.socketpair() for _ in range(count)]

    def close(self) -> None:
        """Close all ends that are still open here."""
        for pair in self._pairs:
            for end in pair:
                end.close()

    def take_worker_end(self, number: int) -> socket.socket:
        """Keep the end of the nth worker process, counted from 1, and close all others."""
        for asking, answering in self._pairs:
            asking.close()
            if answering is not self._pairs[number - 1][1]:
                answering.close()
        return self._pairs[number - 1][1]

    def take_asking_ends(self) -> list[socket.socket]:
        """Keep the ends of the admin process, and close all others."""
        for _, answering in self._pairs:
            answering.close()
        return [asking for asking, _ in self._pairs]


class _Lines:
    """Splits what arrives into JSON objects."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                value = json.loads(line) if line else None
            except ValueError:
                value = None  # a piece that a dead process has left
            if isinstance(value, dict):
                yield value


def answer_forever(line: socket.socket, report: Report) -> None:
    """Answer questions on `line` until the other side is gone, for a thread of its own. Blocks."""
    lines = _Lines()
    try:
        line.sendall(b'\n{"is_here": true}\n')
        while data := line.recv(_PIECE):
            now = time.monotonic()
            questions = [item for item in lines.feed(data) if item["until"] > now]
            line.sendall(b"".join(_build_answer(item, report) for item in questions))
    except OSError as error:
        log.debug("the line to the admin process is gone: %s", error)


def say_farewell(line: socket.socket) -> None:
    """Tell the admin process that this one is about to end. Does not block."""
    try:
        line.send(b'{"is_here": false}\n', socket.MSG_DONTWAIT)
    except OSError as error:
        log.debug("the line to the admin process is gone: %s", error)


def _build_answer(question: dict[str, Any], report: Report) -> bytes:
    try:
        answer = {"number": question["number"], "report": report(explains=question["explains"])}
        return json.dumps(answer).encode() + b"\n"
    except Exception:
        # A background thread: whatever is wrong now, the next question may go well.
        log.exception("this process cannot say how it is")
        return b"\n"


class _Question:
    """One question to all, while answers come in."""

    def __init__(self, asked: set[int]) -> None:
        self.missing = asked  # places that have not answered
        self.reports: dict[int, ProcessReport] = {}
        self.is_done = threading.Event()

    def settle(self, place: int, report: ProcessReport | None = None) -> None:
        """Nothing more will come from `place`. Caller holds the asker's lock."""
        if place not in self.missing:
            return
        self.missing.discard(place)
        if report is not None:
            self.reports[place] = report
        if not self.missing:
            self.is_done.set()


class Asker:
    """Asks all worker processes at once. Thread-safe."""

    def __init__(self, lines: list[socket.socket], patience: float = PATIENCE) -> None:
        """`lines` are taken over; `lines[0]` leads to the first worker process."""
        self._lines = dict(enumerate(lines, 1))
        self._patience = patience
        self._numbers = itertools.count(time.monotonic_ns())
        self._throttle = Throttle(log)
        # Guards what follows, and what is in it: questions by number, and places that are empty.
        self._lock = threading.Lock()
        self._open: dict[int, _Question] = {}
        self._gone: set[int] = set()
        threading.Thread(target=self._listen, name="intercom", daemon=True).start()

    def ask(self, *, explains: bool) -> dict[int, ProcessReport]:
        """Return the reports of those who answered in time, by their places. Blocks."""
        number = next(self._numbers)
        with self._lock:
            question = self._open[number] = _Question(self._lines.keys() - self._gone)
        until = time.monotonic() + self._patience
        data = json.dumps({"number": number, "until": until, "explains": explains}).encode() + b"\n"
        for line in self._lines.values():
            try:
                # So short a line is taken whole or not at all, so threads need not take turns.
                line.send(data, socket.MSG_DONTWAIT)
            except OSError:
                pass  # full of questions that nobody reads: it will not answer this one either
        if question.missing:
            question.is_done.wait(self._patience)
        with self._lock:
            del self._open[number]
            reports, missing = question.reports, sorted(question.missing)
        for place in missing:
            self._throttle.write(
                logging.WARNING, f"{place}", "worker %d does not say how it is", place
            )
        return reports

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for place, line in self._lines.items():
                selector.register(line, selectors.EVENT_READ, (place, _Lines()))
            while selector.get_map():
                for key, _ in selector.select():
                    self._receive(selector, key)

    def _receive(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        """Take what has come from one worker process."""
        place, lines = key.data
        try:
            data = os.read(key.fd, _PIECE)
        except OSError:
            data = b""
        if not data:
            selector.unregister(key.fileobj)  # the supervisor is gone, too
        for answer in lines.feed(data):
            self._note(place, answer)

    def _note(self, place: int, answer: dict[str, Any]) -> None:
        """Take an answer, if its question is still open, or note who comes and goes."""
        with self._lock:
            if answer.get("is_here") is True:
                self._gone.discard(place)
            elif answer.get("is_here") is False:
                self._gone.add(place)
                for question in self._open.values():
                    question.settle(place)
            elif (asked := self._open.get(answer["number"])) is not None:
                asked.settle(place, answer["report"])
