"""What an administrator has said, of the upstreams and for explanations, where all can read it.

It is a piece of memory that is made before any process is forked, so all of them share it. Who
steers writes; worker processes read, when they are asked how they are, after each reload, and
before they serve their first client. So one that replaces another begins with what holds now, and
what it has not been told cannot be lost, only late: messages that carry the changes
themselves would have to be repeated, put in order and kept from processes that died.

One process writes at a time, and any number read meanwhile. A reader may see half of a change;
the checksum tells, and it looks again.

Upstreams are known by name, address and port. Who leaves the configuration and comes back is the
same one. Not done here: carrying it out (`service.py`).
"""

from __future__ import annotations

import json
import mmap
import struct
import threading
import time
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from atlas_pkg.balancing.upstream import AdminState, Identity
from atlas_pkg.observing.tracer import Asking

# Some ten thousand upstreams. Memory that is never written to is never taken.
BOARD_BYTES = 2 * 1024 * 1024

# Version, length and checksum of the text that follows.
_HEAD = struct.Struct("=QII")

# A reader who meets a writer looks again, and again. A writer needs some microseconds.
_LOOKS = 100
_BETWEEN_LOOKS = 0.001


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be different; None is what stays."""

    state: AdminState | None = None
    weight: int | None = None
    resets_weight: bool = False  # back to the file's weight

    def __str__(self) -> str:
        parts = [f"state {self.state.value}"] if self.state is not None else []
        if self.weight is not None:
            parts.append(f"weight {self.weight}")
        elif self.resets_weight:
            parts.append("weight as in the file")
        return ", ".join(parts)


class Word(NamedTuple):
    """What holds for one upstream; a weight of None is that of the file."""

    state: AdminState = AdminState.READY
    weight: int | None = None


ORDINARY = Word()


class Asked(NamedTuple):
    """Which exchanges are to be explained."""

    one_in: int | None = None  # None: as the process was started
    next_from: str = ""  # the client whose next exchange was asked for last
    orders: int = 0  # how often one was: each counts once, however often it is read


class Told(NamedTuple):
    """What is written on the board."""

    version: int
    words: dict[Identity, Word]  # without the upstreams that are as in the file
    asked: Asked


class Board:
    """The words for all upstreams. Made before forking; each process uses its copy of this."""

    def __init__(self, size: int = BOARD_BYTES) -> None:
        self._memory = mmap.mmap(-1, size)
        # Guards writing, among the threads of the process that steers. Memory only, no I/O.
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """Grows with every change: who has read this version need not read again."""
        version: int = _HEAD.unpack_from(self._memory)[0]
        return version

    def read(self) -> Told | None:
        """Return what is written there.

        None where it cannot be read, since a writer died halfway: until somebody writes again.
        """
        for _ in range(_LOOKS):
            version, length, checksum = _HEAD.unpack_from(self._memory)
            text = self._memory[_HEAD.size : _HEAD.size + length]
            if zlib.crc32(text) == checksum and version == self.version:
                return Told(version, *_decode(text))
            time.sleep(_BETWEEN_LOOKS)
        return None

    def change(self, identity: Identity, change: Change) -> bool:
        """Write what is different from now on; False where there is no room left."""
        with self._lock:
            told = self._read_or_begin()
            word = told.words.pop(identity, ORDINARY)
            if change.state is not None:
                word = word._replace(state=change.state)
            if change.resets_weight or change.weight is not None:
                word = word._replace(weight=change.weight)
            if word != ORDINARY:
                told.words[identity] = word
            return self._write(told)

    def ask(self, asking: Asking) -> bool:
        """Write which exchanges are to be explained; False where there is no room left."""
        with self._lock:
            told = self._read_or_begin()
            asked = told.asked
            if asking.one_in is not None:
                asked = asked._replace(one_in=asking.one_in)
            if asking.next_from is not None:
                asked = asked._replace(next_from=asking.next_from, orders=asked.orders + 1)
            return self._write(told._replace(asked=asked))

    def _read_or_begin(self) -> Told:
        return self.read() or Told(self.version, {}, Asked())

    def _write(self, told: Told) -> bool:
        """Write all of it, as the next version. Caller holds the lock."""
        text = _encode(told)
        if _HEAD.size + len(text) > len(self._memory):
            return False
        self._memory[_HEAD.size : _HEAD.size + len(text)] = text
        _HEAD.pack_into(self._memory, 0, told.version + 1, len(text), zlib.crc32(text))
        return True


def _encode(told: Told) -> bytes:
    rows = [(*identity, word.state.value, word.weight) for identity, word in told.words.items()]
    return json.dumps({"words": rows, "asked": told.asked}).encode()


def _decode(text: bytes) -> tuple[dict[Identity, Word], Asked]:
    if not text:
        return {}, Asked()
    document = json.loads(text)
    words = {
        (name, address, port, group): Word(AdminState(state), weight)
        for name, address, port, group, state, weight in document["words"]
    }
    return words, Asked(*document["asked"])
