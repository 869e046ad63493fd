"""The one place that decides whether another upstream is tried.

A request may be sent again only if nothing can have happened twice: it never left (connecting
failed), or its method is idempotent, its body can be sent again whole, and the client has heard
nothing yet (RFC 9110 §9.2.2). Retries go to a *different* upstream each time, at most
`routing.retries` of them, and together they stay within a budget, so that a failing upstream does
not make its neighbours fail under doubled load.
"""

from __future__ import annotations

from atlas_pkg.balancing.lease import Lease, Outcome
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.errors import NoUpstream, Stage, UpstreamError
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.upload import Upload

# RFC 9110 §9.2.2. Sending one of these twice has the effect of sending it once.
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))


class Retries:
    """The further attempts of one exchange."""

    def __init__(self, exchange: Exchange, upload: Upload | None) -> None:
        self._exchange = exchange
        self._upload = upload
        self._left = exchange.generation.config.routing.retries
        self._tried: list[Upstream] = []
        self._is_counted = False

    def next_lease(self, lease: Lease, error: UpstreamError) -> Lease:
        """Give `lease` back after `error` and return one of another upstream.

        Raises `error` where there is to be no retry.
        """
        error.upstream = lease.upstream.name
        # A connection that had gone stale says nothing about its upstream, nor does our own want.
        is_verdict = not (error.is_stale or error.is_own_fault)
        lease.release(Outcome.FAILURE if is_verdict else Outcome.NONE)
        self.close()
        self._tried.append(lease.upstream)
        exchange = self._exchange
        balancer = exchange.generation.balancer
        if not self._may_repeat(error):
            raise error
        if error.stage is not Stage.CONNECT:  # outside the budget: nothing was sent
            if not balancer.begin_retry():
                raise error
            self._is_counted = True
        self._left -= 1
        try:
            return exchange.lease_now(self._tried) or exchange.queue(self._tried)
        except NoUpstream:
            raise error from None

    def close(self) -> None:
        """The attempt is over: give its place in the budget back."""
        if self._is_counted:
            self._is_counted = False
            self._exchange.generation.balancer.end_retry()

    def _may_repeat(self, error: UpstreamError) -> bool:
        if self._left == 0 or self._exchange.has_sent:
            return False
        if self._upload is not None and not self._upload.can_replay:
            return False
        return error.stage is Stage.CONNECT or self._exchange.request.method in IDEMPOTENT
