"""How two processes talk: a text each way in memory that both share, and a door-bell.

A new text takes the place of the one before, and whoever reads gets the newest. So nothing waits in
a queue or comes in the wrong order, and what somebody has not been told cannot be lost, only late:
a process that replaces another reads what it would have been told. Messages that carry changes
would have to be repeated, put in order, and kept from processes that died.

The bell is a socket pair. A byte through it says that there is something to read; where one of a
few words is all there is to say, the byte is that word (`control/supervisor.py`). Its end tells
that the other side is gone.

Everything is made before any process is forked, so whoever replaces another finds the same channel.
Each side may die at any moment, in the middle of a text too. Hence a text has two places that are
written in turn: the older one stays whole while the newer is written, and a checksum tells which
are whole.

`Asker` and `answer_forever` are what the admin process and the worker processes do with it: one
question to all, and the answers of those who are well.
"""

from __future__ import annotations

import json
import logging
import mmap
import select
import selectors
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger("atlas.channel")

# The longest text: a report on some fifteen thousand upstreams. Memory that is never written to is
# never taken.
TEXT_BYTES = 16 * 1024 * 1024

# How long an answer may take. One takes a millisecond, or some tens while a process is busy.
PATIENCE = 1.0

# Version, length and checksum of the text that follows.
_HEAD = struct.Struct("=QII")

_MOST_RINGS = 4096


class Bell:
    """One side's end of a door-bell. One thread waits for it, any may ring."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over `sock`."""
        sock.setblocking(False)
        self._sock = sock

    def fileno(self) -> int:
        """For selectors."""
        return self._sock.fileno()

    def ring(self, word: bytes = b"!") -> None:
        """Ring at the other side. Never blocks."""
        try:
            self._sock.send(word)
        except OSError:
            pass  # it is gone; or so many words wait for it already that one more says no more

    def wait(self, timeout: float | None = None) -> bytes | None:
        """Wait until it rings, and return all words since, oldest first. Blocks.

        Empty when time has run out; None when the other side is gone.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            return b""
        try:
            return self._sock.recv(_MOST_RINGS) or None
        except OSError:
            return None  # it died with words of ours unread

    def close(self) -> None:
        """Close this end in this process."""
        self._sock.close()


def open_bell() -> tuple[Bell, Bell]:
    """Make both ends of a bell. Raises `OSError`."""
    one, other = socket.socketpair()
    return Bell(one), Bell(other)


class SharedText:
    """A text that one process writes and another reads, at any moment."""

    def __init__(self, size: int = TEXT_BYTES) -> None:
        self._size = size
        self._memory = mmap.mmap(-1, 2 * (_HEAD.size + size))

    def read(self) -> bytes:
        """Return the newest text that is whole; at first an empty one."""
        return self._read_newest()[1]

    def write(self, text: bytes) -> None:
        """Put `text` in place of the older one. Raises `ValueError` where it is too long."""
        if len(text) > self._size:
            raise ValueError(f"a text of {len(text)} bytes does not fit into {self._size}")
        version = self._read_newest()[0] + 1
        start = self._start_of(version % 2)
        self._memory[start + _HEAD.size : start + _HEAD.size + len(text)] = text
        checksum = zlib.crc32(text, version)
        _HEAD.pack_into(self._memory, start, version, len(text), checksum)

    def _read_newest(self) -> tuple[int, bytes]:
        while True:
            found = [whole for whole in map(self._read_place, (0, 1)) if whole is not None]
            if found:
                return max(found)
            # A writer that has died spoils one place, always the same. For both it takes one that
            # is alive and has overtaken us, and is done in a moment.

    def _read_place(self, place: int) -> tuple[int, bytes] | None:
        """Return version and text; None where somebody has begun to write and not ended."""
        start = self._start_of(place)
        version, length, checksum = _HEAD.unpack_from(self._memory, start)
        text = self._memory[start + _HEAD.size : start + _HEAD.size + min(length, self._size)]
        return (version, text) if zlib.crc32(text, version) == checksum else None

    def _start_of(self, place: int) -> int:
        return place * (_HEAD.size + self._size)


class End:
    """One side's end of a channel. What is said are documents, values of JSON."""

    def __init__(self, bell: Bell, own: SharedText, other: SharedText) -> None:
        self.bell = bell
        self._own = own
        self._other = other

    def say(self, document: object) -> None:
        """Say this from now on, and ring. Raises `ValueError` where it is too long."""
        self._own.write(json.dumps(document).encode())
        self.bell.ring()

    def said(self) -> Any:
        """What was said last on this side, by us or who was here before; None if nothing."""
        return json.loads(self._own.read() or b"null")

    def heard(self) -> Any:
        """What the other side says; None if nothing."""
        return json.loads(self._other.read() or b"null")


def open_channel(size: int = TEXT_BYTES) -> tuple[End, End]:
    """Make both ends of a channel for texts of up to `size` bytes. Raises `OSError`."""
    one, other = SharedText(size), SharedText(size)
    bell, its_bell = open_bell()
    return End(bell, one, other), End(its_bell, other, one)


def answer_forever(end: End, answer: Callable[[Any], Any]) -> None:
    """Answer the questions of an `Asker`, until it is gone for good. Blocks.

    Only the newest question is answered: nobody waits for an answer to an older one.
    """
    answered = _number_of(end.said())
    while True:
        asked = end.heard()
        if _number_of(asked) > answered:
            answered = asked["number"]
            try:
                end.say({"number": answered, "answer": answer(asked["question"])})
            except Exception:
                # A background thread: whatever is wrong now, the next question may go well.
                log.exception("this process cannot answer")
        if end.bell.wait() is None:
            return


class Asker:
    """Asks the other sides of several channels the same question at once. Thread-safe.

    Whoever has not answered the last question gets the next one too, but is not waited for before
    it has caught up: nobody waits twice for a process that hangs or has ended.
    """

    def __init__(self, ends: Sequence[End], patience: float = PATIENCE) -> None:
        self._ends = dict(enumerate(ends, 1))
        self._patience = patience
        # Held by whoever asks until all have answered, for the next question would take the place
        # of this one. To wait for the others' turn is to wait for an answer, too.
        self._turn = threading.Lock()
        self._number = max(_number_of(end.said()) for end in ends)  # who was here before us
        self._answered = {place: _number_of(end.heard()) for place, end in self._ends.items()}
        self._selector = selectors.DefaultSelector()
        for place, end in self._ends.items():
            self._selector.register(end.bell, selectors.EVENT_READ, place)

    def ask(self, question: object) -> dict[int, Any]:
        """Return the answers of those who answered in time, by their places from 1. Blocks."""
        with self._turn:
            self._listen(0)
            awaited = {place for place, last in self._answered.items() if last == self._number}
            self._number += 1
            for end in self._ends.values():
                end.say({"number": self._number, "question": question})
            answers: dict[int, Any] = {}
            deadline = time.monotonic() + self._patience
            while awaited - answers.keys() and (left := deadline - time.monotonic()) > 0:
                answers |= self._listen(left)
            return answers

    def _listen(self, timeout: float) -> dict[int, Any]:
        """Take what is said; returns the answers to the question that is open. Holds the turn."""
        answers = {}
        for key, _ in self._selector.select(timeout):
            end = self._ends[key.data]
            if end.bell.wait(0) is None:
                self._selector.unregister(end.bell)  # the supervisor is gone, too
                continue
            said = end.heard()
            self._answered[key.data] = _number_of(said)
            if _number_of(said) == self._number:
                answers[key.data] = said["answer"]
        return answers


def _number_of(said: Any) -> int:
    """The number of a question or an answer; 0 for none."""
    number: int = said["number"] if said else 0
    return number
