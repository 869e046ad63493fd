"""The one place that decides whether a request that failed is tried again.

A connection that was reused, and ended before any byte of an answer, had merely gone stale: that
is no verdict on its upstream, and the request goes once more to the *same* one, over a fresh
connection, if its method is idempotent and nothing of its body has been taken from the client
(RFC 9110 §9.2.2, RFC 9112 §9.3.1).

Everything else is a retry. It goes to a *different* upstream, at most `routing.retries` times, and
only if doing it twice does no harm: the request never left (connecting failed), or its method is
idempotent, its body can be sent again whole, and the client has heard nothing yet. The retries of
requests that had been sent share a budget, so that a failing upstream does not make its neighbours
fail under doubled load.
"""

from __future__ import annotations

from atlas_pkg.errors import ClientGone, NoUpstream, UpstreamError
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.failures import find_failure, judge

# RFC 9110 §9.2.2. Sending one of these twice has the effect of sending it once.
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))


def lease_again(exchange: Exchange, error: UpstreamError) -> None:
    """Have `exchange` ready for another attempt after `error`; raises it where there is none.

    May wait for an upstream that is full. Raises `ClientGone`.
    """
    lease, record, balancer = exchange.lease, exchange.record, exchange.group.balancer
    assert lease is not None
    error.upstream = lease.upstream.label
    if error.is_stale and _may_go_again(exchange):
        _close_connection(exchange)
        exchange.wants_fresh = True
        return
    if record is not None:
        failure = (lease.upstream.name, find_failure(error).end.value)
        record.failures = (*record.failures, failure)
    exchange.let_go(judge(error))
    exchange.tried = (*exchange.tried, lease.upstream)
    if not _may_retry(exchange, error):
        raise error
    if error.was_asked:  # else it is outside the budget
        if not balancer.begin_retry():
            if record is not None:
                record.retry_refused = True
            raise error
        exchange.is_retry = True
    try:
        exchange.lease = balancer.lease(
            exchange.affinity,
            exchange.tried,
            exchange.choices,
            is_gone=exchange.is_client_gone,
        )
    except (NoUpstream, ClientGone) as nobody:
        raise (error if isinstance(nobody, NoUpstream) else nobody) from None
    exchange.note_attempt(exchange.lease.upstream)
    exchange.wants_fresh = exchange.is_deaf = exchange.has_heard = False
    if record is not None:
        record.retries += 1


def _close_connection(exchange: Exchange) -> None:
    if exchange.connection is not None:
        exchange.connection.stream.close()
        exchange.connection = None
    exchange.unsent = b""
    exchange.is_deaf = False  # the next one hears


def _may_go_again(exchange: Exchange) -> bool:
    """Can nothing have happened twice if the request goes once more to the same upstream?"""
    body = exchange.request_body
    is_untouched = body is None or not body.is_touched
    return is_untouched and exchange.request.method in IDEMPOTENT


def _may_retry(exchange: Exchange, error: UpstreamError) -> bool:
    if len(exchange.tried) > exchange.group.retries or exchange.has_sent:
        return False
    body = exchange.request_body
    if body is not None and body.is_touched and exchange.replay is None:
        return False
    return not error.was_asked or exchange.request.method in IDEMPOTENT
