"""TLS to clients, as they meet it; upstreams are plain."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests import toolkit
from tests.fakes import (
    Conversation,
    Upstream,
    answering,
    build_answer,
    digesting,
    echoing_fields,
)
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import (
    ATLAS,
    DEADLINE,
    ROOT,
    Atlas,
    Client,
    Cut,
    build_config,
    free_port,
    wait_until,
)

BULK = bytes(range(256)) * 20_000


class Authority:
    """Signs certificates, and knows how to trust them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = trustme.CA()

    def write(self, file: str, *names: str, good_for: float = 90.0) -> None:
        """Write FILE.pem and FILE.key, as careful programs do: whole, with a rename each."""
        self.put(file, self.issue(*names, good_for=good_for))

    def issue(self, *names: str, good_for: float = 90.0) -> trustme.LeafCert:
        ends = datetime.now(UTC) + timedelta(days=good_for)
        return self.ca.issue_cert(*names, not_before=ends - timedelta(days=200), not_after=ends)

    def put(self, file: str, pair: trustme.LeafCert) -> None:
        chain = b"".join(blob.bytes() for blob in pair.cert_chain_pems)
        for suffix, data in ((".pem", chain), (".key", pair.private_key_pem.bytes())):
            new = self._folder / f"{file}{suffix}.new"
            new.write_bytes(data)
            new.replace(self._folder / f"{file}{suffix}")

    def context(self, **attributes: object) -> ssl.SSLContext:
        """A client's, which trusts what was signed."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        for name, value in attributes.items():
            setattr(context, name, value)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.write("cert", "atlas.test", "default.test")
    return made


@pytest.fixture
def echo(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(echoing_fields())


def with_tls(config: str, *hosts: str, **keys: str) -> str:
    """Add `[listen.tls]`, and a certificate for each of `hosts` in a file of that name."""
    lines = ["[listen.tls]", 'cert = "cert.pem"', 'key = "cert.key"']
    lines += [f'{key} = "{value}"' for key, value in keys.items()]
    for host in hosts:
        file = host.replace("*", "any")
        lines += ["[[listen.tls.hosts]]", f'names = ["{host}"]']
        lines += [f'cert = "{file}.pem"', f'key = "{file}.key"']
    return "\n".join([config, *lines, ""])


@pytest.fixture
def atlas(authority: Authority, echo: Upstream, start: Start) -> Atlas:  # noqa: ARG001
    return start(with_tls(build_config(echo.table())))


Connect = Callable[..., Client]


def connect(atlas: Atlas, authority: Authority, **keys: object) -> Client:
    return Client(atlas.port, **{"tls": authority.context(), **keys})  # type: ignore[arg-type]


def test_the_readmes_own_file_speaks_https_once_its_line_counts(
    authority: Authority, echo: Upstream, start: Start, tmp_path: Path
) -> None:
    section = (ROOT / "README.md").read_text().partition("## The same with your own file")[2]
    text = section.partition("```toml\n")[2].partition("```")[0]
    assert "# tls = " in text
    text = text.replace("# tls = ", "tls = ").replace(
        "port = 8080", f"port = 0\nlanes = {toolkit.LANES}"
    )
    text = text.replace("3001", str(echo.port)).replace("3002", str(free_port()))
    (tmp_path / "cert.key").rename(tmp_path / "key.pem")
    atlas = start(text)

    with connect(atlas, authority) as client:
        assert client.get().status == 200


def test_requests_are_answered_and_upstreams_hear_of_https(
    atlas: Atlas, authority: Authority
) -> None:
    with connect(atlas, authority) as client:
        answers = [client.get(X_Forwarded_Proto="http") for _ in range(5)]

        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.version() == "TLSv1.3"
        assert client.sock.selected_alpn_protocol() == "http/1.1"

    assert {answer.status for answer in answers} == {200}
    assert all("X-Forwarded-Proto: https" in answer.text for answer in answers)


def shown(atlas: Atlas, authority: Authority, name: str | None) -> set[str]:
    """The names in the certificate that a client is shown who asks for `name`."""
    context = authority.context(check_hostname=False)
    with connect(atlas, authority, tls=context, name=name) as client:
        assert client.get().status == 200
        assert isinstance(client.sock, ssl.SSLSocket)
        certificate = client.sock.getpeercert()
    assert certificate is not None
    names: Any = certificate["subjectAltName"]
    return {value for _, value in names}


def test_the_name_that_is_asked_for_chooses_the_certificate(
    authority: Authority, echo: Upstream, start: Start
) -> None:
    for host in ("one.test", "*.two.test", "www.two.test"):
        authority.write(host.replace("*", "any"), host)
    atlas = start(with_tls(build_config(echo.table()), "one.test", "*.two.test", "www.two.test"))

    assert shown(atlas, authority, "one.test") == {"one.test"}
    assert shown(atlas, authority, "ONE.test") == {"one.test"}
    assert shown(atlas, authority, "api.two.test") == {"*.two.test"}
    assert shown(atlas, authority, "www.two.test") == {"www.two.test"}
    for name in ("a.b.two.test", "two.test", "other.test", "localhost", None):
        assert shown(atlas, authority, name) == {"atlas.test", "default.test"}


def test_requests_in_one_record_are_all_answered(atlas: Atlas, authority: Authority) -> None:
    with connect(atlas, authority) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
        answers = [client.read_answer() for _ in range(20)]

    assert {answer.status for answer in answers} == {200}


def test_a_head_may_come_in_many_records(atlas: Atlas, authority: Authority) -> None:
    with connect(atlas, authority) as client:
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\n\r\n":
            client.send(bytes([byte]))
        assert client.read_answer().status == 200
        assert client.get().status == 200


def test_a_large_upload_arrives_whole(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    atlas = start(with_tls(build_config(upstreams.enter_context(digesting()).table())))

    with connect(atlas, authority) as client:
        answers = [client.post(BULK) for _ in range(2)]

    assert all(hashlib.sha256(BULK).hexdigest() in answer.text for answer in answers)


def test_a_large_answer_arrives_whole(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    bulk = upstreams.enter_context(answering(build_answer(BULK)))
    atlas = start(with_tls(build_config(bulk.table())))

    with connect(atlas, authority) as client:
        assert client.get().body == BULK


def test_a_request_may_follow_an_upload_in_the_same_record(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    atlas = start(with_tls(build_config(upstreams.enter_context(digesting()).table())))

    with connect(atlas, authority) as client:
        client.send_head("POST", Content_Length=str(len(BULK)))
        client.send(BULK[:-1])
        client.send(BULK[-1:] + b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy")
        first, second = client.read_answer(), client.read_answer()

    assert hashlib.sha256(BULK).hexdigest() in first.text
    assert hashlib.sha256(b"xy").hexdigest() in second.text


def test_pieces_of_an_answer_arrive_one_by_one(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    has_come = threading.Semaphore(0)

    def serve(conversation: Conversation) -> None:
        conversation.read_head()
        conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        conversation.send(b"5\r\nevent\r\n")
        for _ in range(4):
            if has_come.acquire(timeout=20):
                conversation.send(b"5\r\nevent\r\n")

    upstream = upstreams.enter_context(Upstream(serve))
    atlas = start(with_tls(build_config(upstream.table())))

    with connect(atlas, authority) as client:
        client.send_head()
        pieces = client.read_body(client.read_head())
        for _ in range(5):
            assert next(pieces) == b"event"
            has_come.release()


def send_and_read_back(client: Client, data: bytes) -> None:
    """Send to what echoes: one piece is on its way back while the next is on its way there.

    In one thread, since before Python 3.13 two may not use a TLS socket at the same time.
    """
    pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    client.send(pieces[0])
    for before, after in itertools.pairwise([*pieces, b""]):
        client.send(after)
        assert b"".join(client._read(len(before))) == before


def test_a_tunnel_passes_bytes_both_ways(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.read_head()
        conversation.send(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello")
        while data := conversation.sock.recv(65536):
            conversation.send(data)

    upstream = upstreams.enter_context(Upstream(serve))
    atlas = start(with_tls(build_config(upstream.table())))

    with connect(atlas, authority) as client:
        client.send_head(Connection="Upgrade", Upgrade="echo")
        assert client.read_head().status == 101
        assert b"".join(client._read(5)) == b"hello"
        send_and_read_back(client, BULK)


def test_an_early_answer_reaches_a_client_that_is_still_sending(
    authority: Authority, echo: Upstream, start: Start
) -> None:
    atlas = start(with_tls(build_config(echo.table(), limits={"body": 1000})))

    with connect(atlas, authority) as client:
        client.send_head("POST", Content_Length=str(len(BULK)))
        client.send(BULK[:200_000])
        assert client.read_answer().status == 413


@pytest.mark.parametrize("is_whole", [True, False])
def test_only_what_is_whole_ends_with_close_notify(
    is_whole: bool, authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.read_head()
        if is_whole:
            conversation.send(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        else:
            conversation.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nall of it"
            )
            conversation.reset()

    atlas = start(with_tls(build_config(upstreams.enter_context(Upstream(serve)).table())))

    with connect(atlas, authority) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        pieces = client.read_body(client.read_head())
        if is_whole:
            assert b"".join(pieces) == b"all of it"
        else:
            with pytest.raises(OSError, match=r"EOF|reset"):
                b"".join(pieces)


def test_a_client_that_has_said_close_notify_and_nothing_more_is_answered_and_let_go(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    may_answer = threading.Event()

    def serve(conversation: Conversation) -> None:
        conversation.read_head()
        assert may_answer.wait(20)
        conversation.send(build_answer(b"late"))
        conversation.wait_for_end()

    config = build_config(
        upstreams.enter_context(Upstream(serve)).table(), timeouts={"client_gone": 20.0}
    )
    atlas = start(with_tls(config))

    with connect(atlas, authority) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        client.send_head()
        client.sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            client.sock.unwrap()  # close-notify alone: the connection below stays open
        may_answer.set()
        with socket.socket(fileno=client.sock.detach()) as below:
            below.settimeout(20)
            while below.recv(65536):
                pass


def test_a_client_that_leaves_frees_its_upstream(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.read_head()
        conversation.wait_for_end()

    upstream = upstreams.enter_context(Upstream(serve))
    config = build_config(upstream.table(), timeouts={"client_gone": 0.1})
    atlas = start(with_tls(config))

    with connect(atlas, authority) as client:
        client.send_head()
        wait_until(lambda: upstream.connected == 1, "the request")
        assert isinstance(client.sock, ssl.SSLSocket)
        with contextlib.suppress(OSError):
            client.sock.settimeout(0.05)
            client.sock.unwrap()
        client.sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: upstream.connected == 0, "the end")


# Together with other things


def test_a_proxy_header_comes_before_the_handshake(
    authority: Authority, echo: Upstream, start: Start
) -> None:
    config = with_tls(build_config(echo.table()))
    atlas = start(f'{config}[listen.proxy_protocol]\nfrom = ["127.0.0.1"]\n')

    with socket.create_connection(("127.0.0.1", atlas.port), 20) as sock:
        sock.sendall(b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n")
        with authority.context().wrap_socket(sock, server_hostname="atlas.test") as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))

    assert b"X-Forwarded-For: 192.0.2.1\r\n" in answer.replace(b"\n", b"\r\n")
    assert b"X-Forwarded-Proto: https" in answer


def test_what_is_no_http_can_be_had_over_tls(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.send(b"welcome")  # it speaks first
        while data := conversation.sock.recv(65536):
            conversation.send(data)

    upstream = upstreams.enter_context(Upstream(serve))
    atlas = start(with_tls(build_config(upstream.table(), listen={"mode": "tcp"})))

    with connect(atlas, authority) as client:
        assert b"".join(client._read(7)) == b"welcome"
        send_and_read_back(client, BULK)


def test_a_connection_that_is_cut_does_not_look_ended(
    authority: Authority, upstreams: contextlib.ExitStack, start: Start
) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.send(b"half of")
        conversation.sock.recv(1)
        conversation.reset()

    upstream = upstreams.enter_context(Upstream(serve))
    atlas = start(with_tls(build_config(upstream.table(), listen={"mode": "tcp"})))

    with connect(atlas, authority) as client:
        assert b"".join(client._read(7)) == b"half of"
        client.send(b"?")
        with pytest.raises(OSError, match=r"EOF|reset"):
            client.sock.recv(1)


# What is no TLS, or never becomes it


def test_plain_http_is_told_so_in_plain_text(atlas: Atlas, authority: Authority) -> None:
    with atlas.client() as client:
        answer = client.get()
        assert client.is_closed()

    assert (answer.status, answer.get("Connection")) == (400, "close")
    assert b"TLS" in answer.body
    with connect(atlas, authority) as client:
        assert client.get().status == 200


def test_tls_on_a_plain_port_is_named_in_the_log(
    authority: Authority, echo: Upstream, start: Start
) -> None:
    atlas = start(build_config(echo.table()))

    with pytest.raises(OSError, match=r"wrong version|WRONG_VERSION|EOF|reset"):
        connect(atlas, authority)

    atlas.wait_for("refused with 400: this port speaks http: TLS was sent")


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x16\x03\x01\x00\x05hello", b"\x16" + b"\x00" * 99],
    ids=["an oversized record", "no hello", "zeros"],
)
def test_garbage_ends_its_connection_and_no_other(
    garbage: bytes, atlas: Atlas, authority: Authority
) -> None:
    with atlas.client() as client:
        with contextlib.suppress(ConnectionError):
            client.send(garbage)
        client.sock.settimeout(20)
        with contextlib.suppress(ConnectionError):
            while client.sock.recv(1000):
                pass  # an alert may come first

    atlas.wait_for("no TLS handshake")
    with connect(atlas, authority) as client:
        assert client.get().status == 200


def test_handshakes_that_are_not_finished_end_in_time(
    authority: Authority, echo: Upstream, start: Start
) -> None:
    config = build_config(echo.table(), timeouts={"tls_handshake": 2.0})
    atlas = start(with_tls(config))

    with atlas.client() as silent, atlas.client() as slow:
        slow.send(b"\x16\x03\x01\x02\x00")
        assert silent.is_closed()
        assert slow.is_closed()

    with connect(atlas, authority) as client:
        assert client.get().status == 200


@pytest.mark.engines("lane")
def test_handshakes_that_are_not_finished_hold_no_thread(
    atlas: Atlas, authority: Authority
) -> None:
    with connect(atlas, authority) as client:
        assert client.get().status == 200
        before = atlas.threads
        with contextlib.ExitStack() as stack:
            for number in range(300):
                half = stack.enter_context(atlas.client())
                half.send(b"\x16\x03\x01\x02\x00"[: 1 + number % 5])
            assert client.get().status == 200
            assert atlas.threads < before + 30  # of 300; some threads of its own may come late
            with connect(atlas, authority) as another:
                assert another.get().status == 200


def test_a_client_that_has_shaken_hands_may_take_its_time(
    authority: Authority, echo: Upstream, start: Start
) -> None:
    atlas = start(with_tls(build_config(echo.table(), timeouts={"tls_handshake": 2.0})))

    with connect(atlas, authority) as client:
        assert not client.is_closed(within=3.5)
        client.sock.settimeout(20)


@pytest.mark.engines("lane")
def test_an_old_version_is_refused(authority: Authority, echo: Upstream, start: Start) -> None:
    atlas = start(with_tls(build_config(echo.table()), min_version="1.3"))

    old = authority.context(maximum_version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLError):
        connect(atlas, authority, tls=old)
    with connect(atlas, authority) as client:
        assert client.get().status == 200


# The port that leads here


def with_redirect(config: str, **keys: str) -> tuple[str, int]:
    """Add `http_redirect` to `[listen]`; also returns the port."""
    port = free_port()
    lines = [f"http_redirect = {port}", *(f'{key} = "{value}"' for key, value in keys.items())]
    return config.replace("[listen]", "\n".join(["[listen]", *lines])), port


@pytest.mark.engines("lane")
def test_only_https_says_that_https_is_to_be_kept_to(
    authority: Authority, echo: Upstream, start: Start
) -> None:
    text = (
        "[forwarding.set_response_fields]\nstrict-transport-security = 'max-age=60'\nX-Set = 'a'\n"
    )
    config, port = with_redirect(with_tls(build_config(echo.table())) + text)
    atlas = start(config)

    with Client(port) as client:
        plain = client.get()
    with connect(atlas, authority) as client:
        encrypted = client.get()

    names = ("Strict-Transport-Security", "X-Set")
    assert [plain.get(name) for name in names] == ["", "a"]
    assert [encrypted.get(name) for name in names] == ["max-age=60", "a"]


@pytest.mark.usefixtures("authority")
def test_http_leads_to_https(echo: Upstream, start: Start) -> None:
    config, port = with_redirect(with_tls(build_config(echo.table(), log={"access": "log"})))
    atlas = start(config)

    with Client(port) as client:
        first = client.get("/a%20b?c=d&e")
        second = client.post(b"")
        client.send(b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n")
        third = client.read_answer()
        client.send(b"GET http://other.test/x HTTP/1.1\r\nHost: a\r\n\r\n")
        fourth = client.read_answer()
    with Client(port) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        hostless = client.read_answer()

    answers = [first, second, third, fourth]
    assert [answer.status for answer in answers] == [308] * 4
    assert [answer.get("Location") for answer in answers] == [
        f"https://example.test:{atlas.port}/a%20b?c=d&e",
        f"https://example.test:{atlas.port}/",
        f"https://[::1]:{atlas.port}/",
        f"https://other.test:{atlas.port}/x",
    ]
    assert hostless.status == 400
    assert echo.requests == 0
    log = atlas.path.parent / "log"
    wait_until(lambda: log.exists() and log.read_text().count(" 308 ") == 4, "the access log")


@pytest.mark.usefixtures("authority")
def test_proofs_for_certificates_are_served(
    echo: Upstream,
    start: Start,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "acme" / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True)
    (folder / "to-ken_1").write_text("to-ken_1.proof")
    (tmp_path / "acme" / "secret").write_text("secret")
    text = with_tls(build_config(echo.table(), listen={"workers": 2, "pin": False}))
    text += '[forwarding]\nset_response_fields = { X-Set = "ours" }\n'
    config, port = with_redirect(text, acme_folder="acme")
    start(config)
    path = "/.well-known/acme-challenge/"

    with Client(port) as client:
        found, again = client.get(f"{path}to-ken_1"), client.get(f"{path}to-ken_1")
        client.send_head("HEAD", f"{path}to-ken_1")
        head = client.read_head()
        beside = [client.get(f"{path}{name}") for name in ("..%2f..%2fsecret", "../../secret", "")]
        missing = client.get(f"{path}to-ken_2")

    assert (found.status, found.text, again.text) == (200, "to-ken_1.proof", "to-ken_1.proof")
    assert (found.get("X-Set"), bool(found.get("Date"))) == ("ours", True)
    assert (head.status, head.get("Content-Length")) == (200, "14")
    assert [answer.status for answer in beside] == [308] * 3
    assert missing.status == 404


# Certificates of clients


def test_who_shows_a_good_certificate_is_made_known_to_upstreams(
    authority: Authority, echo: Upstream, start: Start, tmp_path: Path
) -> None:
    people = trustme.CA()
    people.cert_pem.write_to_path(tmp_path / "people.pem")
    atlas = start(with_tls(build_config(echo.table()), client_ca="people.pem"))
    pair = people.issue_cert("alice@example.com", common_name="alice, of sales")
    context = authority.context()
    pair.configure_cert(context)
    der = ssl.PEM_cert_to_DER_cert(pair.cert_chain_pems[0].bytes().decode())

    with connect(atlas, authority, tls=context) as client:
        answer = client.get(X_Client_Cert_Subject="CN=root", X_Client_Cert_Fingerprint="00").text
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nx_client_cert.subject: CN=root\r\n\r\n")
        again = client.read_answer().text

    assert answer.count("X-Client-Cert-Subject") == again.count("X-Client-Cert-Subject") == 1
    assert r"X-Client-Cert-Subject: CN=alice\, of sales,O" in answer
    assert f"X-Client-Cert-Fingerprint: {hashlib.sha256(der).hexdigest()}" in answer
    assert "CN=root" not in answer + again


def test_a_certificate_with_a_name_that_is_no_text_is_made_known_all_the_same(
    authority: Authority, echo: Upstream, start: Start, tmp_path: Path
) -> None:
    der = write_with_odd_name(tmp_path / "odd.pem")
    atlas = start(with_tls(build_config(echo.table()), client_ca="odd.pem"))
    context = authority.context()
    context.load_cert_chain(tmp_path / "odd.pem")

    with connect(atlas, authority, tls=context) as client:
        answer = client.get(X_Client_Cert_Subject="CN=root").text

    # The library, which stumbles over that name, tells nothing else of it either.
    assert "X-Client-Cert-Subject: \n" in answer
    assert f"X-Client-Cert-Fingerprint: {hashlib.sha256(der).hexdigest()}" in answer


def write_with_odd_name(file: Path) -> bytes:
    """Write a certificate, its own authority, for a name that is not ASCII, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alice")])
    now = datetime.now(UTC)
    odd_name = x509.UnrecognizedExtension(
        x509.SubjectAlternativeName.oid, b"\x30\x04\x82\x02\xff\xfe"
    )
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    certificate = builder.add_extension(odd_name, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    file.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def test_who_shows_none_gets_no_further_than_the_handshake(
    authority: Authority, echo: Upstream, start: Start, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "people.pem")
    atlas = start(with_tls(build_config(echo.table()), client_ca="people.pem"))
    stranger = authority.context()
    trustme.CA().issue_cert("eve@example.com").configure_cert(stranger)

    for context in (authority.context(), stranger):
        with pytest.raises((OSError, Cut)), connect(atlas, authority, tls=context) as client:
            client.get()

    assert echo.requests == 0
    atlas.wait_for("no TLS handshake")


# Certificates that change


def fingerprint(atlas: Atlas, authority: Authority, name: str = "atlas.test") -> bytes:
    context = authority.context(check_hostname=False, verify_mode=ssl.CERT_NONE)
    with connect(atlas, authority, tls=context, name=name) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        return client.sock.getpeercert(binary_form=True) or b""


@pytest.mark.engines("lane")
def test_a_new_pair_is_shown_to_whoever_comes_next(atlas: Atlas, authority: Authority) -> None:
    old = fingerprint(atlas, authority)
    with connect(atlas, authority) as client:
        assert client.get().status == 200

        authority.write("cert", "atlas.test")
        wait_until(lambda: fingerprint(atlas, authority) != old, "the new certificate")

        assert client.get().status == 200
    atlas.wait_for("listen.tls: another certificate, until")


@pytest.mark.engines("lane")
def test_a_broken_pair_changes_nothing(atlas: Atlas, authority: Authority, tmp_path: Path) -> None:
    old = fingerprint(atlas, authority)
    key = (tmp_path / "cert.key").read_bytes()

    (tmp_path / "cert.key").write_bytes(authority.issue("x.test").private_key_pem.bytes())
    atlas.wait_for("are no pair: key values mismatch")
    (tmp_path / "cert.pem").unlink()
    atlas.wait_for("no such file")
    (tmp_path / "cert.pem").write_text("nothing")
    atlas.wait_for("holds no certificate (PEM)")
    assert fingerprint(atlas, authority) == old

    authority.write("cert", "atlas.test")
    wait_until(lambda: fingerprint(atlas, authority) != old, "the new certificate")
    assert key != (tmp_path / "cert.key").read_bytes()


@pytest.mark.engines("lane")
def test_a_refused_file_changes_nothing(atlas: Atlas, authority: Authority) -> None:
    old = fingerprint(atlas, authority)
    config = atlas.path.read_text()

    atlas.rewrite(f'{config}[upstreams.tls]\nca = "missing.pem"\n')
    atlas.wait_for("missing.pem: no such file")
    authority.write("cert", "atlas.test")
    atlas.wait_for("missing.pem: no such file", times=2)
    assert fingerprint(atlas, authority) == old

    atlas.rewrite(config)
    wait_until(lambda: fingerprint(atlas, authority) != old, "the new certificate")


@pytest.mark.engines("lane")
def test_one_that_has_expired_is_not_taken_over(atlas: Atlas, authority: Authority) -> None:
    old = fingerprint(atlas, authority)

    authority.write("cert", "atlas.test", good_for=-1)

    atlas.wait_for("has expired, on ")
    assert fingerprint(atlas, authority) == old


@pytest.mark.engines("lane")
def test_sighup_reads_them_again(
    authority: Authority, echo: Upstream, start: Start, tmp_path: Path
) -> None:
    atlas = start(with_tls(build_config(echo.table())))
    old = fingerprint(atlas, authority)
    authority.write("cert", "atlas.test")
    atlas.send_signal(signal.SIGHUP)

    wait_until(lambda: fingerprint(atlas, authority) != old, "the new certificate")
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.engines("lane")
def test_links_as_kubernetes_and_certbot_swap_them_are_followed(
    authority: Authority, echo: Upstream, start: Start, tmp_path: Path
) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        Authority.put(authority, f"{folder}/tls", authority.issue("atlas.test"))
    (tmp_path / "data").symlink_to("first")
    for suffix in ("pem", "key"):
        (tmp_path / f"cert.{suffix}").unlink()
        (tmp_path / f"cert.{suffix}").symlink_to(f"data/tls.{suffix}")
    atlas = start(with_tls(build_config(echo.table())))
    old = fingerprint(atlas, authority)

    (tmp_path / "new").symlink_to("second")
    (tmp_path / "new").replace(tmp_path / "data")

    wait_until(lambda: fingerprint(atlas, authority) != old, "the new certificate")


def test_tls_can_be_switched_on_while_atlas_runs(
    authority: Authority, echo: Upstream, start: Start
) -> None:
    atlas = start(build_config(echo.table()))
    with atlas.client() as plain:
        assert plain.get().status == 200

        atlas.reload(with_tls(atlas.path.read_text()))

        with connect(atlas, authority) as client:
            assert "https" in client.get().text
        assert "https" not in plain.get().text


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.engines("lane")
def test_sessions_go_on_in_all_worker_processes_and_after_a_rotation(
    version: ssl.TLSVersion, authority: Authority, echo: Upstream, start: Start
) -> None:
    atlas = start(with_tls(build_config(echo.table(), listen={"workers": 2, "pin": False})))
    context = authority.context(maximum_version=version)
    with connect(atlas, authority, tls=context) as client:
        assert client.get().status == 200
        assert isinstance(client.sock, ssl.SSLSocket)
        session = client.sock.session
    old = fingerprint(atlas, authority)

    def is_reused() -> bool:
        with connect(atlas, authority, tls=context, session=session) as client:
            assert client.get().status == 200
            assert isinstance(client.sock, ssl.SSLSocket)
            return bool(client.sock.session_reused)

    # The kernel deals connections out by their port: sixteen all go to one of two once in 32,768.
    assert all(is_reused() for _ in range(16))

    authority.write("cert", "atlas.test")
    atlas.wait_for("another certificate", times=2)
    assert fingerprint(atlas, authority) != old
    assert all(is_reused() for _ in range(16))


@pytest.mark.engines("lane")
def test_what_expires_soon_is_told(authority: Authority, echo: Upstream, start: Start) -> None:
    authority.write("old.test", "old.test", good_for=-3)
    authority.write("soon.test", "soon.test", good_for=13)
    config = build_config(echo.table(), admin=ADMIN)
    atlas = start(with_tls(config, "old.test", "soon.test"))

    assert re.search(r"certificate of old\.test has expired on 20\d\d-\d\d-\d\d", atlas.log)
    assert "certificate of soon.test expires on" in atlas.log
    assert "certificate of default" not in atlas.log
    metrics = AdminClient(atlas).metrics()
    left = metrics["atlas_tls_certificate_expiry_seconds soon.test"] - time.time()
    assert 12.9 * 86_400 < left < 13.1 * 86_400


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ATLAS), "--check", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_check_reads_the_files(authority: Authority, tmp_path: Path) -> None:
    authority.write("one.test", "one.test")
    path = tmp_path / "atlas.toml"
    path.write_text(with_tls("[listen]\nport = 0", "one.test"))
    good = check(path)
    (tmp_path / "one.test.key").write_bytes(authority.issue("x.test").private_key_pem.bytes())
    bad = check(path)

    assert (good.returncode, bad.returncode) == (0, 2)
    assert re.search(r"\n  one\.test: until 20\d\d-\d\d-\d\d\n", good.stdout)
    assert "listen.tls.hosts[0]: " in bad.stderr
    assert "key values mismatch" in bad.stderr


def test_other_protocols_come_through_tls_too(authority: Authority, start: Start) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.send(b"220 ready\r\n")  # the upstream speaks first
        while data := conversation.sock.recv(65_536):
            conversation.send(data)

    with Upstream(serve) as upstream:
        log = {"access": "access.log", "format": "json"}
        atlas = start(with_tls(build_config(upstream.table(), listen={"mode": "tcp"}, log=log)))

        with connect(atlas, authority) as client:
            assert b"".join(client._read(11)) == b"220 ready\r\n"
            send_and_read_back(client, BULK)
        with Client(atlas.port) as client:
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert client.is_closed()
        path = atlas.path.with_name("access.log")
        wait_until(lambda: path.read_text().count("\n") == 2, "two lines")
        assert '"status":400' in path.read_text()


def test_files_come_through_tls_too(authority: Authority, tmp_path: Path, start: Start) -> None:
    root = tmp_path / "www"
    root.mkdir()
    (root / "bulk").write_bytes(BULK)
    (root / "small").write_text("small")
    listen = {"mode": "static", "root": str(root)}
    atlas = start(with_tls(build_config(listen=listen)))

    with connect(atlas, authority) as client:
        assert client.get("/bulk").body == BULK
        assert client.get("/small").body == b"small"
        assert client.get("/bulk", Range="bytes=5-9").body == BULK[5:10]


@pytest.mark.usefixtures("authority")
@pytest.mark.parametrize("behind", ["", '[listen.proxy_protocol]\nfrom = ["127.0.0.1"]\n'])
def test_who_has_not_begun_to_speak_tls_does_not_hold_up_the_end(
    behind: str, echo: Upstream, start: Start
) -> None:
    timeouts = dict.fromkeys(("tls_handshake", "client_head", "drain"), 10 * DEADLINE)
    atlas = start(with_tls(build_config(echo.table(), timeouts=timeouts)) + behind)

    with contextlib.ExitStack() as stack:
        silent_ones = [stack.enter_context(atlas.client()) for _ in range(3)]
        atlas.send_signal(signal.SIGTERM)

        assert all(client.is_closed() for client in silent_ones)
    assert atlas.wait() == 0
