"""The PROXY protocol: who the client is, said by a proxy in front, and said to upstreams."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import time
from pathlib import Path

import pytest
import trustme

from atlas_pkg.net.proxy_protocol import build_header
from atlas_pkg.net.stream import Ends
from tests.fakes import Conversation, Upstream, build_answer, echoing_fields, named
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.functional.programs import need, nginx, serving
from tests.toolkit import Atlas, Client, build_config, free_port, wait_until

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
    began = time.monotonic()
    with hasty.client() as client:
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


@pytest.mark.engines("lane")
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


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("is_slow", [False, True], ids=["whole", "byte by byte"])
def test_a_header_comes_before_tls(
    header: bytes, is_slow: bool, tmp_path: Path, echo: Upstream, start: Start
) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("atlas.test")
    pair.private_key_and_cert_chain_pem.write_to_path(tmp_path / "pair.pem")
    tls = '\n[listen.tls]\ncert = "pair.pem"\nkey = "pair.pem"\n'
    atlas = start(build_config(echo.table()) + tls + listens())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)

    with socket.create_connection(("127.0.0.1", atlas.port), 20) as plain:
        for piece in [bytes([byte]) for byte in header] if is_slow else [header]:
            plain.sendall(piece)
        with context.wrap_socket(plain, server_hostname="atlas.test") as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))

    assert b"X-Forwarded-For: 192.0.2.1" in answer
    assert b"X-Forwarded-Proto: https" in answer


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_stranger_reaches_nobody(mode: str, echo: Upstream, start: Start) -> None:
    atlas = start(build_config(echo.table(), listen={"mode": mode}) + listens("192.0.2.0/24"))

    with atlas.client() as client:
        client.send(LINE + b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while client.sock.recv(65536):
                pass
    assert echo.accepted == 0


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


@pytest.mark.engines("lane")
def test_the_admin_address_expects_none(echo: Upstream, start: Start) -> None:
    atlas = start(build_config(echo.table(), admin=ADMIN) + listens())

    assert AdminClient(atlas).ask("/-/live")[0] == 200


# To upstreams


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("the header was cut")
        data += piece
    return data


def read_told(sock: socket.socket) -> str:
    """Read a header as an upstream does; returns version, source and destination as words."""
    data = read_exactly(sock, 12)
    if data.startswith(b"PROXY "):
        while not data.endswith(b"\r\n"):
            data += read_exactly(sock, 1)
        _, family, *words = data.decode().split()
        return " ".join(["1", family, *words])
    assert data == b"\r\n\r\n\0\r\nQUIT\n"
    command, kind, length = struct.unpack("!BBH", read_exactly(sock, 4))
    body = read_exactly(sock, length)
    if command == 0x20:
        return "2 LOCAL"
    assert (command, kind, length) == (0x21, 0x11, 12)
    ports = struct.unpack("!HH", body[8:])
    return (
        f"2 TCP4 {socket.inet_ntoa(body[:4])} {socket.inet_ntoa(body[4:8])} {ports[0]} {ports[1]}"
    )


class Told(Upstream):
    """Wants a header ahead of each connection, and answers with what it says."""

    def __init__(self, name: str = "a") -> None:
        super().__init__(self._answer, name=name)
        self.headers: list[str] = []

    def _answer(self, conversation: Conversation) -> None:
        told = read_told(conversation.sock)
        self.headers.append(told)
        while conversation.read_head():
            conversation.send(build_answer(told.encode()))


@pytest.fixture
def told(upstreams: contextlib.ExitStack) -> Told:
    return upstreams.enter_context(Told())


@pytest.mark.parametrize("version", [1, 2])
def test_an_upstream_is_told_for_whom_a_connection_is(
    version: int, told: Told, start: Start
) -> None:
    atlas = start(build_config(told.table(proxy_protocol=version)))

    with atlas.client() as client:
        port = client.sock.getsockname()[1]
        said = f"{version} TCP4 127.0.0.1 127.0.0.1 {port} {atlas.port}"
        assert [client.get().text for _ in range(3)] == [said] * 3
        assert client.post(b"x" * 100_000).text == said


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_proxy_in_front_has_said_is_passed_on(
    version: int, told: Told, start: Start
) -> None:
    atlas = start(build_config(told.table(proxy_protocol=version)) + listens())

    with atlas.client() as client:
        client.send(LINE)
        assert client.get().text == f"{version} TCP4 192.0.2.1 198.51.100.7 56324 443"
    with atlas.client() as client:
        port = client.sock.getsockname()[1]
        client.send(LOCAL["2"])
        said = f"{version} TCP4 127.0.0.1 127.0.0.1 {port} {atlas.port}"
        assert client.get().text == said


@pytest.mark.parametrize("version", [1, 2])
def test_connections_that_are_passed_on_unread_are_announced_too(
    version: int, told: Told, start: Start
) -> None:
    text = build_config(told.table(proxy_protocol=version), listen={"mode": "tcp"})
    atlas = start(text + listens())

    with atlas.client() as client:
        client.send(LINE)
        assert client.get().text == f"{version} TCP4 192.0.2.1 198.51.100.7 56324 443"


def test_such_a_connection_serves_its_client_alone_and_ends_with_it(
    told: Told, start: Start
) -> None:
    atlas = start(build_config(told.table(proxy_protocol=1)))

    with atlas.client() as first, atlas.client() as second:
        for _ in range(4):
            own = [client.sock.getsockname()[1] for client in (first, second)]
            said = [client.get().text.split()[4] for client in (first, second)]
            assert said == [str(port) for port in own]
        assert told.accepted == 2
    wait_until(lambda: not told.connected, "their connections to end")


@pytest.mark.engines("lane")
@pytest.mark.parametrize(("version", "said"), [(1, "1 TCP4 127.0.0.1 127.0.0.1"), (2, "2 LOCAL")])
@pytest.mark.parametrize("path", ["/health", ""])
def test_probes_say_that_they_are_for_nobody(
    version: int, said: str, path: str, told: Told, start: Start
) -> None:
    check = {"interval": 0.1, "path": path}
    start(build_config(told.table(proxy_protocol=version), health_check=check))

    wait_until(lambda: told.headers, "a probe")
    assert told.headers[0].startswith(said)


@pytest.mark.engines("lane")
def test_a_reload_begins_to_tell(told: Told, upstreams: contextlib.ExitStack, start: Start) -> None:
    plain = upstreams.enter_context(named("plain"))
    atlas = start(build_config(plain.table()))
    with atlas.client() as client:
        assert client.get().text == "plain"
        atlas.reload(build_config(told.table(proxy_protocol=2)))
        assert client.get().text.startswith("2 TCP4 127.0.0.1")
        atlas.reload(build_config(plain.table()))
        assert client.get().text == "plain"


# Programs of other makers

HAPROXY_CONFIG = """
defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend sends
  bind 127.0.0.1:{sends}
  default_backend atlas
backend atlas
  server atlas 127.0.0.1:{atlas} {option}
frontend receives
  bind 127.0.0.1:{receives} accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src] %[src_port]"
"""


@pytest.mark.engines("lane")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("receiver", ["haproxy", "nginx"])
def test_haproxy_and_nginx_understand_what_they_are_told(
    receiver: str, version: int, tmp_path: Path, start: Start
) -> None:
    sends, receives = free_port(), free_port()
    table = {"name": "a", "address": "127.0.0.1", "port": receives, "proxy_protocol": version}
    check = {"path": "/", "interval": 0.1, "fall": 1}
    if receiver == "nginx":
        told = 'return 200 "$proxy_protocol_addr $proxy_protocol_port";'
        server = f"listen 127.0.0.1:{receives} proxy_protocol; location / {{ {told} }}"
        running = nginx(tmp_path, receives, server)
    else:
        file = tmp_path / "haproxy.cfg"
        file.write_text(HAPROXY_CONFIG.format(sends=sends, receives=receives, atlas=1, option=""))
        running = serving(receives, need("haproxy"), "-f", file)
    with running:
        atlas = start(build_config(table, health_check=check) + listens())

        for number in range(3):
            with atlas.client() as client:
                client.send(build_header(2, NAMED._replace(source=f"192.0.2.{number}")))
                assert [client.get().text for _ in range(3)] == [f"192.0.2.{number} 56324"] * 3
        assert "is down" not in atlas.log


NGINX_STREAM_CONFIG = """
load_module {module}; daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
stream {{
  server {{ listen 127.0.0.1:{sends}; proxy_pass 127.0.0.1:{atlas}; proxy_protocol on; }}
}}
"""
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@pytest.mark.engines("lane")
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "nginx"])
def test_haproxy_and_nginx_in_front_say_who_asks(
    option: str, tmp_path: Path, echo: Upstream, start: Start
) -> None:
    is_nginx = option == "nginx"
    if is_nginx and not STREAM_MODULE.exists():
        pytest.skip("nginx has no stream module")
    sends, receives = free_port(), free_port()
    atlas = start(build_config(echo.table()) + listens())
    file = tmp_path / "sender.cfg"
    places = {"sends": sends, "receives": receives, "atlas": atlas.port, "folder": tmp_path}
    places |= {"option": f"{option} check inter 100ms", "module": STREAM_MODULE}
    file.write_text((NGINX_STREAM_CONFIG if is_nginx else HAPROXY_CONFIG).format(**places))
    options = ["-p", tmp_path, "-c", file] if is_nginx else ["-f", file]
    with (
        serving(sends, need("nginx" if is_nginx else "haproxy"), *options),
        Client(sends, source="127.0.0.2") as client,
    ):
        assert all("X-Forwarded-For: 127.0.0.2" in client.get().text for _ in range(3))
