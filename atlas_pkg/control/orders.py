"""What a supervisor tells its worker processes: one byte through a pipe for each order.

Worker processes heed no signals of their own: a Ctrl-C reaches every process of a terminal, service
managers often signal all of them too, and what comes twice must not count as a second, impatient
one. Nor can two bytes melt into one, as two signals may. The supervisor's end of the pipe closes
with the supervisor, however that ends.
"""

from __future__ import annotations

import enum
import logging
import os

log = logging.getLogger("atlas.supervisor")


class Order(enum.Enum):
    """What a worker process can be told."""

    RELOAD = b"r"
    DUMP = b"u"  # log the state of the upstreams
    DRAIN = b"d"
    CUT = b"c"


class Orders:
    """A worker process's end of the line to its supervisor. Used by one thread."""

    def __init__(self, reader: int) -> None:
        """Takes over the descriptor `reader`, which blocks."""
        self._reader = reader
        self._is_cut = False

    def wait(self) -> Order:
        """Wait for the next order. Blocks. Without a supervisor the order is to drain."""
        told = os.read(self._reader, 1)
        if not told:
            log.error("the supervisor is gone: ending")
            return Order.DRAIN
        return Order(told)

    def is_cut(self) -> bool:
        """Have we been told to end at once? Does not block. For the time of the drain."""
        os.set_blocking(self._reader, False)
        try:
            while told := os.read(self._reader, 1):
                self._is_cut |= told == Order.CUT.value
        except BlockingIOError:
            pass
        return self._is_cut
