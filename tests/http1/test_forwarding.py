"""Heads for the next hop: what is removed, what is set, and what stays as it came."""

from __future__ import annotations

import ipaddress

import pytest

from atlas_pkg.config.model import Forwarding, Limits
from atlas_pkg.http1.forwarding import Forwarder
from atlas_pkg.http1.framing import CHUNKED, UNTIL_CLOSE
from atlas_pkg.http1.message import MessageParser

BARE = Forwarding(x_forwarded=False, via=False)
ADDED = {
    b"Via: 1.1 atlas",
    b"X-Forwarded-For: 192.0.2.1",
    b"X-Forwarded-Proto: http",
    b"X-Forwarded-Host: a",
}


def forward(head: bytes, settings: Forwarding = BARE, address: str = "192.0.2.1") -> bytes:
    """Parse a request's head and build the one for the upstream; twice, for what is kept."""
    parser, forwarder = MessageParser(Limits()), Forwarder(settings)
    client = forwarder.describe_client(address, "http")
    heads = {
        forwarder.build_request_head(parser.parse_request(head), client, b"fallback")
        for _ in range(3)
    }
    assert len(heads) == 1
    return heads.pop()


def relay(head: bytes, settings: Forwarding = BARE, *, old_client: bool = False) -> bytes:
    """Parse an answer's head and build the one for the client."""
    response = MessageParser(Limits()).parse_response(head, b"GET")
    onward = response.framing
    if onward in {CHUNKED, UNTIL_CLOSE}:
        onward = UNTIL_CLOSE if old_client else CHUNKED
    return Forwarder(settings).build_response_head(response, onward, persistence=b"")


@pytest.mark.parametrize(
    ("head", "forwarded"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: fallback\r\n\r\n"),
        (
            b"GET http://b/x HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n",
            b"GET /x HTTP/1.1\r\nHost: b\r\nX: y\r\n\r\n",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            b"PUT / HTTP/1.1\r\nContent-Length: 007\r\nHost: a\r\n\r\n",
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n",
        ),
        (
            b"GET / HTTP/1.1\r\nConnection: b\r\nB: 1\r\nKeep-Alive: x\r\nHost: a\r\nTE: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        (
            b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n",
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
        ),
    ],
)
def test_request_head_is_built_anew(head: bytes, forwarded: bytes) -> None:
    assert forward(head) == forwarded


def test_address_of_the_client_is_told() -> None:
    lines = forward(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Forwarding()).split(b"\r\n")

    assert set(lines[2:-2]) == ADDED


@pytest.mark.parametrize(
    "claim",
    [
        b"X-Forwarded-For: 1.2.3.4\r\n",
        b"x-forwarded-host: evil\r\nX-FORWARDED-PROTO: https\r\n",
        b"Connection: X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto\r\n",
        b"Connection: Via\r\nX-Forwarded-For: 1.2.3.4\r\n",
    ],
)
def test_what_a_client_claims_is_not_believed(claim: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + claim + b"\r\n"

    assert set(forward(head, Forwarding()).split(b"\r\n")[2:-2]) == ADDED


def test_what_a_trusted_proxy_claims_is_kept() -> None:
    settings = Forwarding(trusted_proxies=(ipaddress.ip_network("192.0.2.0/24"),), via=False)
    claim = b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\n"

    head = forward(b"GET / HTTP/1.1\r\nHost: a\r\n" + claim + b"\r\n", settings)

    assert set(head.split(b"\r\n")[2:-2]) == {
        b"X-Forwarded-For: 1.2.3.4, 192.0.2.1",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: b",
    }


PROXY_SETTINGS = Forwarding(trusted_proxies=(ipaddress.ip_network("192.0.2.0/24"),), via=False)
CLAIMS = (
    b"Forwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nX-Forwarded-Port: 443\r\n"
    b"X-Forwarded-Prefix: /a\r\nX-Forwarded-Ssl: on\r\nX-Forwarded-Server: b\r\n"
)


@pytest.mark.parametrize("settings", [BARE, Forwarding(via=False)])
def test_whatever_a_stranger_claims_is_dropped(settings: Forwarding) -> None:
    plain = b"GET / HTTP/1.1\r\nHost: a\r\n"

    assert forward(plain + CLAIMS + b"\r\n", settings) == forward(plain + b"\r\n", settings)


def test_whatever_a_trusted_proxy_claims_is_kept() -> None:
    head = forward(b"GET / HTTP/1.1\r\nHost: a\r\n" + CLAIMS + b"\r\n", PROXY_SETTINGS)

    assert CLAIMS in head


def test_what_a_trusted_proxy_claims_is_removed_where_that_is_asked_for() -> None:
    settings = Forwarding(
        trusted_proxies=PROXY_SETTINGS.trusted_proxies,
        remove_request_fields=("X-Forwarded-Port",),
    )

    head = forward(b"GET / HTTP/1.1\r\nHost: a\r\n" + CLAIMS + b"\r\n", settings)

    assert b"X-Forwarded-Port" not in head
    assert b"X-Forwarded-Ssl: on\r\n" in head


@pytest.mark.parametrize("name", [b"X_Remote_User", b"x-remote_user", b"X.Remote-User"])
@pytest.mark.parametrize("removed", ["X-Remote-User", "x_remote_user"])
def test_with_a_removed_field_goes_what_is_taken_for_it(name: bytes, removed: str) -> None:
    settings = Forwarding(x_forwarded=False, via=False, remove_request_fields=(removed,))

    head = forward(b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": admin\r\n\r\n", settings)

    assert head == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("appended", "address"),
    [
        (b"203.0.113.7", b"203.0.113.7"),
        (b"203.0.113.7:51008", b"203.0.113.7"),
        (b"[2001:db8::1]", b"2001:db8::1"),
        (b"[2001:DB8::1]:443", b"2001:db8::1"),
        (b"2001:db8::1", b"2001:db8::1"),
        (b"::ffff:203.0.113.7", b"203.0.113.7"),
        (b"[::ffff:203.0.113.7]:1", b"203.0.113.7"),
        (b"203.0.113.7:51008, 192.0.2.9:80", b"203.0.113.7"),
        (b"203.0.113.7, ::ffff:192.0.2.9", b"203.0.113.7"),
        (b"203.0.113.7, unknown", b"192.0.2.1"),
        (b"203.0.113.7:", b"192.0.2.1"),
        (b"203.0.113.7:123456", b"192.0.2.1"),
        (b"203.0.113.7:1:2", b"192.0.2.1"),
        (b"[203.0.113.7]", b"203.0.113.7"),
        (b"[2001:db8::1", b"192.0.2.1"),
        (b"fe80::1%eth0 x", b"192.0.2.1"),
        (b"", b"192.0.2.1"),
    ],
)
def test_entries_of_trusted_proxies_are_read(appended: bytes, address: bytes) -> None:
    forwarder = Forwarder(PROXY_SETTINGS)
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: " + appended + b"\r\n\r\n"
    request = MessageParser(Limits()).parse_request(head)

    client = forwarder.describe_client("192.0.2.1", "http")

    assert forwarder.client_address(request, client) == address


def test_fields_are_set_and_removed() -> None:
    settings = Forwarding(
        x_forwarded=False,
        via=False,
        set_request_fields=(("X-Team", "blue"),),
        remove_request_fields=("Cookie",),
    )

    head = forward(
        b"GET / HTTP/1.1\r\nHost: a\r\nx-team: red\r\nCOOKIE: c\r\nY: z\r\n\r\n", settings
    )

    assert head == b"GET / HTTP/1.1\r\nHost: a\r\nY: z\r\nX-Team: blue\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "relayed"),
    [
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 05\r\nX: y\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\n",
        ),
        (
            b"HTTP/1.1 200 OK\r\nConnection: close, b\r\nB: 1\r\nKeep-Alive: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (
            b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
        ),
        (
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        ),
        (
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
        ),
    ],
)
def test_answer_head_is_built_anew(head: bytes, relayed: bytes) -> None:
    assert relay(head) == relayed


def test_old_client_hears_of_no_coding() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    assert relay(head, old_client=True) == b"HTTP/1.1 200 OK\r\n\r\n"


def test_interim_answer_keeps_its_fields_but_no_framing() -> None:
    head = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 5\r\nConnection: y\r\n\r\n"

    response = MessageParser(Limits()).parse_response(head, b"GET")

    assert (
        Forwarder(BARE).build_interim_head(response)
        == b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    )


def test_switching_answer_keeps_its_upgrade() -> None:
    head = b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: upgrade\r\nX: y\r\n\r\n"

    response = MessageParser(Limits()).parse_response(head, b"GET")

    assert Forwarder(BARE).build_switching_head(response) == (
        b"HTTP/1.1 101 OK\r\nX: y\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )


def test_what_is_taken_off_is_told_behind_what_others_have_taken_off() -> None:
    parser, forwarder = MessageParser(Limits()), Forwarder(Forwarding())
    request = parser.parse_request(b"GET /v1/x?y HTTP/1.1\r\nHost: h\r\n\r\n")
    client = forwarder.describe_client("192.0.2.7", "http")
    trusting = Forwarder(Forwarding(trusted_proxies=(ipaddress.ip_network("10.0.0.0/8"),)))
    claimed = parser.parse_request(b"GET /v1 HTTP/1.1\r\nHost: h\r\nX-Forwarded-Prefix: /a\r\n\r\n")

    heads = [
        forwarder.build_request_head(request, client, b"", b"", strip)
        for strip in (b"/v1", b"", b"/v1", b"/v1/x")
    ]
    told = trusting.build_request_head(
        claimed, trusting.describe_client("10.0.0.1", "http"), b"", b"", b"/v1"
    )

    assert [head.split(b" ")[1] for head in heads] == [b"/x?y", b"/v1/x?y", b"/x?y", b"/?y"]
    assert [head.count(b"X-Forwarded-Prefix: /v1\r\n") for head in heads] == [1, 0, 1, 0]
    assert told.index(b"Prefix: /a\r\n") < told.index(b"Prefix: /v1\r\n")
