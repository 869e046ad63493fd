"""How Atlas is, as one picture: of one process or of several.

Once a second the reports of all processes are collected. Their counters and states feed the last
minute's rates, and what became of reloads and processes is noted there too. Who asks in between
gets figures collected anew, and rates as of the last second.

`merge_reports` makes one report of several: what each process has for itself is added up, what all
have in common is taken once. Processes judge upstreams by themselves and may disagree for a while:
then the worst opinion is shown, with how many share it.

A counter that shrinks looks like a restart to whoever reads it, so nothing counted is taken
back: what a process said last stays in the sums after its death, and while it does not answer. What
it counted after that is lost with it, a second's worth at most.

What an administrator says becomes an override; then all processes are asked how they are, and told
the overrides with it. One that does not answer will hear later, and the administrator is told so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import atlas_pkg
from atlas_pkg.admin.commands import CommandError, select
from atlas_pkg.admin.stats import About, Stats, build_stats
from atlas_pkg.control.overrides import Change, OverridesHolder
from atlas_pkg.control.report import DRAINING, SERVING, STARTING, ProcessReport
from atlas_pkg.observing.event_log import Events, merge_errors
from atlas_pkg.observing.metrics import Departures, Snapshot, fold, merge
from atlas_pkg.observing.process_stats import STATES, Reload, UpstreamNow, is_usable, key_of
from atlas_pkg.observing.prometheus import render_prometheus
from atlas_pkg.observing.rates import Rates
from atlas_pkg.observing.timeline import Explained, Wanted
from atlas_pkg.observing.tracer import Asking, merge_timelines

log = logging.getLogger("atlas.admin")

INTERVAL = 1.0


class Collect(Protocol):
    """Asks all processes."""

    def __call__(self, *, explains: bool) -> Mapping[int, ProcessReport]:
        """Return the reports of those that answer, by place; with the last exchanges or without."""


class Aggregate:
    """Collects, merges and remembers. Thread-safe."""

    def __init__(self, about: About, collect: Collect, overrides: OverridesHolder) -> None:
        self._about = about
        self._ask = collect
        self._overrides = overrides
        self._started = time.time()
        self._events = Events()
        self._rates = Rates()
        self._stopping = threading.Event()
        # Guards what follows: what each place said last, and what those counted who are gone.
        self._lock = threading.Lock()
        self._last: dict[int, ProcessReport] = {}
        self._gone: Snapshot = merge([])
        self._departures = Departures()  # of upstreams that only dead processes have known
        # The ticking thread's own: who answered last, and how many reloads there were.
        self._pids: set[int] = set()
        self._reloads = {"success": 0, "failure": 0}

    def start(self) -> None:
        """Begin to look, once a second."""
        threading.Thread(target=self._run, name="aggregate", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def metrics(self) -> str:
        """Everything that is counted, in the text format of Prometheus."""
        _, whole = self._collect()
        return render_prometheus(whole["counted"], whole)

    def readiness(self) -> tuple[bool, str]:
        """Can requests be answered now, and in a few words why (not)?"""
        return judge_readiness(self._collect()[0], self._about.mode)

    def stats(self) -> Stats:
        """The document of `/stats.json`, made for the caller, who may change it."""
        reports, whole = self._collect()
        return build_stats(
            self._about,
            whole,
            self._rates,
            self._events,
            readiness=judge_readiness(reports, self._about.mode),
            uptime=time.time() - self._started,
        )

    def explain(self, query: Mapping[str, str]) -> Explained:
        """The document of `/explain.json` for the parameters of its query.

        Raises `CommandError` for parameters that are not known.
        """
        report = merge_reports(list(self._ask(explains=True).values()))
        exchanges = select(report["timelines"], query)
        return Explained(**report["wanted"], time=time.time(), exchanges=exchanges)

    def steer(self, name: str, change: Change) -> bool:
        """Carry out `change` in every process; False when no upstream is called `name`.

        Raises `CommandError` where it could not be done.
        """
        reports, whole = self._collect()
        if not reports:
            raise CommandError(503, "no process says how it is")
        found = [item for item in whole["upstreams"] if item["name"] == name]
        if not found:
            return False
        for item in found:  # two for a moment, while a reload gives the name another address
            self._overrides.change((name, item["address"], item["port"], item["group"]), change)
        self._events.note("steering", f"{change}, by an administrator", upstream=name)
        self._have_all_follow()
        return True

    def ask_for(self, asking: Asking) -> None:
        """Have exchanges explained from now on, in every process.

        Raises `CommandError` where that could not be done.
        """
        self._overrides.ask(asking)
        self._events.note("steering", f"explain {asking}, by an administrator")
        self._have_all_follow()

    def _have_all_follow(self) -> None:
        """Have all processes hear of the overrides; raises `CommandError` if not all do."""
        processes = self._about.processes
        if missing := processes - len(self._ask(explains=False)):
            reason = f"{missing} of {processes} processes do not answer; they will follow later"
            raise CommandError(503, reason)

    def _collect(self) -> tuple[list[ProcessReport], ProcessReport]:
        """Ask all processes; returns their reports, and one of all.

        In the latter is also what those have counted who do not answer, or never will again.
        """
        found = dict(sorted(self._ask(explains=False).items()))
        reports = list(found.values())
        with self._lock:
            for place, report in found.items():
                before = self._last.get(place)
                if before is not None and before["pids"] != report["pids"]:
                    self._gone = merge([self._gone, before["counted"]])
                self._last[place] = report
            if reports:
                self._retire({key_of(item) for report in reports for item in report["upstreams"]})
            counted = [self._gone, *(report["counted"] for report in self._last.values())]
        whole = merge_reports(reports)
        whole["counted"] = merge(counted)
        return reports, whole

    def _retire(self, present: set[str]) -> None:
        """As `Counters.retire`, for what dead processes have counted. Caller holds the lock."""
        counted = {name for upstreams in self._gone.values() for name in upstreams}
        if gone := self._departures.find_gone(counted, present, time.monotonic()):
            self._gone = merge([self._gone])  # a copy: others may be reading the old one
            for upstreams in self._gone.values():
                fold(upstreams, gone)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + INTERVAL, time.monotonic())
            try:
                self._tick()
            except Exception:
                # A background thread: whatever is wrong with this second, others will follow.
                log.exception("the picture of all processes missed a second")

    def _tick(self) -> None:
        _, report = self._collect()
        self._note_processes(set(report["pids"]))
        if not report["pids"]:
            return
        self._note_reloads(report)
        self._events.watch(report["upstreams"])
        self._rates.feed(time.monotonic(), report["counted"], report)

    def _note_processes(self, pids: set[int]) -> None:
        """Note who has come and who has fallen silent, but for the start."""
        if self._pids:
            for pid in sorted(pids - self._pids):
                self._events.note("process", f"process {pid} serves")
            for pid in sorted(self._pids - pids):
                self._events.note("process", f"process {pid} does not answer")
        self._pids = pids

    def _note_reloads(self, report: ProcessReport) -> None:
        """Note what came of reloads."""
        counts, last = report["reloads"], report["last_reload"]
        if last is not None and counts["success"] > self._reloads["success"]:
            text = f"configuration taken over, generation {last['generation']}"
            self._events.note("reload", text)
        if last is not None and counts["failure"] > self._reloads["failure"]:
            self._events.note("refused", f"configuration refused: {last['error']}")
        self._reloads = {
            name: max(count, counts.get(name, 0)) for name, count in self._reloads.items()
        }


def merge_reports(reports: Sequence[ProcessReport]) -> ProcessReport:
    """Describe several processes that serve the same configuration as one; of none, nothing."""
    states = {report["state"] for report in reports}
    return ProcessReport(
        version=atlas_pkg.__version__,
        pids=[pid for report in reports for pid in report["pids"]],
        state=next((state for state in (DRAINING, STARTING) if state in states), SERVING),
        generation=max((report["generation"] for report in reports), default=0),
        log_level=reports[0]["log_level"] if reports else "info",
        connections=sum(report["connections"] for report in reports),
        connections_limit=sum(report["connections_limit"] for report in reports),
        certificates=_merge_certificates(reports),
        queue=sum(report["queue"] for report in reports),
        for_threads=sum(report["for_threads"] for report in reports),
        upstreams=_merge_upstreams(reports),
        # Each of them reads the same file. One that replaced another has seen fewer.
        reloads={
            result: max((report["reloads"][result] for report in reports), default=0)
            for result in ("success", "failure")
        },
        last_reload=_last_reload(reports),
        process=_merge_processes([report["process"] for report in reports]),
        counted=merge(report["counted"] for report in reports),
        errors=merge_errors(error for report in reports for error in report["errors"]),
        wanted=Wanted(
            one_in=max((report["wanted"]["one_in"] for report in reports), default=0),
            next_from=max((report["wanted"]["next_from"] for report in reports), default=""),
        ),
        timelines=merge_timelines(report["timelines"] for report in reports),
    )


def _merge_certificates(reports: Sequence[ProcessReport]) -> dict[str, float]:
    """When each expires, in the process that has fallen behind most."""
    expiries: dict[str, float] = {}
    for report in reports:
        for name, instant in report["certificates"].items():
            expiries[name] = min(instant, expiries.get(name, instant))
    return expiries


def judge_readiness(reports: Sequence[ProcessReport], mode: str = "http") -> tuple[bool, str]:
    """Can requests be answered now, and in a few words why (not)?

    Clients come to any of the processes, so each must have a usable upstream, unless it serves
    files.
    """
    states = {report["state"] for report in reports}
    if not reports:
        return False, "no process says how it is"
    if states != {SERVING}:
        return False, "draining" if DRAINING in states else "starting"
    if waiting := sum(report["for_threads"] for report in reports):
        return False, f"overloaded: {waiting} requests wait for a thread (listen.max_threads)"
    if mode == "static":
        return True, ""
    usable = [sum(map(is_usable, report["upstreams"])) for report in reports]
    if not reports[0]["upstreams"]:
        return False, "no upstreams are configured"
    if not min(usable):
        return False, "no upstream is usable"
    return True, f"{min(usable)} of {len(reports[0]['upstreams'])} upstreams usable"


def _merge_upstreams(reports: Sequence[ProcessReport]) -> list[UpstreamNow]:
    """Describe every upstream once, in the order of the configuration."""
    found: dict[tuple[object, ...], list[UpstreamNow]] = {}
    for report in reports:
        for item in report["upstreams"]:
            identity = (item["name"], item["address"], item["port"], item["group"])
            found.setdefault(identity, []).append(item)
    return [_join(items) for items in found.values()]


def _join(items: list[UpstreamNow]) -> UpstreamNow:
    kinds = [item["kind"] for item in items]
    joined = min(items, key=lambda item: STATES.index(item["kind"])).copy()
    if len(set(kinds)) > 1:
        joined["state"] += f" in {kinds.count(joined['kind'])} of {len(items)} processes"
    joined["in_flight"] = sum(item["in_flight"] for item in items)
    joined["max_connections"] = sum(item["max_connections"] for item in items)
    joined["idle"] = sum(item["idle"] for item in items)
    return joined


def _merge_processes(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Add up processes. Descriptors and their limit both, so that their ratio keeps its meaning."""
    joined: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            joined[key] = joined.get(key, 0) + value
    if starts := [part["start_time"] for part in parts if "start_time" in part]:
        joined["start_time"] = min(starts)
    return joined


def _last_reload(reports: Sequence[ProcessReport]) -> Reload | None:
    """The last reload of all processes; one that was refused before one that was not."""
    reloads = [reload for report in reports if (reload := report["last_reload"]) is not None]
    generation = max((report["generation"] for report in reports), default=0)
    latest = max(reloads, key=lambda reload: (not reload["ok"], reload["time"]), default=None)
    return None if latest is None else Reload(**{**latest, "generation": generation})
