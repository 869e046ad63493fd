"""Is there CPU time to spare, so that another thread could use it?

A thread more only helps while the process waits for upstreams. When it waits for the CPU, threads
fight for the interpreter lock and every request gets slower. Two things tell the cases apart: how
much CPU the process itself used, and how long the CPUs that it may run on were idle. The first
alone would take a CPU that other programs keep busy for a CPU at rest.

The kernel counts idle time in hundredths of a second, so the look goes over the last few ticks.
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

# Above this share of one CPU the interpreter lock is the limit, whatever the other CPUs do.
BUSY_SHARE = 0.7

# The CPUs must have rested for at least this share of one CPU.
IDLE_SHARE = 0.2

# How far back to look.
WINDOW = 0.05

_STAT = Path("/proc/stat")


class Headroom:
    """Answers the question for this process. Used by one thread."""

    def __init__(self) -> None:
        # (when, CPU seconds used by us, seconds that our CPUs were idle)
        self._samples: deque[tuple[float, float, float]] = deque()

    def forget(self) -> None:
        """Begin anew: what was seen before is too old to tell anything."""
        self._samples.clear()

    def has_spare(self) -> bool:
        """Take a look; True when the recent past had CPU time that nobody used."""
        now = (time.monotonic(), time.process_time(), _idle_seconds())
        self._samples.append(now)
        while len(self._samples) > 2 and now[0] - self._samples[1][0] >= WINDOW:
            self._samples.popleft()
        elapsed, used, idle = (new - old for new, old in zip(now, self._samples[0], strict=True))
        if elapsed < WINDOW / 2:
            return False
        return used / elapsed < BUSY_SHARE and idle / elapsed >= IDLE_SHARE


def _idle_seconds() -> float:
    """Idle time of all CPUs that we may run on, since the start of the system.

    Where the system does not tell (macOS, BSD), time itself: then our own use decides alone.
    """
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return time.monotonic()
    # cpuN user nice system idle iowait ...
    rows = [line.split() for line in lines if line.startswith("cpu")]
    ticks = sum(int(row[4]) + int(row[5]) for row in rows if row[0] in mine)
    return ticks / os.sysconf("SC_CLK_TCK")
