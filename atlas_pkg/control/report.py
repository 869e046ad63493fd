"""What one process knows of itself: a `Part` of what the admin address shows.

A part is plain enough to be sent to another process as JSON. The process that has the admin address
makes one picture of all parts (`overview.py`); a process alone has just one.

Counters, states and lengths are read one after the other while requests go on, so two of them may
be some microseconds apart. The balancer's lock is taken for one upstream at a time: with thousands
of them nobody should wait until all have been described.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TypedDict

import atlas_pkg
from atlas_pkg import logs
from atlas_pkg.balancing.member import Member
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.control.front import Front
from atlas_pkg.control.observing import Observing
from atlas_pkg.gauges import Gauges, UpstreamGauges, read_process
from atlas_pkg.metrics import Snapshot
from atlas_pkg.serving.generation import Generation
from atlas_pkg.serving.minute import UpstreamNow
from atlas_pkg.serving.status import ErrorLine, Reload, state_of
from atlas_pkg.serving.timeline import Timeline, Wanted

# An upstream in one of these states is sent requests of new clients, unless its weight is 0.
_USABLE = frozenset({"up", "half-open"})

STARTING, SERVING, DRAINING = "starting", "serving", "draining"


class Part(TypedDict):
    """One process."""

    pid: int
    started: float  # seconds since the epoch
    state: str  # starting | serving | draining
    generation: int
    last_reload: Reload | None
    log_level: str
    snapshot: Snapshot
    gauges: Gauges
    upstreams: list[UpstreamNow]
    errors: list[ErrorLine]
    wanted: Wanted
    timelines: list[Timeline]  # empty unless they were asked for


def is_usable(upstream: UpstreamNow) -> bool:
    """Is it sent requests of new clients? A breaker's trials count, though they are few."""
    return upstream["weight"] > 0 and upstream["kind"] in _USABLE


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
        """The file holds what is in force: it is no longer one that was refused. Was it?"""
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
    """Makes the part of this process. Thread-safe."""

    def __init__(self, front: Front, observing: Observing) -> None:
        self.reloads = Reloads()
        self.state = STARTING
        self._front = front
        self._observing = observing
        self._started = time.time()

    def report(self, generation: Generation, *, explains: bool) -> Part:
        """Describe this process; `generation` is what is in force.

        `explains`: with the last exchanges, which are much to say.
        """
        self._front.audience.tell()
        tracer = self._observing.tracer
        upstreams = _describe_upstreams(generation, self._front.idle_connections())
        counts, last = self.reloads.read()
        ledger = generation.balancer.ledger
        with ledger.lock:
            queue = len(ledger.queue)
        return Part(
            pid=os.getpid(),
            started=self._started,
            state=self.state,
            generation=generation.number,
            last_reload=last,
            log_level=logs.level(),
            snapshot=self._observing.tallies.snapshot(),
            gauges=Gauges(
                version=atlas_pkg.__version__,
                connections=self._front.connected,
                connections_limit=generation.config.listen.max_connections,
                queue=queue,
                upstreams={
                    item["name"]: UpstreamGauges(
                        up=is_usable(item),
                        state=item["kind"],
                        active=item["in_flight"],
                        idle=item["idle"],
                        weight=item["weight"],
                    )
                    for item in upstreams
                },
                reloads=counts,
                last_reload_success=last is None or last["ok"],
                process=read_process(),
            ),
            upstreams=upstreams,
            errors=self._observing.journal.errors(),
            wanted=tracer.wanted(),
            timelines=tracer.timelines() if explains else [],
        )


def _describe_upstreams(generation: Generation, idle: dict[Upstream, int]) -> list[UpstreamNow]:
    """Describe all upstreams of a configuration, in its order."""
    lock, now = generation.balancer.ledger.lock, time.monotonic()
    described = []
    pairs = zip(generation.balancer.upstreams, generation.config.upstreams, strict=True)
    for order, (upstream, item) in enumerate(pairs):
        member = Member(upstream, item, order)
        with lock:
            state = state_of(upstream, now, is_checked=item.health_check is not None)
            weight, in_flight = member.weight, upstream.in_flight
        described.append(
            UpstreamNow(
                name=upstream.name,
                address=upstream.address,
                port=upstream.port,
                kind=state.kind,
                state=state.words,
                why=state.why,
                weight=weight,
                configured_weight=member.configured_weight,
                backup=member.is_backup,
                in_flight=in_flight,
                max_connections=member.max_connections,
                idle=idle.get(upstream, 0),
            )
        )
    return described
