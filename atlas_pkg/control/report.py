"""What one process knows of itself, for whoever shows it.

A report is plain enough to be sent to another process as JSON. The process that has the admin
address makes one of all (`admin/aggregate.py`); a process alone has just one.

Counters, states and lengths are read one after the other while requests go on, so two of them may
be some microseconds apart. The balancer's lock is taken for one upstream at a time: with thousands
of them nobody should wait until all have been described.
"""

from __future__ import annotations

import os
import threading
import time

import atlas_pkg
from atlas_pkg import logs
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.control.observing import Observing
from atlas_pkg.observing.event_log import ErrorLine
from atlas_pkg.observing.metrics import Snapshot
from atlas_pkg.observing.process_stats import (
    ProcessStats,
    Reload,
    UpstreamNow,
    key_of,
    read_process,
    state_of,
)
from atlas_pkg.observing.timeline import Timeline, Wanted
from atlas_pkg.serving.frontend import Frontend
from atlas_pkg.serving.generation import Generation

STARTING, SERVING, DRAINING = "starting", "serving", "draining"


class ProcessReport(ProcessStats):
    """One process, or several taken together."""

    pids: list[int]
    state: str  # starting | serving | draining
    generation: int
    log_level: str
    counted: Snapshot
    errors: list[ErrorLine]
    wanted: Wanted
    timelines: list[Timeline]  # empty unless they were asked for


class Reloads:
    """How often a changed configuration was read, and what came of the last one. Thread-safe."""

    def __init__(self) -> None:
        # Guards what follows.
        self._lock = threading.Lock()
        self._counts = {"success": 0, "failure": 0}
        self._last: Reload | None = None

    def note(self, generation: int, error: str = "") -> None:
        """One was taken over, or refused for `error`; `generation` is in force now."""
        ok = not error
        with self._lock:
            self._counts["success" if ok else "failure"] += 1
            self._last = Reload(time=time.time(), ok=ok, error=error, generation=generation)

    def settle(self, generation: int) -> bool:
        """The file holds what is in force; returns whether the last one read had been refused."""
        with self._lock:
            was_refused = self._last is not None and not self._last["ok"]
            if was_refused:
                self._last = Reload(time=time.time(), ok=True, error="", generation=generation)
            return was_refused

    def read(self) -> tuple[dict[str, int], Reload | None]:
        """The counts by result, and the last one."""
        with self._lock:
            return self._counts.copy(), self._last


class Reporter:
    """Describes this process. Thread-safe."""

    def __init__(self, front: Frontend, observing: Observing) -> None:
        self.reloads = Reloads()
        self.state = STARTING
        self._front = front
        self._observing = observing

    def report(self, generation: Generation, *, explains: bool) -> ProcessReport:
        """Describe this process; `generation` is what is in force.

        `explains`: with the last exchanges, which are much to say.
        """
        self._front.observers.publish()
        tracer = self._observing.tracer
        upstreams = _describe_upstreams(generation, self._front.idle_connections())
        counts, last = self.reloads.read()
        counters = self._observing.counters
        counters.retire(set(map(key_of, upstreams)), time.monotonic())
        for_threads = self._front.waiting
        return ProcessReport(
            version=atlas_pkg.__version__,
            pids=[os.getpid()],
            state=self.state,
            generation=generation.number,
            log_level=logs.level(),
            connections=self._front.connected,
            connections_limit=generation.config.listen.max_connections,
            certificates=generation.tls.expiries if generation.tls else {},
            queue=generation.waiting + for_threads,
            for_threads=for_threads,
            upstreams=upstreams,
            reloads=counts,
            last_reload=last,
            process=read_process(),
            counted=counters.snapshot(),
            errors=self._observing.errors.lines(),
            wanted=tracer.wanted(),
            timelines=tracer.timelines() if explains else [],
        )


def _describe_upstreams(generation: Generation, idle: dict[Upstream, int]) -> list[UpstreamNow]:
    """Describe all upstreams of a configuration, in its order."""
    now = time.monotonic()
    described = []
    for upstream in generation.upstreams:
        with generation.groups[upstream.group].balancer.lock:
            state = state_of(upstream, now, is_checked=upstream.health_check is not None)
            weight, in_flight = upstream.weight, upstream.in_flight
        described.append(
            UpstreamNow(
                name=upstream.name,
                group=upstream.group,
                address=upstream.address,
                port=upstream.port,
                kind=state.kind,
                state=state.words,
                why=state.why,
                weight=weight,
                configured_weight=upstream.configured_weight,
                backup=upstream.is_backup,
                in_flight=in_flight,
                max_connections=upstream.max_connections,
                idle=idle.get(upstream, 0),
            )
        )
    return described
