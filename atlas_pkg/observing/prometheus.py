"""Metrics as Prometheus reads them: text format 0.0.4.

Pure: what was counted and how things are in, text out. Counters come as `metrics.COUNTERS` has
them, then the gauges in the order of this file, upstreams in that of their names, so two scrapes
can be compared line by line. A series is there from the first scrape on, with a zero, or the step
to its first count would not be seen.

No label holds anything that a client can choose, and `metrics.py` bounds the upstreams' names, so
the number of series is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from atlas_pkg.observing.metrics import (
    ALL,
    BUCKETS,
    COUNTERS,
    NOBODY,
    Counter,
    Snapshot,
    buckets_of,
    own_keys,
    split_key,
)
from atlas_pkg.observing.process_stats import STATES, ProcessStats, UpstreamNow, is_usable, key_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

_Sample = tuple[dict[str, str], float]


class Gauge(NamedTuple):
    """A row: something that is read when somebody asks. Without any sample it is left out."""

    name: str
    help: str
    read: Callable[[ProcessStats], Iterable[_Sample]]
    kind: str = "gauge"


def _of_upstream(key: str, text: str, read: Callable[[UpstreamNow], float]) -> Gauge:
    def read_all(stats: ProcessStats) -> list[_Sample]:
        return [(_labels(key), read(item)) for key, item in _by_key(stats)]

    return Gauge(f"atlas_upstream_{key}", text, read_all)


def _of_process(name: str, text: str, key: str, kind: str = "gauge") -> Gauge:
    """What the system knows of a process has a name that is usual, and may be missing."""

    def read(stats: ProcessStats) -> list[_Sample]:
        return [({}, stats["process"][key])] if key in stats["process"] else []

    return Gauge(f"process_{name}", text, read, kind)


def _by_key(stats: ProcessStats) -> list[tuple[str, UpstreamNow]]:
    # Of two that share a name, while a reload gives it another address, the newer one.
    return sorted({key_of(item): item for item in stats["upstreams"]}.items())


def _labels(key: str) -> dict[str, str]:
    group, upstream = split_key(key)
    return {"group": group, "upstream": upstream}


def _read_states(stats: ProcessStats) -> Iterator[_Sample]:
    for key, item in _by_key(stats):
        for state in reversed(STATES):
            yield {**_labels(key), "state": state}, item["kind"] == state


def _read_reloads(stats: ProcessStats) -> Iterator[_Sample]:
    for result in ("failure", "success"):
        yield {"result": result}, stats["reloads"].get(result, 0)


def _read_last_reload(stats: ProcessStats) -> list[_Sample]:
    last = stats["last_reload"]
    return [({}, last is None or last["ok"])]


GAUGES = (
    _of_upstream("up", "1 if the upstream may be given requests.", is_usable),
    _of_upstream("active", "Requests in flight to it.", lambda item: item["in_flight"]),
    _of_upstream("idle", "Connections to it kept at rest.", lambda item: item["idle"]),
    _of_upstream("weight", "Its weight.", lambda item: item["weight"]),
    Gauge(
        "atlas_upstream_state",
        "1 for the state that the upstream is in, as the status page has it.",
        _read_states,
    ),
    Gauge("atlas_connections", "Clients connected.", lambda stats: [({}, stats["connections"])]),
    Gauge(
        "atlas_connections_limit",
        "Clients that may be connected.",
        lambda stats: [({}, stats["connections_limit"])],
    ),
    Gauge(
        "atlas_queue",
        "Requests that wait for room at an upstream, or for a thread.",
        lambda stats: [({}, stats["queue"])],
    ),
    Gauge(
        "atlas_config_reloads_total",
        "Changed configurations read, by whether they were taken over.",
        _read_reloads,
        "counter",
    ),
    Gauge(
        "atlas_config_last_reload_success",
        "1 if the configuration read last is in force.",
        _read_last_reload,
    ),
    Gauge(
        "atlas_tls_certificate_expiry_seconds",
        "When a certificate expires, in seconds since 1970.",
        lambda stats: [({"name": name}, at) for name, at in sorted(stats["certificates"].items())],
    ),
    Gauge("atlas_build_info", "Always 1.", lambda stats: [({"version": stats["version"]}, 1)]),
    _of_process("cpu_seconds_total", "CPU time used.", "cpu_seconds", "counter"),
    _of_process("resident_memory_bytes", "Memory in RAM.", "resident_bytes"),
    _of_process("virtual_memory_bytes", "Memory mapped.", "virtual_bytes"),
    _of_process("open_fds", "File descriptors open.", "open_fds"),
    _of_process("max_fds", "File descriptors that may be open.", "max_fds"),
    _of_process("start_time_seconds", "Start, in seconds since 1970.", "start_time"),
    _of_process("threads", "Threads.", "threads"),
)


def render_prometheus(snapshot: Snapshot, stats: ProcessStats) -> str:
    """Write everything as Prometheus's text format, to be sent as `CONTENT_TYPE`."""
    present = set(map(key_of, stats["upstreams"]))
    counted = {key for upstreams in snapshot.values() for key in upstreams}
    keys = sorted((present | counted | own_keys(present)) - {ALL})
    lines: list[str] = []
    for counter in COUNTERS:
        lines += _write_counter(counter, snapshot[counter.name], keys)
    for gauge in GAUGES:
        if samples := list(gauge.read(stats)):
            lines += _head(gauge.name, gauge.kind, gauge.help)
            lines += (_line(gauge.name, labels, value) for labels, value in samples)
    return "\n".join(lines) + "\n"


def _write_counter(
    counter: Counter, counted: dict[str, dict[str, float]], keys: list[str]
) -> Iterator[str]:
    """Write one counter, with zeros for what was not counted yet."""
    yield from _head(counter.name, "histogram" if counter.is_histogram else "counter", counter.help)
    for key in keys if counter.by_upstream else [ALL]:
        zeros = (counter.own_zeros if split_key(key)[1] == NOBODY else None) or counter.zeros
        values = dict.fromkeys(zeros, 0.0) | counted.get(key, {})
        upstream = _labels(key) if counter.by_upstream else {}
        if counter.is_histogram:
            yield from _write_histogram(counter, upstream, values)
            continue
        for label, value in sorted(values.items()):
            labels = {**upstream, counter.label: label} if counter.label else upstream
            yield _line(counter.name, labels, value)


def _write_histogram(
    counter: Counter, upstream: dict[str, str], values: dict[str, float]
) -> Iterator[str]:
    """Write buckets as Prometheus has them: each holds those before it as well."""
    reached = list(accumulate(buckets_of(values)))
    for bound, count in zip(BUCKETS, reached, strict=True):
        yield _line(f"{counter.name}_bucket", {**upstream, counter.label: bound}, count)
    yield _line(f"{counter.name}_sum", upstream, values["sum"])
    yield _line(f"{counter.name}_count", upstream, reached[-1])


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _line(name: str, labels: dict[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
    # A whole number without ".0": every digit counts for a counter of bytes.
    number = repr(int(value)) if value == int(value) else repr(value)
    return f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}"
