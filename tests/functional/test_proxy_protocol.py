"""The PROXY protocol: who the client is, said by a proxy in front, and said to upstreams."""

from __future__ import annotations

import contextlib
import json
import select
import time

import pytest

from atlas_pkg.net.proxy_protocol import build_header
from atlas_pkg.net.stream import Ends
from tests.fakes import Upstream, echoing_fields, named
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Client, build_config, wait_until

NAMED = Ends("192.0.2.1", 56324, "198.51.100.7", 443)
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
HEADERS = {"1": LINE, "2": build_header(2, NAMED)}
LOCAL = {"1": b"PROXY UNKNOWN\r\n", "2": build_header(2, None)}

PATIENCE = 1.0


def listens(*networks: str) -> str:
    """`[listen.proxy_protocol]` for the end of a configuration."""
    return f"\n[listen.proxy_protocol]\nfrom = {json.dumps(networks or ['127.0.0.1'])}\n"


@pytest.fixture
def echo(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(echoing_fields())


@pytest.fixture
def atlas(echo: Upstream, start: Start) -> Atlas:
    return start(build_config(echo.table(), log={"access": "access.log"}) + listens())


@pytest.fixture
def hasty(echo: Upstream, start: Start) -> Atlas:
    """Waits for a header only for a moment."""
    return start(build_config(echo.table(), timeouts={"client_head": PATIENCE}) + listens())


def is_silent(client: Client, seconds: float) -> bool:
    return not select.select([client.sock], [], [], seconds)[0]


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_the_client_is_whom_the_header_names(header: bytes, atlas: Atlas) -> None:
    with atlas.client() as client:
        client.send(header)
        answers = [client.get(X_Forwarded_For="6.6.6.6").text for _ in range(3)]

    assert all("X-Forwarded-For: 192.0.2.1\n" in answer + "\n" for answer in answers)
    log = atlas.path.parent / "access.log"
    wait_until(lambda: log.exists() and log.read_text().count("\n") == 3, "the access log")
    assert all(line.startswith("192.0.2.1 - - ") for line in log.read_text().splitlines())


@pytest.mark.parametrize("header", LOCAL.values(), ids=LOCAL)
def test_a_header_on_nobody_s_behalf_means_the_connection_itself(
    header: bytes, atlas: Atlas
) -> None:
    with atlas.client() as client:
        client.send(header)
        assert "X-Forwarded-For: 127.0.0.1" in client.get().text


def test_what_a_named_proxy_says_is_believed_where_it_is_trusted(
    echo: Upstream, start: Start
) -> None:
    forwarding = {"trusted_proxies": ["192.0.2.0/24"]}
    atlas = start(build_config(echo.table(), forwarding=forwarding) + listens())

    with atlas.client() as client:
        client.send(LINE)
        assert "X-Forwarded-For: 6.6.6.6, 192.0.2.1" in client.get(X_Forwarded_For="6.6.6.6").text


def test_clients_are_told_apart_by_the_address_that_is_named(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    tables = [upstreams.enter_context(named(name)).table() for name in "abcd"]
    atlas = start(build_config(*tables, routing={"strategy": "ip_hash"}) + listens())

    def ask(number: int) -> str:
        with atlas.client() as client:
            client.send(build_header(2, NAMED._replace(source=f"192.0.2.{number}")))
            return client.get().text

    answers = [ask(number) for number in range(32)]
    assert set(answers) == set("abcd")
    assert [ask(number) for number in range(32)] == answers


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_header_and_request_may_come_byte_by_byte(header: bytes, atlas: Atlas) -> None:
    with atlas.client() as client:
        for byte in header + b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n":
            client.send(bytes([byte]))
        assert "X-Forwarded-For: 192.0.2.1" in client.read_answer().text


def test_header_and_requests_may_come_in_one_piece(atlas: Atlas) -> None:
    with atlas.client() as client:
        client.send(LINE + 2 * b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n")
        assert client.read_answer().status == client.read_answer().status == 200


def test_after_its_header_a_client_may_be_idle(hasty: Atlas) -> None:
    with hasty.client() as client:
        client.send(LINE)
        assert is_silent(client, 2 * PATIENCE)
        assert client.get().status == 200


@pytest.mark.parametrize("part", [b"", b"PROXY TCP4 192.0.2.1", HEADERS["2"][:20]])
def test_a_header_that_does_not_come_in_time_ends_the_connection(part: bytes, hasty: Atlas) -> None:
    with hasty.client() as client:
        began = time.monotonic()
        client.send(part)
        assert client.read_answer().status == 408
        assert time.monotonic() - began >= PATIENCE
        assert client.is_closed()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 1\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROXY " + 100_000 * b"x",
        HEADERS["2"][:14] + b"\xff\xff" + HEADERS["2"][16:] + 100_000 * b"x",
        b"\0" * 100_000,
    ],
    ids=["no header", "TLS", "malformed", "endless line", "lying length", "zeros"],
)
def test_what_is_no_header_is_refused(data: bytes, echo: Upstream, atlas: Atlas) -> None:
    with atlas.client() as client:
        client.send(data)
        assert client.read_answer().status == 400
        assert client.is_closed()
    assert echo.accepted == 0
    atlas.wait_for("127.0.0.1: refused with 400: the PROXY header ")


def test_strangers_are_refused_whatever_they_say(echo: Upstream, start: Start) -> None:
    atlas = start(build_config(echo.table()) + listens("192.0.2.0/24", "2001:db8::/32"))

    for data in (LINE, HEADERS["2"], b""):
        with atlas.client() as client:
            client.send(data + b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n")
            assert client.read_answer().status == 403
            assert client.is_closed()
    assert echo.accepted == 0
    atlas.wait_for("127.0.0.1: refused with 403: connections come through a proxy here")


def test_who_may_say_it_is_taken_over_by_a_reload(echo: Upstream, start: Start) -> None:
    text = build_config(echo.table())
    atlas = start(text)
    with atlas.client() as old:
        assert old.get().status == 200

        atlas.reload(text + listens())

        assert old.get().status == 200  # its connection was there before
        with atlas.client() as client:
            client.send(LINE)
            assert "X-Forwarded-For: 192.0.2.1" in client.get().text
        atlas.reload(text + listens("192.0.2.0/24"))
        with atlas.client() as client:
            client.send(LINE)
            assert client.read_answer().status == 403
    atlas.reload(text)
    assert atlas.get().status == 200


@pytest.mark.engines("lane")
def test_those_who_say_nothing_hold_no_thread_and_no_newcomer(echo: Upstream, start: Start) -> None:
    atlas = start(build_config(echo.table()) + listens())
    with contextlib.ExitStack() as stack:
        for part in 250 * [b"", b"PROXY TCP4 192.0.2.1 ", HEADERS["2"][:20]]:
            stack.enter_context(atlas.client()).send(part)
        with atlas.client() as client:
            client.send(LINE)
            assert client.get().status == 200
        assert atlas.threads < 20


def test_the_admin_address_expects_none(echo: Upstream, start: Start) -> None:
    atlas = start(build_config(echo.table(), admin=ADMIN) + listens())

    assert AdminClient(atlas).ask("/-/live")[0] == 200
