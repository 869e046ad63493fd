"""Micro-benchmarks of what every request passes: heads, the choice of an upstream, the pool.

`python -m pytest -m bench tests/bench` runs them; the suite leaves them out. They tell whether a
change to one of these rooms made it faster or slower, and nothing of the whole: that is what
`python -m tests.bench` is for. What is never the same twice is made before the clock starts.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atlas_pkg.balancing.balancer import Balancer, BalancerSettings
from atlas_pkg.balancing.pool import Pool, UpstreamConnection
from atlas_pkg.balancing.strategies import STRATEGIES
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import Forwarding, Limits, PoolConfig, Routing, UpstreamConfig
from atlas_pkg.errors import ClientError, Side
from atlas_pkg.http1.forwarding import Forwarder
from atlas_pkg.http1.message import MessageParser
from atlas_pkg.net.stream import Stream

pytestmark = pytest.mark.bench

ROUNDS = 5000

SMALL = b"GET /1k HTTP/1.1\r\nHost: bench.test\r\n\r\n"

BROWSER = (
    b"GET /list?item=%(n)d HTTP/1.1\r\n"
    b"Host: bench.test\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-GB,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"Referer: http://bench.test/list?page=%(n)d\r\n"
    b"Cookie: session=%(n)dx0123456789abcdef; theme=dark\r\n"
    b"Sec-Fetch-Mode: navigate\r\n"
    b"Cache-Control: no-cache\r\n\r\n"
)

ANSWER = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: nginx\r\n"
    b"Date: Mon, 02 Nov 2026 10:00:00 GMT\r\n"
    b"Content-Type: application/octet-stream\r\n"
    b"Content-Length: %(n)d\r\n"
    b'ETag: "%(n)x-400"\r\n'
    b"Connection: keep-alive\r\n\r\n"
)

START = b"GET / HTTP/1.1\r\nHost: bench.test\r\n"
SIZE = 64 * 1024

# What an attacker would send: 64 KB each, made to be expensive.
HOSTILE = {
    "one long value": START + b"A: " + b"x" * SIZE + b"\r\n\r\n",
    "one long name": START + b"a" * SIZE + b": 1\r\n\r\n",
    "no colon": START + b"a" * SIZE + b"\r\n\r\n",
    "blanks before the end": START + b"A: x" + b" " * SIZE + b"\0\r\n\r\n",
    "many short fields": START + b"a:\r\n" * (SIZE // 4) + b"\r\n",
    "a long Connection list": START + b"Connection: " + b"a," * (SIZE // 2) + b"\r\n\r\n",
    "many lengths": START + b"Content-Length: " + b"1, " * (SIZE // 3) + b"1\r\n\r\n",
}


@pytest.fixture
def parser() -> MessageParser:
    return MessageParser(Limits())


@pytest.fixture
def forwarder() -> Forwarder:
    return Forwarder(Forwarding())


def each_new(template: bytes, make: Callable[[bytes], object]) -> Callable[[], tuple[Any, Any]]:
    """A set-up for a pedantic benchmark: hands `make` a head that was never seen before."""
    numbers = itertools.count(100_000)
    return lambda: ((make(template % {b"n": next(numbers)}),), {})


def test_request_head_that_is_repeated(benchmark: Any, parser: MessageParser) -> None:
    assert benchmark(parser.parse_request, SMALL).method == b"GET"


def test_request_head_that_was_never_seen(benchmark: Any, parser: MessageParser) -> None:
    benchmark.pedantic(parser.parse_request, setup=each_new(BROWSER, bytes), rounds=ROUNDS)


@pytest.mark.parametrize("head", HOSTILE.values(), ids=HOSTILE)
def test_request_head_that_is_hostile(benchmark: Any, parser: MessageParser, head: bytes) -> None:
    def parse() -> None:
        try:
            parser.parse_request(head)
        except ClientError:
            return

    benchmark(parse)


def test_answer_head_that_is_repeated(benchmark: Any, parser: MessageParser) -> None:
    assert benchmark(parser.parse_response, ANSWER % {b"n": 1024}, b"GET").status == 200


def test_answer_head_that_was_never_seen(benchmark: Any, parser: MessageParser) -> None:
    def parse(head: bytes) -> None:
        parser.parse_response(head, b"GET")

    benchmark.pedantic(parse, setup=each_new(ANSWER, bytes), rounds=ROUNDS)


def test_forwarding_a_request_that_is_repeated(
    benchmark: Any, parser: MessageParser, forwarder: Forwarder
) -> None:
    request, client = parser.parse_request(SMALL), forwarder.describe_client("192.0.2.1", "http")

    head = benchmark(forwarder.build_request_head, request, client, b"192.0.2.2:80")

    assert head.startswith(b"GET /1k HTTP/1.1\r\n")


def test_forwarding_a_request_that_was_never_seen(
    benchmark: Any, parser: MessageParser, forwarder: Forwarder
) -> None:
    client = forwarder.describe_client("192.0.2.1", "http")

    def forward(request: Any) -> None:
        forwarder.build_request_head(request, client, b"192.0.2.2:80")

    benchmark.pedantic(forward, setup=each_new(BROWSER, parser.parse_request), rounds=ROUNDS)


def test_forwarding_an_answer_that_is_repeated(
    benchmark: Any, parser: MessageParser, forwarder: Forwarder
) -> None:
    answer = parser.parse_response(ANSWER % {b"n": 1024}, b"GET")

    head = benchmark(forwarder.build_response_head, answer, answer.framing, persistence=b"")

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")


def test_forwarding_an_answer_that_was_never_seen(
    benchmark: Any, parser: MessageParser, forwarder: Forwarder
) -> None:
    def parse(head: bytes) -> Any:
        return parser.parse_response(head, b"GET")

    def forward(answer: Any) -> None:
        forwarder.build_response_head(answer, answer.framing, persistence=b"")

    benchmark.pedantic(forward, setup=each_new(ANSWER, parse), rounds=ROUNDS)


@pytest.mark.parametrize("count", [3, 100, 1000])
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_choosing_among_upstreams(benchmark: Any, strategy: str, count: int) -> None:
    upstreams = tuple(
        UpstreamConfig(f"u{number}", "192.0.2.1", 1024 + number, weight=1 + number % 5)
        for number in range(count)
    )
    routing = Routing(strategy=strategy)
    balancer = Balancer(BalancerSettings(upstreams, routing))

    benchmark(lambda: balancer.lease().release())

    assert not any(upstream.in_flight for upstream in balancer.upstreams)


@pytest.fixture
def connection() -> Iterator[UpstreamConnection]:
    """A connection to an upstream that says nothing."""
    ours, theirs = socket.socketpair()
    upstream = Upstream(UpstreamConfig("a", "192.0.2.1", 80))
    with ours, theirs:
        yield UpstreamConnection(upstream, Stream(ours, Side.UPSTREAM), time.monotonic())


def test_pool_gives_and_takes_back(benchmark: Any, connection: UpstreamConnection) -> None:
    pool, settings = Pool(), PoolConfig(max_requests=1_000_000_000)
    pool.checkin(connection, settings, None)

    def use() -> None:
        taken = pool.checkout(connection.upstream, settings, 60.0)
        assert taken is not None
        pool.checkin(taken, settings, None)

    benchmark(use)
