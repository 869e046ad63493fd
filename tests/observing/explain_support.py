"""Records and documents of explained exchanges, for the tests of time lines, page and terminal."""

from __future__ import annotations

from atlas_pkg.choice import Candidate, Choice
from atlas_pkg.observing.record import Record, Times
from atlas_pkg.observing.timeline import Explained, Timeline

NOW = 1_800_000_000.0

CHOICE = Choice(
    "least_connections",
    "strategy, after slow start",
    (
        Candidate(
            "red", "0 in flight / weight 3 = 0.00; slow start", "slow start: skipped this time"
        ),
        Candidate("green", "1 in flight / weight 1 = 1.00"),
        Candidate("blue", "", "down: status 500"),
    ),
    chosen="green",
    others=(("down", 480), ("full", 2)),
)


def build_record(line: bytes = b"GET /a?secret=1 HTTP/1.1", **more: object) -> Record:
    """An exchange that began at 100 s and took 100 ms: 10, 20, 5, 60 and 5 for its stages."""
    record = Record("192.0.2.7", line, 100.010)
    record.times = times = Times()
    record.began_at, times.chosen_at, times.connected_at = 100.0, 100.030, 100.035
    times.asked_at, times.first_byte_at, record.ended_at = 100.036, 100.095, 100.100
    record.status, record.upstream = 200, "green"
    for name, value in more.items():
        setattr(times if hasattr(Times, name) else record, name, value)
    return record


def explained(*timelines: Timeline, one_in: int = 0, next_from: str = "") -> Explained:
    return Explained(time=NOW, one_in=one_in, next_from=next_from, exchanges=list(timelines))
