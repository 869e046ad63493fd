"""The one place that decides on retries, row by row of the table of failures."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
from atlas_pkg.serving.retry import IDEMPOTENT, Retries
from atlas_pkg.serving.upload import Upload

from atlas_pkg.balancing.lease import ANYWHERE, NOBODY, Affinity, Lease
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config import CircuitBreaker, Config, Routing, Timeouts, UpstreamConfig
from atlas_pkg.errors import ClientGone, Stage, UpstreamError
from atlas_pkg.http1.framing import CHUNKED, BodyKind, Framing
from atlas_pkg.http1.message import MessageParser
from atlas_pkg.serving.generation import Generation


class FakeStream:
    """As much of a client's stream as retries and uploads look at."""

    def __init__(self, buffered: bytes = b"") -> None:
        self.buffered = buffered
        self.is_gone = False

    def has_ended(self) -> bool:
        return self.is_gone


class FakeExchange:
    """As much of an exchange as retries look at."""

    def __init__(
        self, method: str = "GET", *, retries: int = 1, upstreams: int = 3, limit: int = 0
    ) -> None:
        listed = tuple(
            UpstreamConfig(name, "192.0.2.1", 80, max_connections=limit)
            for name in "abcdefgh"[:upstreams]
        )
        config = Config(
            Path("atlas.toml"),
            upstreams=listed,
            routing=Routing(retries=retries),
            circuit_breaker=CircuitBreaker(failures=1),
            timeouts=Timeouts(queue=20.0),
        )
        self.generation = Generation(config)
        self.request = MessageParser(config.limits).parse_request(
            f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        )
        self.has_sent = False
        self.affinity = ANYWHERE
        self.client = FakeStream()

    @property
    def retries(self) -> int:
        """How many are counted as retries now."""
        return self.generation.balancer._retries

    def lease_now(self, tried: Collection[Upstream] = NOBODY) -> Lease | None:
        return self.generation.balancer.lease_now(self.affinity, tried)

    def queue(self, tried: Collection[Upstream] = NOBODY) -> Lease:
        balancer = self.generation.balancer
        return balancer.lease(self.affinity, tried, is_gone=self.client.has_ended)

    def begin(self, upload: Upload | None = None) -> tuple[Retries, Lease]:
        return Retries(self, upload), self.generation.balancer.lease()  # type: ignore[arg-type]


def build_upload(framing: Framing, buffered: bytes) -> Upload:
    client = FakeStream(buffered)
    return Upload(client, framing, limit=0, max_fields=100, timeouts=Timeouts())  # type: ignore[arg-type]


def error(stage: Stage, *, is_stale: bool = False) -> UpstreamError:
    return UpstreamError(stage, "failed", is_stale=is_stale)


def is_retried(
    exchange: FakeExchange, failure: UpstreamError, upload: Upload | None = None
) -> bool:
    """Ask for another lease after `failure`; all counts are right afterwards."""
    retries, lease = exchange.begin(upload)
    balancer = exchange.generation.balancer
    try:
        another = retries.next_lease(lease, failure)
    except UpstreamError:
        assert failure.upstream == lease.upstream.name
        assert balancer.in_flight == 0
        return False
    assert lease.upstream.in_flight == 0
    assert another.upstream is not lease.upstream
    assert balancer.in_flight == 1
    another.release()
    retries.close()
    assert exchange.retries == 0
    return True


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_a_failed_connect_may_always_be_retried(method: str) -> None:
    assert is_retried(FakeExchange(method), error(Stage.CONNECT))


@pytest.mark.parametrize("stage", [Stage.SEND, Stage.HEAD])
def test_what_was_sent_may_be_retried_when_it_is_idempotent(stage: Stage) -> None:
    for method in sorted(IDEMPOTENT):
        assert is_retried(FakeExchange(method.decode()), error(stage))
    for method_name in ("POST", "PATCH", "CONNECTED", "get"):
        assert not is_retried(FakeExchange(method_name), error(stage))


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.SEND, Stage.HEAD])
def test_by_default_nothing_is_retried(stage: Stage) -> None:
    assert not is_retried(FakeExchange(retries=0), error(stage))


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.SEND, Stage.HEAD])
def test_nothing_is_retried_once_the_client_has_heard_something(stage: Stage) -> None:
    exchange = FakeExchange()
    exchange.has_sent = True

    assert not is_retried(exchange, error(stage))


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.HEAD])
def test_a_body_must_be_whole_to_be_sent_again(stage: Stage) -> None:
    for framing, arrived, may_retry in [
        (Framing(BodyKind.LENGTH, 4), b"body", True),
        (Framing(BodyKind.LENGTH, 8), b"body", False),
        (CHUNKED, b"4\r\nbody\r\n0\r\n\r\n", True),
        (CHUNKED, b"4\r\nbody\r\n", False),
    ]:
        upload = build_upload(framing, arrived)
        first = upload.take_buffered()

        assert is_retried(FakeExchange("PUT"), error(stage), upload) == may_retry
        if may_retry:
            assert upload.take_buffered() == first
            assert upload.is_done


def test_an_untouched_body_may_go_to_another() -> None:
    upload = build_upload(Framing(BodyKind.LENGTH, 1_000_000), b"")
    assert upload.take_buffered() == b""

    assert is_retried(FakeExchange("POST"), error(Stage.CONNECT), upload)


def test_each_retry_goes_to_an_upstream_that_was_not_tried() -> None:
    exchange = FakeExchange(retries=100, upstreams=5)
    retries, lease = exchange.begin()
    tried = [lease.upstream.name]

    for _ in range(4):
        lease = retries.next_lease(lease, error(Stage.CONNECT))
        tried.append(lease.upstream.name)
    with pytest.raises(UpstreamError):
        retries.next_lease(lease, error(Stage.CONNECT))

    assert sorted(tried) == list("abcde")
    assert exchange.generation.balancer.in_flight == 0


def test_no_more_are_tried_than_are_allowed() -> None:
    exchange = FakeExchange(retries=2, upstreams=5)
    retries, lease = exchange.begin()

    lease = retries.next_lease(lease, error(Stage.HEAD))
    lease = retries.next_lease(lease, error(Stage.HEAD))
    with pytest.raises(UpstreamError):
        retries.next_lease(lease, error(Stage.HEAD))

    assert exchange.retries == 0


def test_the_breaker_hears_of_a_failure_but_not_of_a_stale_connection() -> None:
    exchange = FakeExchange(retries=0)
    balancer = exchange.generation.balancer
    retries, lease = exchange.begin()
    with pytest.raises(UpstreamError):
        retries.next_lease(lease, error(Stage.HEAD, is_stale=True))
    assert "breaker closed" in balancer.describe()[0]

    lease = balancer.lease(Affinity(sticky=balancer.upstreams[0]))
    with pytest.raises(UpstreamError):
        retries.next_lease(lease, error(Stage.HEAD))
    assert "breaker open" in balancer.describe()[0]


def test_beyond_the_budget_only_failed_connects_are_retried() -> None:
    exchange = FakeExchange()
    balancer = exchange.generation.balancer
    for _ in range(3):
        assert balancer.begin_retry()

    assert not is_retried(FakeExchangeOf(exchange), error(Stage.HEAD))
    retries, lease = exchange.begin()
    another = retries.next_lease(lease, error(Stage.CONNECT))

    assert exchange.retries == 3  # nor does it use the budget up
    retries.close()
    assert exchange.retries == 3
    another.release()


class FakeExchangeOf(FakeExchange):
    """Another exchange of the same generation."""

    def __init__(self, other: FakeExchange) -> None:
        super().__init__()
        self.generation = other.generation


def test_a_client_that_is_gone_waits_for_no_retry() -> None:
    exchange = FakeExchange(upstreams=2, limit=1)
    balancer = exchange.generation.balancer
    retries, lease = exchange.begin()
    other = balancer.lease()  # the rest is full now
    exchange.client.is_gone = True

    with pytest.raises(ClientGone):
        retries.next_lease(lease, error(Stage.CONNECT))

    other.release()
    assert balancer.in_flight == 0
    assert not balancer.waiting
