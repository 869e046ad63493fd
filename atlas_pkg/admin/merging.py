"""From the parts of several processes to one picture.

Pure: parts in, values of the status document out. What each process has for itself is added up,
what all have in common is taken once. Processes judge upstreams by themselves and may disagree
for a while: then the worst opinion is shown, with how many share it.

Not done here: asking for parts (`overview.py`), and rates (`observing/minute.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import atlas_pkg
from atlas_pkg.control.report import DRAINING, SERVING, Part, is_usable
from atlas_pkg.observing.process_stats import STATES, Gauges, Reload, UpstreamNow, merge_gauges


def merge_upstreams(parts: Sequence[Part]) -> list[UpstreamNow]:
    """Describe every upstream once, in the order of the configuration."""
    found: dict[tuple[str, str, int], list[UpstreamNow]] = {}
    for part in parts:
        for item in part["upstreams"]:
            found.setdefault((item["name"], item["address"], item["port"]), []).append(item)
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


def judge_readiness(parts: Sequence[Part]) -> tuple[bool, str]:
    """Can requests be answered now, and in a few words why (not)?

    Clients come to any of the processes, so each must have an upstream for them.
    """
    states = {part["state"] for part in parts}
    if not parts:
        return False, "no process says how it is"
    if states != {SERVING}:
        return False, "draining" if DRAINING in states else "starting"
    usable = [sum(map(is_usable, part["upstreams"])) for part in parts]
    if not parts[0]["upstreams"]:
        return False, "no upstreams are configured"
    if not min(usable):
        return False, "no upstream is usable"
    return True, f"{min(usable)} of {len(parts[0]['upstreams'])} upstreams usable"


def merge_all_gauges(parts: Sequence[Part]) -> Gauges:
    """As `merge_gauges`; without any part, nothing is known."""
    if parts:
        return merge_gauges([part["gauges"] for part in parts])
    return Gauges(
        version=atlas_pkg.__version__,
        connections=0,
        connections_limit=0,
        queue=0,
        upstreams={},
        reloads={},
        last_reload_success=False,
        process={},
    )


def last_reload(parts: Sequence[Part]) -> Reload | None:
    """The last reload of all processes; one that was refused before one that was not."""
    reloads = [reload for part in parts if (reload := part["last_reload"]) is not None]
    generation = max((part["generation"] for part in parts), default=0)
    latest = max(reloads, key=lambda reload: (not reload["ok"], reload["time"]), default=None)
    return None if latest is None else Reload(**{**latest, "generation": generation})
