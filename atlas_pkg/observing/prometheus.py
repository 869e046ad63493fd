"""Metrics as Prometheus reads them: text format 0.0.4.

Pure: a snapshot and gauges in, text out. Metrics come in the order of this file, upstreams in that
of their names, so two scrapes can be compared line by line. A series is there from the
first scrape on, with a zero, or the step to its first count would not be seen: every upstream has
all its code classes, buckets and usual failures before its first request.

No label holds anything that a client can choose, and `metrics.py` bounds the upstreams' names, so
the number of series is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from atlas_pkg.errors import Stage
from atlas_pkg.observing.metrics import (
    BUCKET_BOUNDS,
    CODE_CLASSES,
    NOBODY,
    Snapshot,
    UpstreamCounts,
    merge,
)
from atlas_pkg.observing.process_stats import STATES, Gauges
from atlas_pkg.observing.record import End

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# What fails now and then: attempts at an upstream, its answers, and the search for one. The rest
# is rare enough to have no zeros.
_USUAL_FAILURES = (
    *(stage.value for stage in (Stage.CONNECT, Stage.SEND, Stage.HEAD)),
    End.UPSTREAM_CUT.value,
)
_OWN_FAILURES = (End.NO_UPSTREAM.value,)

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Sample = tuple[dict[str, str], float]


def render_prometheus(snapshot: Snapshot, gauges: Gauges) -> str:
    """Write everything as Prometheus's text format, to be sent as `CONTENT_TYPE`."""
    counts = _with_everybody(snapshot, gauges)
    lines = (
        *_requests(counts),
        *_durations(counts),
        *_states(gauges),
        *_troubles(counts),
        *_whole(counts, gauges),
        *_process(gauges["process"]),
    )
    return "\n".join(lines) + "\n"


def _with_everybody(snapshot: Snapshot, gauges: Gauges) -> dict[str, UpstreamCounts]:
    """Return the counters by name, with zeros for whom nothing was counted yet."""
    known = dict.fromkeys(gauges["upstreams"], _zeros(_USUAL_FAILURES))
    known[NOBODY] = _zeros(_OWN_FAILURES)
    return merge([snapshot, Snapshot(upstreams=known)])["upstreams"]


def _zeros(failures: Iterable[str]) -> UpstreamCounts:
    return UpstreamCounts(
        requests={},
        failures=dict.fromkeys(failures, 0),
        retries=0,
        reused=0,
        bytes_in=0,
        bytes_out=0,
        duration_buckets=[0] * (len(BUCKET_BOUNDS) + 1),
        duration_sum=0.0,
    )


def _requests(counts: dict[str, UpstreamCounts]) -> Iterator[str]:
    yield from _metric(
        "atlas_requests_total",
        "counter",
        'Requests by the class of their answer; upstream "-" is Atlas itself.',
        (
            ({"upstream": name, "code_class": kind}, count)
            for name, row in counts.items()
            for kind in CODE_CLASSES
            # Requests without any answer are rare enough to have no zeros.
            if (count := row["requests"].get(kind, 0)) or kind != CODE_CLASSES[0]
        ),
    )


def _durations(counts: dict[str, UpstreamCounts]) -> Iterator[str]:
    metric = "atlas_request_duration_seconds"
    yield from _head(metric, "histogram", "From the whole head of a request to its answer's end.")
    bounds = [*map(str, BUCKET_BOUNDS), "+Inf"]
    for name, row in counts.items():
        reached = list(accumulate(row["duration_buckets"]))
        labels = {"upstream": name}
        for bound, count in zip(bounds, reached, strict=True):
            yield _line(f"{metric}_bucket", {**labels, "le": bound}, count)
        yield _line(f"{metric}_sum", labels, row["duration_sum"])
        yield _line(f"{metric}_count", labels, reached[-1])


def _states(gauges: Gauges) -> Iterator[str]:
    upstreams = sorted(gauges["upstreams"].items())
    names = [{"upstream": name} for name, _ in upstreams]
    metrics = (
        ("up", "1 if the upstream may be given requests.", [at["up"] for _, at in upstreams]),
        ("active", "Requests in flight to it.", [at["active"] for _, at in upstreams]),
        ("idle", "Connections to it kept at rest.", [at["idle"] for _, at in upstreams]),
        ("weight", "Its weight.", [at["weight"] for _, at in upstreams]),
    )
    for key, text, values in metrics:
        yield from _metric(f"atlas_upstream_{key}", "gauge", text, zip(names, values, strict=True))
    yield from _metric(
        "atlas_upstream_state",
        "gauge",
        "1 for the state that the upstream is in, as the status page has it.",
        (
            ({"upstream": name, "state": state}, at["state"] == state)
            for name, at in upstreams
            for state in reversed(STATES)
        ),
    )


def _troubles(counts: dict[str, UpstreamCounts]) -> Iterator[str]:
    yield from _metric(
        "atlas_upstream_failures_total",
        "counter",
        'Failed attempts by their stage; upstream "-" is Atlas itself.',
        (
            ({"upstream": name, "reason": reason}, count)
            for name, row in counts.items()
            for reason, count in sorted(row["failures"].items())
        ),
    )
    yield from _metric(
        "atlas_retries_total",
        "counter",
        "Attempts on another upstream after this one had failed.",
        (({"upstream": name}, row["retries"]) for name, row in counts.items()),
    )


def _whole(counts: dict[str, UpstreamCounts], gauges: Gauges) -> Iterator[str]:
    """Write what is about Atlas as a whole."""
    bytes_in = sum(row["bytes_in"] for row in counts.values())
    bytes_out = sum(row["bytes_out"] for row in counts.values())
    reloads = {"failure": 0, "success": 0, **gauges["reloads"]}
    yield from _metric(
        "atlas_connections", "gauge", "Clients connected.", [({}, gauges["connections"])]
    )
    yield from _metric(
        "atlas_connections_limit",
        "gauge",
        "Clients that may be connected.",
        [({}, gauges["connections_limit"])],
    )
    yield from _metric(
        "atlas_queue",
        "gauge",
        "Requests that wait for a place at an upstream.",
        [({}, gauges["queue"])],
    )
    yield from _metric(
        "atlas_bytes_total",
        "counter",
        "Bytes of bodies, in from clients and out to them.",
        [({"direction": "in"}, bytes_in), ({"direction": "out"}, bytes_out)],
    )
    yield from _metric(
        "atlas_config_reloads_total",
        "counter",
        "Changed configurations read, by whether they were taken over.",
        (({"result": result}, count) for result, count in sorted(reloads.items())),
    )
    yield from _metric(
        "atlas_config_last_reload_success",
        "gauge",
        "1 if the configuration read last is in force.",
        [({}, gauges["last_reload_success"])],
    )
    yield from _metric(
        "atlas_build_info", "gauge", "Always 1.", [({"version": gauges["version"]}, 1)]
    )


def _process(process: dict[str, float]) -> Iterator[str]:
    """Write what the system knows of the process, under the names that are usual for it."""
    metrics = (
        ("cpu_seconds", "process_cpu_seconds_total", "counter", "CPU time used."),
        ("resident_bytes", "process_resident_memory_bytes", "gauge", "Memory in RAM."),
        ("virtual_bytes", "process_virtual_memory_bytes", "gauge", "Memory mapped."),
        ("open_fds", "process_open_fds", "gauge", "File descriptors open."),
        ("max_fds", "process_max_fds", "gauge", "File descriptors that may be open."),
        ("start_time", "process_start_time_seconds", "gauge", "Start, in seconds since 1970."),
        ("threads", "process_threads", "gauge", "Threads."),
    )
    for key, name, kind, text in metrics:
        if key in process:
            yield from _metric(name, kind, text, [({}, process[key])])


def _metric(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Write one metric; one without any sample is left out whole."""
    is_begun = False
    for labels, value in samples:
        if not is_begun:
            is_begun = True
            yield from _head(name, kind, text)
        yield _line(name, labels, value)


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _line(name: str, labels: dict[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
    # A whole number without ".0": every digit counts for a counter of bytes.
    number = repr(int(value)) if value == int(value) else repr(value)
    return f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}"
