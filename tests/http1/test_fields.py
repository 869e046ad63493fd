"""Blocks of fields: what is well formed, what is read out, and what is kept for the next hop."""

from __future__ import annotations

import pytest

from atlas_pkg.errors import MalformedMessage
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.fields import Fields, without
from atlas_pkg.http1.message import check_host


def fields(*lines: bytes) -> Fields:
    return Fields(b"\r\n" + b"".join(line + b"\r\n" for line in lines), 100)


def test_most_fields_are_kept_as_they_came() -> None:
    got = fields(b"Accept: */*", b"hOsT:  a", b"X:", b"X:\t1 ", b"x: 2")

    assert got.kept == got.block
    assert got.host == b"a"


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: close",
        b"Content-Length: 5",
        b"TRANSFER-ENCODING: chunked",
        b"Expect: 100-continue",
        b"Upgrade: x",
        b"keep-alive: timeout=5",
        b"Proxy-Connection: close",
        b"TE: trailers",
        b"Trailer: X",
        b"X-Forwarded-For: b",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: b",
        b"X-Request-Id: 1",
        b"Content_Length: 5",
        b"transfer.encoding: chunked",
        b"-Content-Length: 5",
        b"Content-Length-: 5",
        b"X_Forwarded_For: 6.6.6.6",
        b"X-Forwarded_Proto: https",
        b"X.Forwarded-Port: 1",
        b"x_request_id: 1",
        b"Keep_Alive: 5",
        b"Proxy.Connection: close",
        b"C0ntent-Length1: 5".replace(b"0", b"o"),
    ],
)
def test_what_ends_here_or_is_set_anew_is_not_kept(line: bytes) -> None:
    assert fields(b"A: b", line, b"C: d").kept == b"\r\nA: b\r\nC: d\r\n"


@pytest.mark.parametrize(
    "line",
    [b"X-Content-Length: 5", b"Content-Lengths: 5", b"C0ntent-Length: 5", b"Te2: x", b"XTE: x"],
)
def test_names_that_spell_something_else_are_kept(line: bytes) -> None:
    assert fields(b"A: b", line).kept == b"\r\nA: b\r\n" + line + b"\r\n"


def test_connection_takes_what_it_names() -> None:
    got = fields(b"Connection: x , Y,,close", b"X: 1", b"Y: 2", b"Z: 3", b"y: 4", b"XY: 5")

    assert got.kept == b"\r\nZ: 3\r\nXY: 5\r\n"
    assert got.connection == {b"x", b"y", b"close"}


def test_connection_takes_what_an_application_would_take_for_it() -> None:
    got = fields(b"Connection: X-User", b"X_User: 1", b"x.user: 2", b"X-Users: 3")

    assert got.kept == b"\r\nX-Users: 3\r\n"


def test_a_connection_field_cannot_take_framing_by_another_spelling() -> None:
    got = fields(b"Connection: content_length", b"Content-Length: 5")

    assert got.notable[b"content-length"] == [b"5"]


def test_look_alikes_are_not_read() -> None:
    got = fields(b"X_Forwarded_For: 6.6.6.6", b"X_Request_Id: 1", b"Keep_Alive: timeout=5")

    assert got.notable == {}
    assert got.keep_alive_timeout is None


@pytest.mark.parametrize(
    "line", [b"Forwarded: for=a", b"X-Real-IP: a", b"X-Forwarded-Port: 1", b"x-forwarded-ssl: on"]
)
def test_claims_are_put_aside(line: bytes) -> None:
    got = fields(b"A: b", line, b"C: d")

    assert (got.kept, got.claims) == (b"\r\nA: b\r\nC: d\r\n", line + b"\r\n")


def test_answers_keep_what_only_requests_are_asked_for() -> None:
    lines = b"\r\nX-Request-Id: 1\r\nX-Forwarded-Host: a\r\nExpect: b\r\n"

    assert Fields(lines, 100, syntax.NOTABLE_IN_ANSWERS).kept == lines


def test_connection_cannot_take_what_frames_or_routes() -> None:
    got = fields(b"Connection: host, content-length, transfer-encoding", b"Host: a")

    assert got.kept == b"\r\nHost: a\r\n"
    assert got.host == b"a"


def test_connection_does_not_take_an_expectation_that_the_client_waits_for() -> None:
    assert b"expect" in fields(b"Connection: expect", b"Expect: 100-continue").notable


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([b"a\x00b: c"], "NUL"),
        ([b"a: b\nc: d"], "CRLF"),
        ([b"a: b\rc"], "CRLF"),
        ([b"a: b", b" c"], "folded"),
        ([b"\ta: b"], "folded"),
        ([b"a"], "without a colon"),
        ([b"a : b"], "white space"),
        ([b": b"], "name has a character"),
        ([b"a(b): c"], "name has a character"),
        ([b"a: \x7f"], "control character"),
    ],
)
def test_refusal_says_what_is_wrong(lines: list[bytes], why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        fields(*lines)


def test_fields_are_counted() -> None:
    with pytest.raises(MalformedMessage) as caught:
        fields(*[b"X: y"] * 101)

    assert caught.value.status == 431


def test_slow_lookup_finds_the_first_value() -> None:
    got = fields(b"A: b", b"aCCept: text/html ", b"Accept: x")

    assert got.get(b"accept") == b"text/html"
    assert got.get(b"b") is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"timeout=5", 5), (b"max=1, Timeout=7", 7), (b"xtimeout=5", None), (b"timeout=x", None)],
)
def test_keep_alive_timeout_is_read(value: bytes, seconds: int | None) -> None:
    assert fields(b"Keep-Alive: " + value).keep_alive_timeout == seconds


def test_fields_are_left_out_by_name() -> None:
    block = b"\r\nA: 1\r\nB: 2\r\na: 3\r\n"

    assert without(block, frozenset({b"a"})) == b"\r\nB: 2\r\n"


def test_lists_are_split() -> None:
    assert syntax.split_list([b"A, b ,", b"\tC"]) == [b"a", b"b", b"c"]
    assert syntax.split_list([]) == []


@pytest.mark.parametrize(
    "host", [b"a", b"a.b:80", b"a:", b"[::1]:1", b"[::ffff:1.2.3.4]", b"%41", b"a_~!$&'()*+,;="]
)
def test_host_is_a_name_with_an_optional_port(host: bytes) -> None:
    check_host(host)


@pytest.mark.parametrize(
    "host",
    [b"", b":80", b"a:b", b"a:1:2", b"u@a", b"[::1", b"[x]", b"[1::2::3]", b"a/b", b"%4", b"\xe9"],
)
def test_everything_else_is_no_host(host: bytes) -> None:
    with pytest.raises(MalformedMessage):
        check_host(host)
