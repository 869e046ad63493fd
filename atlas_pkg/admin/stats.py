"""What the admin address shows: the document behind `/stats.json`, and who provides it.

`Stats` is the schema. The page, the tests and whoever reads `/stats.json` rely on these names:
add to them, do not change what one means. Instants are seconds since the epoch, since they leave
the process; durations are seconds, sizes are bytes, and every other unit is part of the name.
A latency is None where nothing was measured.

`StatusSource` is what the admin app asks. It is implemented where all parts are at hand, for one
process and for several. `state_of` puts one upstream's state into words, the same everywhere, and
`judge` all of it into a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

from atlas_pkg.admin.commands import Asking, Change
from atlas_pkg.balancing.breaker import BreakerState
from atlas_pkg.balancing.upstream import UNPROBED, AdminState, Upstream
from atlas_pkg.observing.timeline import Explained

# More than these, and the summary is no longer one.
_MOST_DETAILS = 4


class State(NamedTuple):
    """One upstream's state: a word for programs, words for people, and the cause."""

    kind: str  # up | checking | down | open | half-open | drain | maintenance
    words: str
    why: str  # empty where there is nothing to say


class Reload(TypedDict):
    """The last reload; `generation` is the one in force after it."""

    time: float
    ok: bool
    error: str
    generation: int


class Sample(TypedDict):
    """The numbers of one second, and at the same time those at the head of the page."""

    rate: float  # requests a second
    connections: int
    error_percent: float  # answers with 5xx, whoever made them, among all
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    bytes_in_rate: float
    bytes_out_rate: float
    queue: int  # requests that wait for a slot under upstreams.max_connections


class Totals(Sample):
    """The present numbers, with what they are measured against."""

    max_connections: int  # of all processes together
    requests: int  # since the start


class Strip(TypedDict):
    """An upstream's last minute; the newest second comes last, and there may be fewer than 60."""

    requests: list[int]  # that it answered
    failed: list[int]  # attempts that failed
    marks: str  # a letter a second: u in rotation, d down or breaker open, o taken out by hand


class UpstreamStats(TypedDict):
    """One upstream, as the page has it in a row."""

    name: str
    address: str
    port: int
    kind: str  # as in `State`
    state: str  # the words
    why: str
    since: float | None
    weight: int  # in force
    configured_weight: int
    backup: bool
    share_percent: float  # of the requests of the last minute
    in_flight: int
    max_connections: int  # 0 = no limit
    idle: int  # kept connections at rest
    rate: float
    total: int
    classes: dict[str, int]  # "2xx" to "5xx"; others where there were any
    failures: dict[str, int]  # by reason: connect, reset, timeout and others
    retries: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    strip: Strip


class Event(TypedDict):
    """Something that happened; `upstream` is empty where it concerns none."""

    time: float
    kind: str  # state | reload | refused | steering | process
    upstream: str
    text: str


class ErrorLine(TypedDict):
    """Errors that are alike: answers that Atlas made itself, or that it had to cut."""

    time: float  # of the last one
    client: str  # of the last one
    line: str  # the request line, without the query
    upstream: str  # "-" if none was tried
    status: int
    text: str
    count: int  # how many there were


class Verdict(TypedDict):
    """How Atlas is, at a glance; what is not as it should be stands in `details`."""

    level: str  # good | warn | bad
    text: str
    details: list[str]


class Stats(TypedDict):
    """All of it; lists of what happened have the newest first."""

    version: str
    time: float
    pids: list[int]
    uptime: float
    mode: str
    listen: list[str]
    config_path: str
    generation: int
    last_reload: Reload | None
    state: str  # serving | draining
    ready: bool
    ready_reason: str
    totals: Totals
    history: list[Sample]
    upstreams: list[UpstreamStats]
    events: list[Event]
    errors: list[ErrorLine]
    # Added by the admin app:
    verdict: NotRequired[Verdict]
    may_steer: NotRequired[bool]  # is a token configured?


class StatusSource(Protocol):
    """Knows how Atlas is, and passes on what an administrator wants. Thread-safe."""

    def stats(self) -> Stats:
        """The document of `/stats.json`, made for the caller, who may change it."""

    def metrics(self) -> str:
        """Everything that is counted, in the text format of Prometheus."""

    def readiness(self) -> tuple[bool, str]:
        """Can requests be answered now, and in a few words why (not)?"""

    def steer(self, name: str, change: Change) -> bool:
        """Carry out `change` in every process; False when no upstream is called `name`.

        Raises `SteeringError` where it could not be done.
        """


@runtime_checkable
class ExplainingSource(Protocol):
    """A source that can also say why requests went where they went."""

    def explain(self, query: Mapping[str, str]) -> Explained:
        """The document of `/explain.json` for the parameters of its query.

        Raises `SteeringError` for parameters that are not known.
        """

    def ask_for(self, asking: Asking) -> None:
        """Have exchanges explained from now on, in every process.

        Raises `SteeringError` where that could not be done.
        """


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


def judge(stats: Stats) -> Verdict:
    """Say in a sentence how Atlas is, and in a few more what is not as it should be."""
    level, text, details = _judge_service(stats)
    reload = stats["last_reload"]
    if reload is not None and not reload["ok"]:
        refused = "configuration file was refused"
        if level == "good":
            level, text, details = "warn", f"The {refused}", [text]
        else:
            details = [f"the {refused}", *details]
    return Verdict(level=level, text=text, details=details)


def _judge_service(stats: Stats) -> tuple[str, str, list[str]]:
    """Level, text and details, without regard to what became of the last reload."""
    upstreams = stats["upstreams"]
    troubles = [item for item in upstreams if item["kind"] != "up"]
    details = [f"{item['name']}: {_in_words(item)}" for item in troubles[:_MOST_DETAILS]]
    if len(troubles) > _MOST_DETAILS:
        details.append(f"and {len(troubles) - _MOST_DETAILS} more")
    if stats["state"] == "draining":
        return "warn", "Draining: no new clients", details
    if not upstreams:
        return "bad", "No upstreams are configured", ["every request is answered 503"]
    if not stats["ready"]:
        return "bad", f"Not ready: {stats['ready_reason']}", details
    if not troubles:
        text = f"All {len(upstreams)} upstreams are up"
        return "good", "The upstream is up" if len(upstreams) == 1 else text, []
    number = len(upstreams) - len(troubles)
    text = f"{number} of {len(upstreams)} upstreams {'is' if number == 1 else 'are'} up"
    return "warn", text, details


def _in_words(upstream: UpstreamStats) -> str:
    return ", ".join(part for part in (upstream["state"], upstream["why"]) if part)


def mark_of(kind: str) -> str:
    """The letter of a state in `Strip.marks`."""
    if kind in {"drain", "maintenance"}:
        return "o"
    return "u" if kind in {"up", "half-open"} else "d"
