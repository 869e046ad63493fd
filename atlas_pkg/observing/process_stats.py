"""What is true at this moment: of the upstreams, of the configuration, of the process.

`metrics.py` counts what has happened; here is what goes up and down. Whoever owns a number fills
it in when somebody asks, so nothing is kept up to date in between. Like a snapshot, it is plain
enough to be sent to another process as JSON.

`state_of` puts an upstream's state into words, the same everywhere. `read_process` reads what the
kernel keeps in /proc. Where there is none (macOS, BSD) it knows less, and says nothing instead of
something wrong.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple, TypedDict

from atlas_pkg.balancing.breaker import BreakerState
from atlas_pkg.balancing.upstream import UNPROBED, AdminState, Upstream
from atlas_pkg.observing.metrics import name_key

_PROC = Path("/proc")

# What an upstream can be, from bad to good, for processes that disagree. `state_of` chooses one.
STATES = ("maintenance", "drain", "down", "open", "checking", "half-open", "up")


# In one of these it is sent requests of new clients, unless its weight is 0. A breaker's trials
# count, though they are few.
_USABLE = frozenset({"up", "half-open"})


class State(NamedTuple):
    """One upstream's state: a word for programs, words for people, and the cause."""

    kind: str  # one of `STATES`
    words: str
    why: str  # empty where there is nothing to say


class Reload(TypedDict):
    """The last reload; `generation` is the one in force after it."""

    time: float
    ok: bool
    error: str
    generation: int


class UpstreamNow(TypedDict):
    """One upstream: what no counter tells."""

    name: str
    group: str
    address: str
    port: int
    kind: str  # these three as in `State`
    state: str
    why: str
    weight: int
    configured_weight: int
    backup: bool
    in_flight: int
    max_connections: int
    idle: int


def key_of(upstream: UpstreamNow) -> str:
    """The key under which `metrics.py` counts it."""
    return name_key(upstream["group"], upstream["name"])


class ProcessStats(TypedDict):
    """One process, or several taken together."""

    version: str
    connections: int  # clients connected
    connections_limit: int  # and how many there may be
    certificates: dict[str, float]  # when each expires, in seconds since 1970
    queue: int  # requests that wait for room at an upstream, or for a thread
    for_threads: int  # of these, those that wait for a thread (`listen.max_threads`)
    upstreams: list[UpstreamNow]
    reloads: dict[str, int]  # how often, by result: "success" or "failure"
    last_reload: Reload | None
    process: dict[str, float]  # see `read_process`


def read_process() -> dict[str, float]:
    """Return what the system says of this process; a key is missing where it does not say it.

    Keys: cpu_seconds, resident_bytes, virtual_bytes, open_fds, max_fds, threads and start_time,
    which is in seconds since 1970. Blocks for some microseconds.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    gauges: dict[str, float] = {"cpu_seconds": sum(os.times()[:2])}
    if soft != resource.RLIM_INFINITY:
        gauges["max_fds"] = soft
    try:
        # Behind the name, which may hold anything: proc(5) counts from 1, this is its third field.
        fields = (_PROC / "self" / "stat").read_bytes().rpartition(b")")[2].split()
        boot = (_PROC / "stat").read_bytes().partition(b"\nbtime ")[2].split(maxsplit=1)[0]
        descriptors = list((_PROC / "self" / "fd").iterdir())
        known = {
            "threads": int(fields[17]),
            "start_time": int(boot) + int(fields[19]) / os.sysconf("SC_CLK_TCK"),
            "virtual_bytes": int(fields[20]),
            "resident_bytes": int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
            "open_fds": len(descriptors) - 1,  # less the one that was open for looking
        }
    except (OSError, IndexError, ValueError):
        return gauges  # no /proc, or one that we do not know
    return gauges | known


def is_usable(upstream: UpstreamNow) -> bool:
    """Is it sent requests of new clients?"""
    return upstream["weight"] > 0 and upstream["kind"] in _USABLE


def describe_state(upstream: UpstreamNow) -> str:
    """Write an upstream's state and its cause in one phrase."""
    return ", ".join(part for part in (upstream["state"], upstream["why"]) if part)


def state_of(upstream: Upstream, now: float, *, is_checked: bool) -> State:
    """Put the state of `upstream` into words. Caller holds the balancer's lock.

    `now` is `time.monotonic()`; `is_checked` says whether health checks are configured for it.
    """
    state = _state_by_itself(upstream, now, is_checked)
    if upstream.admin_state is AdminState.READY:
        return state
    kind = upstream.admin_state.value
    why = "no new clients" if upstream.admin_state is AdminState.DRAIN else "no requests"
    if state.kind != "up":
        why += f"; besides: {state.words}"
    return State(kind, kind, why)


def _state_by_itself(upstream: Upstream, now: float, is_checked: bool) -> State:
    """The state without regard to an administrator's word."""
    if not upstream.is_up:
        if upstream.health_reason == UNPROBED:
            return State("checking", "checking", UNPROBED)
        return State("down", "down", upstream.health_reason)
    breaker = upstream.breaker
    state = breaker.state(now) if breaker is not None else BreakerState.CLOSED
    if breaker is None or breaker.reopens_at is None or state is BreakerState.CLOSED:
        return State("up", "up", (upstream.health_reason or "no probe yet") if is_checked else "")
    if state is BreakerState.OPEN:
        left = max(1, round(breaker.reopens_at - now))
        return State("open", f"breaker open, {left} s left", "too many failures in a row")
    return State("half-open", "half-open", "a few requests are sent as trials")
