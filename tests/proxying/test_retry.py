"""The one place that decides on retries, row by row of the table of failures."""

from __future__ import annotations

import socket
import time

import pytest

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.lease import Affinity
from atlas_pkg.balancing.pool import UpstreamConnection
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import CircuitBreaker, Routing, Timeouts, UpstreamConfig
from atlas_pkg.errors import ClientGone, Side, Stage, UpstreamError
from atlas_pkg.http1.message import Request
from atlas_pkg.net.stream import Stream
from atlas_pkg.proxying.request_body import begin_body, take_first
from atlas_pkg.proxying.retry import IDEMPOTENT, lease_again
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.generation import Generation
from tests.serving.client_support import Ends, build_exchange, build_generation, build_request

SENT = (Stage.SEND, Stage.HEAD)
STAGES = (Stage.CONNECT, *SENT)

LENGTH, CHUNKED = "Content-Length: 4", "Transfer-Encoding: chunked"


def generation(*, retries: int = 1, upstreams: int = 3, limit: int = 0) -> Generation:
    return build_generation(
        upstreams=tuple(
            UpstreamConfig(name, "192.0.2.1", 80, max_connections=limit)
            for name in "abcdefgh"[:upstreams]
        ),
        routing=Routing(retries=retries),
        circuit_breaker=CircuitBreaker(failures=1),
        timeouts=Timeouts(queue=20.0),
    )


def begin(
    ends: Ends,
    method: str = "GET",
    *fields: str,
    body: bytes | None = None,
    under: Generation | None = None,
) -> Exchange:
    """An exchange that holds an upstream; `body` is what has come with its head, and was sent."""
    under = under or generation()
    request: Request = build_request(f"{method} / HTTP/1.1", *fields)
    client, _ = ends.make()
    exchange = build_exchange(client, ends.clients, under, request)
    exchange.lease = under.group.balancer.lease()
    if body is not None:
        client.stream.buffered = body
        begin_body(exchange)
        take_first(exchange)
    return exchange


def error(stage: Stage, *, is_stale: bool = False) -> UpstreamError:
    return UpstreamError(stage, "failed", is_stale=is_stale)


def open_breakers(balancer: Balancer) -> list[Upstream]:
    """The upstreams that are left out because they have failed."""
    return [up for up in balancer.upstreams if up.breaker and up.breaker.reopens_at is not None]


def is_retried(exchange: Exchange, failure: UpstreamError) -> bool:
    """Ask for another lease after `failure`; all counts are right afterwards."""
    balancer, lease = exchange.generation.group.balancer, exchange.lease
    assert lease is not None
    try:
        lease_again(exchange, failure)
    except UpstreamError:
        assert failure.upstream == lease.upstream.name
        assert exchange.lease is None
        assert balancer.in_flight == 0
        return False
    assert exchange.lease is not None
    assert exchange.lease.upstream is not lease.upstream
    assert lease.upstream.in_flight == 0
    assert balancer.in_flight == 1
    return True


# What failed: connecting


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_a_failed_connect_may_always_be_retried(method: str, ends: Ends) -> None:
    assert is_retried(begin(ends, method), error(Stage.CONNECT))


def test_an_untouched_body_may_go_to_another(ends: Ends) -> None:
    exchange = begin(ends, "POST", "Content-Length: 1000000", body=b"")

    assert is_retried(exchange, error(Stage.CONNECT))


# What failed: sending, or the head of the answer


@pytest.mark.parametrize("stage", SENT)
def test_what_was_sent_may_be_retried_when_it_is_idempotent(stage: Stage, ends: Ends) -> None:
    for method in sorted(IDEMPOTENT):
        assert is_retried(begin(ends, method.decode()), error(stage))
    for name in ("POST", "PATCH", "CONNECTED", "get"):
        assert not is_retried(begin(ends, name), error(stage))


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.HEAD])
@pytest.mark.parametrize(
    ("field", "arrived", "may_retry"),
    [
        (LENGTH, b"body", True),
        (LENGTH, b"bo", False),
        (CHUNKED, b"4\r\nbody\r\n0\r\n\r\n", True),
        (CHUNKED, b"4\r\nbody\r\n", False),
    ],
)
def test_a_body_must_be_whole_to_be_sent_again(
    field: str, arrived: bytes, may_retry: bool, stage: Stage, ends: Ends
) -> None:
    exchange = begin(ends, "PUT", field, body=arrived)

    assert is_retried(exchange, error(stage)) == may_retry

    if may_retry:
        assert take_first(exchange) == arrived  # the same once more


@pytest.mark.parametrize("stage", STAGES)
def test_by_default_nothing_is_retried(stage: Stage, ends: Ends) -> None:
    assert not is_retried(begin(ends, under=generation(retries=0)), error(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_retried_once_the_client_has_heard_something(stage: Stage, ends: Ends) -> None:
    exchange = begin(ends)
    exchange.has_sent = True

    assert not is_retried(exchange, error(stage))


# What failed: a connection that had gone stale


@pytest.mark.parametrize("stage", SENT)
@pytest.mark.parametrize("retries", [0, 1])
def test_after_a_stale_connection_the_same_upstream_is_asked_on_a_fresh_one(
    retries: int, stage: Stage, ends: Ends
) -> None:
    exchange = begin(ends, under=generation(retries=retries))
    lease, balancer = exchange.lease, exchange.generation.group.balancer
    assert lease is not None
    ours, theirs = socket.socketpair()
    stream = Stream(ours, Side.UPSTREAM)
    exchange.connection = UpstreamConnection(lease.upstream, stream, time.monotonic())
    exchange.unsent = b"rest of a head"
    exchange.is_deaf = True

    lease_again(exchange, error(stage, is_stale=True))

    assert exchange.lease is lease
    assert exchange.wants_fresh
    is_released = exchange.connection is None
    assert (is_released, exchange.unsent, exchange.is_deaf) == (True, b"", False)
    with theirs:
        assert theirs.recv(1) == b""  # the old one is closed
    assert (balancer.in_flight, exchange.is_retry, exchange.tried) == (1, False, ())
    assert open_breakers(balancer) == []


def test_what_may_have_had_an_effect_does_not_go_again(ends: Ends) -> None:
    assert not is_retried(begin(ends, "POST"), error(Stage.HEAD, is_stale=True))
    assert not is_retried(begin(ends, "PUT", LENGTH, body=b"bo"), error(Stage.HEAD, is_stale=True))


def test_an_untouched_body_goes_again(ends: Ends) -> None:
    exchange = begin(ends, "PUT", LENGTH, body=b"")
    lease = exchange.lease

    lease_again(exchange, error(Stage.HEAD, is_stale=True))

    assert exchange.lease is lease


def test_a_retry_may_take_an_idle_connection_again(ends: Ends) -> None:
    exchange = begin(ends)
    lease_again(exchange, error(Stage.HEAD, is_stale=True))
    exchange.has_heard = exchange.is_deaf = True

    assert is_retried(exchange, error(Stage.HEAD))

    assert (exchange.wants_fresh, exchange.has_heard, exchange.is_deaf) == (False, False, False)


# How often, and where to


def test_each_retry_goes_to_an_upstream_that_was_not_tried(ends: Ends) -> None:
    exchange = begin(ends, under=generation(retries=100, upstreams=5))
    tried = []
    while exchange.lease is not None:
        tried.append(exchange.lease.upstream.name)
        try:
            lease_again(exchange, error(Stage.CONNECT))
        except UpstreamError:
            break

    assert sorted(tried) == list("abcde")
    assert exchange.generation.group.balancer.in_flight == 0


def test_no_more_are_tried_than_are_allowed(ends: Ends) -> None:
    exchange = begin(ends, under=generation(retries=2, upstreams=5))

    lease_again(exchange, error(Stage.HEAD))
    lease_again(exchange, error(Stage.HEAD))
    assert not is_retried(exchange, error(Stage.HEAD))

    assert exchange.generation.group.balancer._retries == 0


def test_the_breaker_hears_of_a_failure_but_not_of_a_stale_connection(ends: Ends) -> None:
    under = generation(retries=0)
    balancer = under.group.balancer
    assert not is_retried(begin(ends, "POST", under=under), error(Stage.HEAD, is_stale=True))
    assert open_breakers(balancer) == []

    exchange = begin(ends, under=under)
    assert exchange.lease is not None
    failed = exchange.lease.upstream
    assert not is_retried(exchange, error(Stage.HEAD))

    assert open_breakers(balancer) == [failed]


def test_a_client_that_belongs_to_an_upstream_is_retried_elsewhere(ends: Ends) -> None:
    exchange = begin(ends)
    assert exchange.lease is not None
    exchange.affinity = Affinity(sticky=exchange.lease.upstream)

    assert is_retried(exchange, error(Stage.CONNECT))


def test_beyond_the_budget_only_failed_connects_are_retried(ends: Ends) -> None:
    under = generation()
    balancer = under.group.balancer
    for _ in range(3):
        assert balancer.begin_retry()

    assert not is_retried(begin(ends, under=under), error(Stage.HEAD))
    connecting = begin(ends, under=under)
    assert is_retried(connecting, error(Stage.CONNECT))

    assert balancer._retries == 3  # nor does it use the budget up
    assert not connecting.is_retry


def test_a_retry_counts_in_the_budget_until_its_exchange_is_over(ends: Ends) -> None:
    exchange = begin(ends)
    balancer = exchange.generation.group.balancer

    assert is_retried(exchange, error(Stage.HEAD))
    assert balancer._retries == 1
    assert not is_retried(exchange, error(Stage.HEAD))

    assert balancer._retries == 0


def test_where_nobody_else_is_available_the_first_failure_is_told(ends: Ends) -> None:
    exchange = begin(ends, under=generation(upstreams=1))

    assert not is_retried(exchange, error(Stage.CONNECT))


def test_a_client_that_is_gone_waits_for_no_retry(ends: Ends) -> None:
    exchange = begin(ends, under=generation(upstreams=2, limit=1))
    balancer = exchange.generation.group.balancer
    other = balancer.lease()  # the rest is full now
    ends.peer(exchange.client).close()

    with pytest.raises(ClientGone):
        lease_again(exchange, error(Stage.CONNECT))

    other.release()
    assert balancer.in_flight == 0
    assert not balancer.waiting


def test_those_who_watch_are_told_of_each_attempt(ends: Ends) -> None:
    exchange = begin(ends, under=generation(retries=2))
    record = exchange.begin_record()
    assert exchange.lease is not None
    first = exchange.lease.upstream.name

    lease_again(exchange, error(Stage.CONNECT))
    second = exchange.lease.upstream.name
    lease_again(exchange, error(Stage.HEAD))

    assert list(record.failures) == [(first, "connect-failed"), (second, "upstream-failed")]
    assert (record.retries, record.upstream) == (2, exchange.lease.upstream.name)
