"""Heads in, values out: what a request and an answer are, and what is no such thing."""

from __future__ import annotations

import pytest

from atlas_pkg.config.model import Limits
from atlas_pkg.errors import ClientError, Stage, UpstreamError
from atlas_pkg.http1.framing import CHUNKED, NO_BODY, UNTIL_CLOSE, BodyKind, Framing
from atlas_pkg.http1.message import MessageParser, Request, Response


def request(head: bytes) -> Request:
    """Parse twice, since what is remembered must be the same."""
    parser = MessageParser(Limits())
    first = parser.parse_request(head)
    parser.parse_request(head)
    again = parser.parse_request(head)
    assert (first.method, first.target, first.host) == (again.method, again.target, again.host)
    assert (first.framing, first.keep_alive) == (again.framing, again.keep_alive)
    return again


def refusal(head: bytes) -> int:
    parser = MessageParser(Limits())
    statuses = set()
    for _ in range(3):
        with pytest.raises(ClientError) as caught:
            parser.parse_request(head)
        statuses.add(caught.value.status)
    return statuses.pop()


def answer(head: bytes, method: bytes = b"GET") -> Response:
    parser = MessageParser(Limits())
    for _ in range(3):
        parser.parse_response(head, b"GET")
    return parser.parse_response(head, method)


def test_request_is_read() -> None:
    got = request(b"POST /a?b HTTP/1.1\r\nHost: h:80\r\nContent-Length: 5\r\n\r\n")

    assert (got.method, got.target, got.minor, got.host) == (b"POST", b"/a?b", 1, b"h:80")
    assert got.framing == Framing(BodyKind.LENGTH, 5)
    assert got.has_body
    assert got.keep_alive
    assert got.line == b"POST /a?b HTTP/1.1"


@pytest.mark.parametrize(
    ("line", "target", "host"),
    [
        (b"GET http://b/x?y HTTP/1.1", b"/x?y", b"b"),
        (b"GET HTTP://b:81 HTTP/1.1", b"/", b"b:81"),
        (b"GET http://b?y HTTP/1.1", b"/?y", b"b"),
        (b"OPTIONS http://b HTTP/1.1", b"*", b"b"),
        (b"OPTIONS http://b? HTTP/1.1", b"/?", b"b"),
        (b"OPTIONS * HTTP/1.1", b"*", b"a"),
    ],
)
def test_target_is_in_the_form_that_is_sent_on(line: bytes, target: bytes, host: bytes) -> None:
    got = request(line + b"\r\nHost: a\r\n\r\n")

    assert (got.target, got.host) == (target, host)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", False),
        (b"GET / HTTP/1.9\r\nHost: a\r\n\r\n", True),
    ],
)
def test_persistence_is_decided_once(head: bytes, keep_alive: bool) -> None:
    assert request(head).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/0.9\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET x HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://b/x#y HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
)
def test_request_is_refused_each_time(head: bytes, status: int) -> None:
    assert refusal(head) == status


@pytest.mark.parametrize(
    ("fields", "offer"),
    [
        (b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"websocket"),
        (b"Connection: Upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n", b"a, b"),
        (b"Upgrade: websocket\r\n", b""),
        (b"Connection: upgrade\r\nUpgrade: h2c\r\n", b""),
        (b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n", b"websocket"),
        (b"Connection: upgrade\r\nUpgrade: a, H2C,b\r\nContent-Length: 5\r\n", b"a, b"),
    ],
)
def test_upgrade_is_an_offer_only_where_it_is_well_formed(fields: bytes, offer: bytes) -> None:
    assert request(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n").upgrade == offer


@pytest.mark.parametrize(
    ("head", "method", "framing"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET", Framing(BodyKind.LENGTH, 5)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD", NO_BODY),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"GET", CHUNKED),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HEAD", NO_BODY),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"GET", NO_BODY),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", b"GET", NO_BODY),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", b"GET", NO_BODY),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"GET", UNTIL_CLOSE),
    ],
)
def test_answer_is_framed_for_its_method(head: bytes, method: bytes, framing: Framing) -> None:
    assert answer(head, method).framing == framing


def test_answer_to_head_does_not_frame_the_next_answer_to_get() -> None:
    parser = MessageParser(Limits())
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"

    for _ in range(3):
        assert parser.parse_response(head, b"HEAD").framing == NO_BODY
        assert parser.parse_response(head, b"GET").framing == Framing(BodyKind.LENGTH, 5)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
    ],
)
def test_upstream_connection_persists_where_the_answer_lets_it(
    head: bytes, keep_alive: bool
) -> None:
    assert answer(head).keep_alive is keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1001 + b"\r\n",
    ],
)
def test_malformed_answer_is_the_upstreams_fault(head: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        answer(head)

    assert caught.value.stage is Stage.HEAD


# Requests that go in a circle (RFC 9110 §7.6.3)


def passed_by(*vias: bytes) -> bytes:
    lines = b"".join(b"Via: %b\r\n" % via for via in vias)
    return b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % lines


@pytest.mark.parametrize(
    "head",
    [
        passed_by(*[b"1.1 atlas"] * 8),
        passed_by(b"1.1 edge, 1.1 atlas,1.0 atlas", *[b"HTTP/1.1 atlas (Atlas)"] * 6),
        passed_by(*[b"1.1 atlas"] * 60),
    ],
)
def test_a_request_that_came_by_eight_times_is_refused_with_508(head: bytes) -> None:
    assert refusal(head) == 508


@pytest.mark.parametrize(
    "head",
    [
        passed_by(*[b"1.1 atlas"] * 7),
        passed_by(*[b"1.1 atlas.example"] * 9),
        passed_by(*[b"1.1 edge (atlas)"] * 9),
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: %b\r\n\r\n" % (b"1.1 atlas, " * 9),
    ],
)
def test_one_that_came_by_less_often_or_by_others_is_not(head: bytes) -> None:
    assert request(head).target == b"/"
