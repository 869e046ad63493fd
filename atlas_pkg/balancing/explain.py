"""Why an upstream was chosen, and why others were not: written down right after the choice.

Choosing is quick because it leaves no trace. Where somebody asks, what was chosen is explained at
once, under the same lock and before it is counted, so what is told is what counted: the strategy
scores a few of those that it had to choose from, and of all others it is said what they lack.

With a thousand upstreams an explanation names a few of each kind and counts the rest by reason. A
reason that comes first hides those behind it: who is in maintenance may be down as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from atlas_pkg.balancing.breaker import BreakerState
from atlas_pkg.balancing.lease import Affinity
from atlas_pkg.balancing.strategies import Strategy
from atlas_pkg.balancing.upstream import UNPROBED, AdminState, Upstream
from atlas_pkg.choice import Candidate, Choice

# Candidates by name.
MOST_NAMED = 10

AVAILABLE = "available"
SKIPPED = "slow start: skipped this time"


class Scene(NamedTuple):
    """What was before the balancer when it chose."""

    name: str  # the strategy's
    strategy: Strategy
    upstreams: Sequence[Upstream]  # all that the configuration lists
    available: Collection[Upstream]
    affinity: Affinity
    tried: Collection[Upstream]
    is_kept: bool  # the client's own upstream decides
    now: float


def explain(
    scene: Scene, chosen: Upstream | None, skipped: Sequence[Upstream], *, waits: bool
) -> Choice:
    """Say why `chosen` was, or why nobody could be and the request `waits` or fails.

    `skipped` are those that slow start has passed over. Caller holds the balancer's lock.
    """
    reasons = _reasons(scene)
    left_out = [upstream for upstream in reasons if upstream is not chosen]
    left_out.sort(key=lambda upstream: upstream is not scene.affinity.sticky)  # the one missed most
    free = [] if chosen is None else [chosen]
    free += skipped
    free += [one for one in scene.available if one not in reasons and one not in free]
    # Half of the room for either kind, and what the other kind leaves of its half.
    named_out = left_out[: max(MOST_NAMED - len(free), MOST_NAMED // 2)]
    named = free[: MOST_NAMED - len(named_out)]
    others = Counter(reasons[upstream][0] for upstream in left_out[len(named_out) :])
    others[AVAILABLE] = len(free) - len(named)
    candidates = [
        Candidate(one.name, _score(scene, one, chosen, reasons), SKIPPED if one in skipped else "")
        for one in named
    ]
    candidates += [Candidate(one.name, "", reasons[one][1]) for one in named_out]
    return Choice(
        strategy=scene.name,
        cause=_cause(scene, chosen, has_skipped=bool(skipped)),
        candidates=tuple(candidates),
        chosen=chosen.name if chosen is not None else "",
        waits=_why_waiting(scene) if waits else "",
        others=tuple((kind, count) for kind, count in others.most_common() if count),
    )


def _score(
    scene: Scene,
    upstream: Upstream,
    chosen: Upstream | None,
    reasons: dict[Upstream, tuple[str, str]],
) -> str:
    if not scene.is_kept and upstream in reasons:
        return "backup, and all others have been tried"  # the strategy does not know it
    if not scene.is_kept:
        return scene.strategy.score(upstream) + _remarks(upstream, scene.now)
    if upstream is not chosen:
        return ""  # the strategy was not asked
    if upstream in reasons:
        return f"its cookie names it; new clients stay away: {reasons[upstream][1]}"
    return "its cookie names it"


def _cause(scene: Scene, chosen: Upstream | None, *, has_skipped: bool) -> str:
    if scene.is_kept:
        return "sticky cookie"
    if chosen is None:
        return "nobody could be chosen"
    if scene.tried:
        return "strategy, for a retry"
    if has_skipped:
        return "strategy, after slow start"
    if scene.affinity.sticky is not None:
        return "strategy, since the upstream of the cookie cannot be used"
    return "strategy"


def _why_waiting(scene: Scene) -> str:
    if scene.is_kept:
        return "the upstream of its cookie is full: it waits in the queue"
    return "all that could be used are full: it waits in the queue"


def _reasons(scene: Scene) -> dict[Upstream, tuple[str, str]]:
    """Say of all who could not be chosen why: the kind of reason, and the reason itself."""
    free, now = set(scene.available), scene.now
    ordinary = [one for one in scene.upstreams if not one.is_backup and one.takes_new_clients(now)]
    backup = ""
    if ordinary:
        word = "available" if any(one.has_room for one in ordinary) else "merely full"
        backup = f"backup, and an ordinary one is {word}"
    reasons = {one: _reason(one, backup, now) for one in scene.upstreams if one not in free}
    tried = (one for one in scene.available if one in scene.tried)
    reasons.update(dict.fromkeys(tried, ("tried already", "tried already")))
    return reasons


def _reason(upstream: Upstream, backup: str, now: float) -> tuple[str, str]:
    """Say why one is not available; `backup` is the reason for backups, if there is one."""
    breaker = upstream.breaker
    if upstream.admin_state is not AdminState.READY:
        return upstream.admin_state.value, upstream.admin_state.value
    if not upstream.is_up:
        reason = upstream.health_reason
        return (reason, reason) if reason == UNPROBED else ("down", f"down: {reason}")
    if upstream.weight == 0:
        return "weight 0", "weight 0"
    if breaker is not None and not breaker.may_try(now):
        if breaker.state(now) is BreakerState.HALF_OPEN:
            return "circuit breaker half-open", "circuit breaker half-open, its trials under way"
        left = (breaker.reopens_at or now) - now
        return "circuit breaker open", f"circuit breaker open for {left:.1f} s"
    if upstream.is_backup and backup:
        return "backup", backup
    return "full", f"full: {upstream.in_flight} of {upstream.max_connections} in flight"


def _remarks(upstream: Upstream, now: float) -> str:
    """What else is to be known of one that can be chosen."""
    remarks = ""
    if not upstream.endpoints:
        remarks += "; host name not resolved"
    if upstream.breaker is not None and upstream.breaker.state(now) is BreakerState.HALF_OPEN:
        remarks += "; circuit breaker half-open: a trial"
    if upstream.recovered_at is not None:
        remarks += "; slow start"
    return remarks
