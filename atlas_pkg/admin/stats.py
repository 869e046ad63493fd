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
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

from atlas_pkg.control.board import Change
from atlas_pkg.observing.event_log import ErrorLine, Event
from atlas_pkg.observing.process_stats import Reload
from atlas_pkg.observing.rates import Sample, Strip
from atlas_pkg.observing.timeline import Explained
from atlas_pkg.observing.tracer import Asking

# More than these, and the summary is no longer one.
_MOST_DETAILS = 4


class Totals(Sample):
    """The present numbers, with what they are measured against."""

    max_connections: int  # of all processes together
    requests: int  # since the start


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

        Raises `CommandError` where it could not be done.
        """


@runtime_checkable
class ExplainingSource(Protocol):
    """A source that can also say why requests went where they went."""

    def explain(self, query: Mapping[str, str]) -> Explained:
        """The document of `/explain.json` for the parameters of its query.

        Raises `CommandError` for parameters that are not known.
        """

    def ask_for(self, asking: Asking) -> None:
        """Have exchanges explained from now on, in every process.

        Raises `CommandError` where that could not be done.
        """


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
