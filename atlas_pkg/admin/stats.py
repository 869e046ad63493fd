"""The document behind `/stats.json`: its schema, and how it is made of a report.

The page, `/status.txt`, the tests and whoever reads `/stats.json` rely on these names: add to them,
do not change what one means. Instants are seconds since the epoch, since they leave the process;
durations are seconds, sizes are bytes, and every other unit is part of the name. A latency is None
where nothing was measured.

`judge` says all of it in a sentence.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from atlas_pkg.control.report import DRAINING, SERVING, ProcessReport
from atlas_pkg.observing.event_log import ErrorLine, Event, Events
from atlas_pkg.observing.metrics import FAILURES, REQUESTS, RETRIES, Snapshot
from atlas_pkg.observing.process_stats import Reload, UpstreamNow, describe_state, is_usable, key_of
from atlas_pkg.observing.rates import Latency, Rates, Sample, Strip

# More than these, and the summary is no longer one.
_MOST_DETAILS = 4

_NO_ANSWERS = dict.fromkeys(("2xx", "3xx", "4xx", "5xx"), 0)


@dataclass(frozen=True, slots=True)
class About:
    """What stays as it is until the program ends."""

    mode: str
    listen: list[str]
    config_path: str
    processes: int  # that serve


class Totals(Sample):
    """The present numbers, with what they are measured against."""

    max_connections: int  # of all processes together
    requests: int  # since the start


class UpstreamStats(UpstreamNow, Latency):
    """One upstream, as the page has it in a row."""

    since: float | None
    share_percent: float  # of the requests of the last minute
    rate: float
    total: int
    classes: dict[str, int]  # "2xx" to "5xx"; others where there were any
    failures: dict[str, int]  # by reason: connect, reset, timeout and others
    retries: int
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


def build_stats(
    about: About,
    report: ProcessReport,
    rates: Rates,
    events: Events,
    *,
    readiness: tuple[bool, str],
    uptime: float,
) -> Stats:
    """Make the document of what all processes have reported, as one."""
    requests = report["counted"][REQUESTS.name].values()
    totals = Totals(
        **rates.present(),
        max_connections=report["connections_limit"],
        requests=sum(int(sum(classes.values())) for classes in requests),
    )
    totals["connections"], totals["queue"] = report["connections"], report["queue"]
    is_ready, reason = readiness
    return Stats(
        version=report["version"],
        time=time.time(),
        pids=report["pids"],
        uptime=uptime,
        mode=about.mode,
        listen=about.listen,
        config_path=about.config_path,
        generation=report["generation"],
        last_reload=report["last_reload"],
        state=DRAINING if report["state"] == DRAINING else SERVING,
        ready=is_ready,
        ready_reason=reason,
        totals=totals,
        history=rates.samples(),
        upstreams=[
            UpstreamStats(
                **item,
                **rates.of_upstream(key_of(item)),
                **_count(key_of(item), report["counted"]),
                since=events.since(item["name"]),
            )
            for item in report["upstreams"]
        ],
        events=events.lines(),
        errors=report["errors"],
    )


class _Counted(TypedDict):
    total: int
    classes: dict[str, int]
    failures: dict[str, int]
    retries: int


def _count(key: str, counted: Snapshot) -> _Counted:
    """What was counted for one upstream."""
    classes, failures, retries = (
        {label: int(number) for label, number in counted[row.name].get(key, {}).items()}
        for row in (REQUESTS, FAILURES, RETRIES)
    )
    return _Counted(
        total=sum(classes.values()),
        classes=_NO_ANSWERS | classes,
        failures=dict(sorted(failures.items())),
        retries=sum(retries.values()),
    )


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
    details = [f"{item['name']}: {describe_state(item)}" for item in troubles[:_MOST_DETAILS]]
    if len(troubles) > _MOST_DETAILS:
        details.append(f"and {len(troubles) - _MOST_DETAILS} more")
    if stats["state"] == "draining":
        return "warn", "Draining: no new clients", details
    if not upstreams:
        return "bad", "No upstreams are configured", ["every request is answered 503"]
    if not stats["ready"]:
        return "bad", f"Not ready: {stats['ready_reason']}", details
    served = {item["group"] for item in upstreams if is_usable(item)}
    down = sorted({item["group"] for item in upstreams} - served)
    if served and down:
        return "bad", f"No upstream of group {', '.join(down)} is usable", details
    if not troubles:
        text = f"All {len(upstreams)} upstreams are up"
        return "good", "The upstream is up" if len(upstreams) == 1 else text, []
    number = len(upstreams) - len(troubles)
    text = f"{number} of {len(upstreams)} upstreams {'is' if number == 1 else 'are'} up"
    return "warn", text, details
