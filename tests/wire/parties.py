"""The two ends of a conversation: each follows its own script on its own connection.

A party does what its script says and waits for what its script waits for, without ever blocking:
the arena calls it when something has arrived or when nothing moves.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from itertools import takewhile

from tests.wire.corpus import Step
from tests.wire.judge import Exact

# The most pieces into which a long text is dripped.
MOST_DRIPS = 400


@dataclass(frozen=True)
class Delivery:
    """One way to send the same bytes."""

    name: str
    cut: int = 0
    is_dripped: bool = False
    is_behind: bool = False

    def pieces(self, data: bytes) -> list[bytes]:
        """`data` as it is written, piece by piece."""
        if self.is_dripped:
            size = max(1, len(data) // MOST_DRIPS)
            return [data[at : at + size] for at in range(0, len(data), size)]
        return [data[: self.cut], data[self.cut :]] if self.cut else [data]


WHOLE = Delivery("whole")
BYTE_BY_BYTE = Delivery("byte by byte", is_dripped=True)
BEHIND = Delivery("behind a good request", is_behind=True)


class Party:
    """One end of one connection."""

    def __init__(self, sock: socket.socket, judge: Exact) -> None:
        self.sock = sock
        self.judge = judge
        self.steps: list[Step] = []
        self.name = ""  # how it delivers, for the report
        self.delivery = WHOLE
        self.received = b""
        self.expected: list[bytes | int] = []
        self.ending = ""  # "end" or "reset" once the other side has gone
        self.has_closed = False  # the script has closed its sending half
        self.is_gone = False  # the script has ended: the socket is to be closed
        self._pieces: list[bytes] = []
        self._may_continue = False  # part of a piece is out already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)

    @property
    def is_done(self) -> bool:
        """Is nothing left to do or to wait for?"""
        return not self.steps and not self._pieces

    @property
    def is_stuck(self) -> bool:
        """Does it wait for what can no longer come?"""
        waits = bool(self.steps) and self.steps[0].verb in {"receives", "is reset"}
        return bool(self.ending) and waits and not self._pieces

    @property
    def is_dripping(self) -> bool:
        """Is a text leaving byte by byte?"""
        return self.delivery.is_dripped and bool(self._pieces)

    def begin(self, steps: list[Step], delivery: Delivery) -> None:
        """Follow a script; `delivery` is how its first text leaves."""
        self.steps = list(steps)
        self.name = delivery.name
        self.delivery = delivery

    def advance(self, *, is_quiet: bool) -> None:
        """Do all that can be done now."""
        while self._pieces or self.steps:
            if self._pieces:
                if not self._write(is_quiet=is_quiet):
                    return
                is_quiet = False
            elif self.steps[0].verb == "receives":
                if not self._compare():
                    return
            elif not self._take_step(self.steps[0]):
                return
            else:
                self.steps.pop(0)

    def _compare(self) -> bool:
        """Has everything come that is to come before the next thing to do?"""
        run = list(takewhile(lambda step: step.verb == "receives", self.steps))
        wanted = [*self.expected, *(step.data for step in run)]
        if not self.judge.is_as_expected(self.received, wanted):
            return False
        self.expected = wanted
        del self.steps[: len(run)]
        return True

    def _take_step(self, step: Step) -> bool:
        """Do one step; False when it has to wait."""
        if step.verb == "sends":
            assert isinstance(step.data, bytes)
            self._pieces = self.delivery.pieces(step.data)
            if not self.delivery.is_dripped:
                self.delivery = WHOLE  # only the first text is cut
            self._may_continue = True
        elif step.verb == "closes":
            self._end_sending()
        elif step.verb == "resets":
            linger = struct.pack("ii", 1, 0)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.is_gone = True
        elif step.verb == "ends":
            return bool(self.ending)
        elif step.verb == "is reset":
            return self.ending == "reset"
        return True

    def _write(self, *, is_quiet: bool) -> bool:
        """Write the next piece; False when it has to wait."""
        if self.ending and not self._may_continue:
            self._pieces.clear()  # nobody is left to read it
            return True
        if not (is_quiet or self._may_continue):
            self._may_continue = self.delivery.is_dripped
            return False
        try:
            sent = self.sock.send(self._pieces[0])
        except BlockingIOError:
            return False
        except OSError:
            self._pieces.clear()  # refused and closed; what was answered can still be read
            return True
        self._pieces[0] = self._pieces[0][sent:]
        self._may_continue = bool(self._pieces[0])
        if not self._pieces[0]:
            self._pieces.pop(0)
        return True

    def _end_sending(self) -> None:
        self.has_closed = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side was faster

    def read(self) -> None:
        """Take what has arrived."""
        try:
            data = self.sock.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            self.ending = "reset"
            return
        self.received += data
        if not data:
            self.ending = "end"
