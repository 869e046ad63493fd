"""Why an upstream is chosen, and why others are not: a look at the same state, just before.

Choosing is quick because it leaves no trace. Where somebody asks, all members are looked at first,
under the same lock, so what is told is what counted: the strategy ranks those available, and of all
others it is said what they lack. Then the choice is made as always, and the account closed.

With a thousand upstreams an account names a few of each kind and counts the rest by reason. A
reason that comes first hides those behind it: who is in maintenance may be down as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from atlas_pkg.balancing.breaker import BreakerState
from atlas_pkg.balancing.lease import Wish
from atlas_pkg.balancing.member import Member
from atlas_pkg.balancing.strategies import Strategy
from atlas_pkg.balancing.upstream import UNPROBED, AdminState, Upstream
from atlas_pkg.choice import Candidate, Choice

# Candidates by name. They are more than slow start may pass over for one request (`MOST_SPARED`),
# so the one that is chosen then is among those that were ranked.
MOST_NAMED = 10

AVAILABLE = "available"
SPARED = "slow start: spared this time"


class Explainer:
    """Explains the choices of one configuration. Caller holds the balancer's lock, throughout."""

    def __init__(self, name: str, members: Sequence[Member], strategy: Strategy) -> None:
        """`name` is the strategy's."""
        self.name = name
        self.member_of = {member.upstream: member for member in members}
        self._strategy = strategy

    def look(self, available: Collection[Member], wish: Wish, now: float) -> Account:
        """Look at all members before a choice among those `available`. Changes nothing."""
        ranked = islice(self._strategy.rank(wish.key, wish.excluded), MOST_NAMED)
        return Account(self, dict(ranked), available, wish, now)

    def reasons(self, available: Collection[Member], now: float) -> dict[Upstream, tuple[str, str]]:
        """Say of all who are not `available` why: the kind of reason, and the reason itself."""
        free, members = set(available), self.member_of.values()
        ordinary = [item for item in members if not item.is_backup and item.takes_new_clients(now)]
        backup = ""
        if ordinary:
            word = "available" if any(item.has_room for item in ordinary) else "merely full"
            backup = f"backup, and an ordinary one is {word}"
        return {item.upstream: _reason(item, backup, now) for item in members if item not in free}


class Account:
    """What was seen before one choice; `conclude` it with what was chosen."""

    def __init__(
        self,
        explainer: Explainer,
        ranked: Mapping[Upstream, str],
        available: Collection[Member],
        wish: Wish,
        now: float,
    ) -> None:
        """`ranked` are the first whom the strategy would choose, with what speaks for each."""
        member_of = explainer.member_of
        self._name, self._wish = explainer.name, wish
        self._ranked = {
            upstream: text + _remarks(member_of[upstream], now) for upstream, text in ranked.items()
        }
        self._recovering = {item for item in ranked if item.recovered_at is not None}
        self._left_out = explainer.reasons(available, now)
        tried = (item.upstream for item in available if item.upstream in wish.excluded)
        self._left_out.update(dict.fromkeys(tried, ("tried already", "tried already")))
        self._free = len(member_of) - len(self._left_out)
        self._keeps = wish.sticky in member_of and member_of[wish.sticky].is_alive(now)

    def conclude(self, chosen: Upstream | None, *, waits: bool) -> Choice:
        """Close the account: `chosen` was taken, or nobody, and then it `waits` or fails."""
        spared = self._spared_for(chosen)
        free = list(self._ranked)
        left_out = [item for item in self._left_out if item is not chosen]
        if chosen is not None and chosen not in free:
            free.insert(0, chosen)
        if (missed := self._wish.sticky) in left_out:  # of all these the one to be named
            left_out.sort(key=lambda item: item is not missed)
        # Half of the room for either kind, and what the other kind leaves of its half.
        shown = left_out[: max(MOST_NAMED - len(free), MOST_NAMED // 2)]
        _shorten(free, MOST_NAMED - len(shown), chosen)
        others = Counter(self._left_out[item][0] for item in left_out[len(shown) :])
        others[AVAILABLE] = self._free - sum(item not in self._left_out for item in free)
        candidates = [
            Candidate(item.name, self._score_of(item, chosen), SPARED if item in spared else "")
            for item in free
        ]
        candidates += [Candidate(item.name, "", self._left_out[item][1]) for item in shown]
        return Choice(
            strategy=self._name,
            cause=self._cause(chosen, is_delayed=bool(spared)),
            candidates=tuple(candidates),
            chosen=chosen.name if chosen is not None else "",
            waits=self._why_waiting() if waits else "",
            others=tuple((kind, count) for kind, count in others.most_common() if count),
        )

    def _spared_for(self, chosen: Upstream | None) -> set[Upstream]:
        """Those that slow start has passed over: recovering ones in front of the chosen one."""
        if self._keeps or chosen not in self._ranked:
            return set()
        order = list(self._ranked)
        return self._recovering.intersection(order[: order.index(chosen)])

    def _score_of(self, upstream: Upstream, chosen: Upstream | None) -> str:
        if upstream is not chosen or not self._keeps:
            return self._ranked.get(upstream, "")
        if chosen in self._left_out:
            return f"its cookie names it; new clients stay away: {self._left_out[chosen][1]}"
        return "its cookie names it"

    def _cause(self, chosen: Upstream | None, *, is_delayed: bool) -> str:
        if self._keeps:
            return "sticky cookie"
        if chosen is None:
            return "nobody could be chosen"
        if self._wish.excluded:
            return "strategy, for a retry"
        if is_delayed:
            return "strategy, after slow start"
        if self._wish.sticky is not None:
            return "strategy, since the upstream of the cookie cannot be used"
        return "strategy"

    def _why_waiting(self) -> str:
        if self._keeps:
            return "the upstream of its cookie is full: it waits in the queue"
        return "all that could be used are full: it waits in the queue"


def _shorten(upstreams: list[Upstream], most: int, kept: Upstream | None) -> None:
    """Drop the last ones but for `kept`, until no more than `most` are left."""
    while len(upstreams) > most:
        del upstreams[-2 if upstreams[-1] is kept else -1]


def _reason(member: Member, backup: str, now: float) -> tuple[str, str]:
    """Say why one is not available; `backup` is the reason for backups, if there is one."""
    upstream, breaker = member.upstream, member.upstream.breaker
    if upstream.admin_state is not AdminState.READY:
        return upstream.admin_state.value, upstream.admin_state.value
    if not upstream.is_up:
        reason = upstream.health_reason
        return (reason, reason) if reason == UNPROBED else ("down", f"down: {reason}")
    if member.weight == 0:
        return "weight 0", "weight 0"
    if breaker is not None and not breaker.may_try(now):
        if breaker.state(now) is BreakerState.HALF_OPEN:
            return "circuit breaker half-open", "circuit breaker half-open, its trials under way"
        left = (breaker.reopens_at or now) - now
        return "circuit breaker open", f"circuit breaker open for {left:.1f} s"
    if member.is_backup and backup:
        return "backup", backup
    return "full", f"full: {upstream.in_flight} of {member.max_connections} in flight"


def _remarks(member: Member, now: float) -> str:
    """What else is to be known of one that can be chosen."""
    upstream = member.upstream
    remarks = ""
    if not upstream.endpoints:
        remarks += "; host name not resolved"
    if upstream.breaker is not None and upstream.breaker.state(now) is BreakerState.HALF_OPEN:
        remarks += "; circuit breaker half-open: a trial"
    if upstream.recovered_at is not None:
        remarks += "; slow start"
    return remarks
