"""Values for the tests of this room: records, snapshots, how an upstream is."""

from __future__ import annotations

from collections.abc import Iterable

from atlas_pkg.observing.metrics import Counters, Snapshot
from atlas_pkg.observing.process_stats import ProcessStats, UpstreamNow
from atlas_pkg.observing.record import End, Record


def make_record(
    upstream: str = "a", status: int = 200, took: float = 0.003, end: End = End.DONE
) -> Record:
    # From zero on, where a difference of floats is what it looks like.
    record = Record("127.0.0.1", b"GET / HTTP/1.1", 0.0)
    record.upstream, record.status, record.ended_at, record.end = upstream, status, took, end
    return record


def count(*records: Record) -> Snapshot:
    counters = Counters()
    counters.note(records)
    return counters.snapshot()


def build_now(name: str, kind: str = "up", **more: object) -> UpstreamNow:
    """How an upstream is at this moment."""
    upstream = UpstreamNow(
        name=name,
        address="10.0.0.1",
        port=3000,
        kind=kind,
        state=kind,
        why="",
        weight=1,
        group="default",
        configured_weight=1,
        backup=False,
        in_flight=0,
        max_connections=0,
        idle=0,
    )
    upstream.update(more)  # type: ignore[typeddict-item]
    return upstream


def build_process(upstreams: Iterable[UpstreamNow] = ()) -> ProcessStats:
    return ProcessStats(
        version="1.2.3",
        connections=7,
        connections_limit=4096,
        certificates={},
        queue=2,
        for_threads=0,
        upstreams=list(upstreams),
        reloads={"success": 2, "failure": 0},
        last_reload={"time": 0.0, "ok": True, "error": "", "generation": 3},
        process={},
    )
