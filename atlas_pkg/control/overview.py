"""How Atlas is, as one picture: of one process or of several.

Once a second the parts of all processes are collected. Their counters and states feed the last
minute's numbers, and what became of reloads and processes is noted there too. Who asks in between
gets figures collected anew, and rates as of the last second.

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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import atlas_pkg
from atlas_pkg.control import merging
from atlas_pkg.control.overrides import OverridesHolder
from atlas_pkg.control.report import DRAINING, SERVING, Part
from atlas_pkg.metrics import Snapshot, merge
from atlas_pkg.prometheus import render_prometheus
from atlas_pkg.serving.explaining import merge_timelines, select
from atlas_pkg.serving.journal import Journal, merge_errors
from atlas_pkg.serving.minute import Minute
from atlas_pkg.serving.status import Stats, Totals
from atlas_pkg.serving.steering import Asking, Change, SteeringError
from atlas_pkg.serving.timeline import Explained

log = logging.getLogger("atlas.overview")

INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class About:
    """What stays as it is until the program ends."""

    mode: str
    listen: list[str]
    config_path: str
    processes: int  # that serve


class Collect(Protocol):
    """Asks all processes."""

    def __call__(self, *, explains: bool) -> Mapping[int, Part]:
        """Return the parts of those that answer, by place; with the last exchanges or without."""


class Overview:
    """Collects, merges and remembers; an `ExplainingSource` too. Thread-safe."""

    def __init__(self, about: About, collect: Collect, overrides: OverridesHolder) -> None:
        self._about = about
        self._ask = collect
        self._overrides = overrides
        self._started = time.time()
        self._journal = Journal()
        self._minute = Minute(self._journal)
        self._stopping = threading.Event()
        # Guards what follows: what each place said last, and what those counted who are gone.
        self._lock = threading.Lock()
        self._last: dict[int, Part] = {}
        self._gone = Snapshot(upstreams={})
        # The ticking thread's own: who answered last, and how many reloads there were.
        self._pids: set[int] = set()
        self._reloads = {"success": 0, "failure": 0}

    def start(self) -> None:
        """Begin to look, once a second."""
        threading.Thread(target=self._run, name="overview", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def metrics(self) -> str:
        """Everything that is counted, in the text format of Prometheus."""
        parts, snapshot = self._collect()
        return render_prometheus(snapshot, merging.merge_all_gauges(parts))

    def readiness(self) -> tuple[bool, str]:
        """Can requests be answered now, and in a few words why (not)?"""
        parts, _ = self._collect()
        return merging.judge_readiness(parts)

    def steer(self, name: str, change: Change) -> bool:
        """Carry out `change` in every process; False when no upstream is called `name`."""
        parts, _ = self._collect()
        found = [item for item in merging.merge_upstreams(parts) if item["name"] == name]
        if not parts:
            raise SteeringError(503, "no process says how it is")
        if not found:
            return False
        for item in found:  # two for a moment, while a reload gives the name another address
            self._overrides.change((name, item["address"], item["port"]), change)
        self._journal.note("steering", f"{change}, by an administrator", upstream=name)
        self._have_all_follow()
        return True

    def ask_for(self, asking: Asking) -> None:
        """Have exchanges explained from now on, in every process."""
        self._overrides.ask(asking)
        self._journal.note("steering", f"explain {asking}, by an administrator")
        self._have_all_follow()

    def explain(self, query: Mapping[str, str]) -> Explained:
        """The document of `/explain.json` for the parameters of its query."""
        parts = self._ask(explains=True).values()
        wanted = [part["wanted"] for part in parts]
        timelines = merge_timelines(part["timelines"] for part in parts)
        return Explained(
            time=time.time(),
            one_in=max((item["one_in"] for item in wanted), default=0),
            next_from=max((item["next_from"] for item in wanted), default=""),
            exchanges=select(timelines, query),
        )

    def _have_all_follow(self) -> None:
        """Have all processes hear of the overrides; raises `SteeringError` if not all do."""
        parts, _ = self._collect()
        processes = self._about.processes
        if missing := processes - len(parts):
            reason = f"{missing} of {processes} processes do not answer; they will follow later"
            raise SteeringError(503, reason)

    def stats(self) -> Stats:
        """The document of `/stats.json`, made for the caller, who may change it."""
        parts, snapshot = self._collect()
        is_ready, reason = merging.judge_readiness(parts)
        gauges = merging.merge_all_gauges(parts)
        present = self._minute.present()
        present["connections"] = gauges["connections"]
        present["queue"] = gauges["queue"]
        totals = Totals(
            **present,
            max_connections=gauges["connections_limit"],
            requests=sum(
                sum(counts["requests"].values()) for counts in snapshot["upstreams"].values()
            ),
        )
        now = time.time()
        return Stats(
            version=atlas_pkg.__version__,
            time=now,
            pids=[part["pid"] for part in parts],
            uptime=now - self._started,
            mode=self._about.mode,
            listen=self._about.listen,
            config_path=self._about.config_path,
            generation=max((part["generation"] for part in parts), default=0),
            last_reload=merging.last_reload(parts),
            state=DRAINING if any(part["state"] == DRAINING for part in parts) else SERVING,
            ready=is_ready,
            ready_reason=reason,
            totals=totals,
            history=self._minute.samples(),
            upstreams=self._minute.rows(merging.merge_upstreams(parts), snapshot),
            events=self._journal.events(),
            errors=merge_errors(error for part in parts for error in part["errors"]),
        )

    def _collect(self) -> tuple[list[Part], Snapshot]:
        """Ask all processes; returns the parts that came, and the sum of everything counted."""
        found = self._ask(explains=False)
        with self._lock:
            for place, part in found.items():
                before = self._last.get(place)
                if before is not None and before["pid"] != part["pid"]:
                    self._gone = merge([self._gone, before["snapshot"]])
                self._last[place] = part
            snapshots = [self._gone, *(part["snapshot"] for part in self._last.values())]
        return [part for _, part in sorted(found.items())], merge(snapshots)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + INTERVAL, time.monotonic())
            try:
                self._tick()
            except Exception:
                # A background thread: whatever is wrong with this second, others will follow.
                log.exception("the overview missed a second")

    def _tick(self) -> None:
        parts, snapshot = self._collect()
        self._note_processes({part["pid"] for part in parts})
        if not parts:
            return
        self._note_reloads(parts)
        gauges = merging.merge_all_gauges(parts)
        self._minute.tick(
            time.monotonic(),
            snapshot,
            merging.merge_upstreams(parts),
            connections=gauges["connections"],
            queue=gauges["queue"],
        )

    def _note_processes(self, pids: set[int]) -> None:
        """Note who has come and who has fallen silent, but for the start."""
        if self._pids:
            for pid in sorted(pids - self._pids):
                self._journal.note("process", f"process {pid} serves")
            for pid in sorted(self._pids - pids):
                self._journal.note("process", f"process {pid} does not answer")
        self._pids = pids

    def _note_reloads(self, parts: list[Part]) -> None:
        """Note what came of reloads. Each process reads the same file, so the most count."""
        counts = merging.merge_all_gauges(parts)["reloads"]
        last = merging.last_reload(parts)
        if last is not None and counts["success"] > self._reloads["success"]:
            text = f"configuration taken over, generation {last['generation']}"
            self._journal.note("reload", text)
        if last is not None and counts["failure"] > self._reloads["failure"]:
            self._journal.note("refused", f"configuration refused: {last['error']}")
        self._reloads = {name: max(count, self._reloads[name]) for name, count in counts.items()}
