"""TLS to upstreams: verified, with their names and ours, and never taken for complete when cut."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from websockets.sync.client import connect
from websockets.sync.server import serve

from tests.fakes import Conversation, Request, Scripted, Upstream, build_answer, named
from tests.functional import programs
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.functional.test_access_log import entries_of
from tests.functional.test_host_names import Names
from tests.functional.test_interoperability import BODY
from tests.functional.test_proxy_protocol import read_told
from tests.functional.test_tunnels import echo
from tests.toolkit import ATLAS, Cut, Program, build_config, free_port, wait_until


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def folder(authority: trustme.CA, tmp_path: Path) -> Path:
    """Beside the configuration, with the certificate of the authority."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path


def serve_as(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def a(authority: trustme.CA, upstreams: contextlib.ExitStack) -> Scripted:
    """It proves to be app.test and 127.0.0.1."""
    upstream = upstreams.enter_context(named("a"))
    upstream.tls = serve_as(authority, "app.test", "127.0.0.1")
    return upstream


def with_tls(config: str, **keys: object) -> str:
    """Add `[upstreams.tls]` for the last upstream; it trusts the authority of the tests."""
    settings = {"ca": "ca.pem", **keys}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if value != ""]
    return "\n".join([config, "[upstreams.tls]", *lines, ""])


def send_back(conversation: Conversation, request: Request) -> None:
    conversation.send(build_answer(b"".join(conversation.read_body(request))))


@pytest.mark.usefixtures("folder")
def test_an_upstream_is_spoken_to_over_tls(a: Scripted, start: Start) -> None:
    a.script = ("unread", send_back)
    atlas = start(with_tls(build_config(a.table())))
    body = BODY * 8

    with atlas.client() as client:
        assert client.get().status == 200
        assert client.post(body).body == body
        assert client.post(body).body == body
    assert a.accepted == 1


@pytest.mark.usefixtures("folder")
def test_it_is_asked_for_its_name_and_for_http(a: Scripted, start: Start) -> None:
    asked: list[str | None] = []
    assert a.tls is not None
    a.tls.sni_callback = lambda _sock, name, _context: asked.append(name)
    a.tls.set_alpn_protocols(["h2", "http/1.1"])
    chosen: list[str | None] = []

    def tell(conversation: Conversation, _: Request) -> None:
        assert isinstance(conversation.sock, ssl.SSLSocket)
        chosen.append(conversation.sock.selected_alpn_protocol())
        conversation.send(build_answer(b"a"))

    a.script = tell
    atlas = start(with_tls(build_config(a.table()), server_name="app.test"))
    assert atlas.get().text == "a"
    atlas.reload(with_tls(build_config(a.table())))
    assert atlas.get().text == "a"

    assert asked == ["app.test", None]  # an address is no name that could be asked for
    assert chosen == ["http/1.1"] * 2


@pytest.mark.engines("lane")
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"server_name": "other.test"}, "Hostname mismatch"),
        ({"server_name": "127.0.0.2"}, "IP address mismatch"),
        ({"ca": ""}, "unable to get local issuer certificate"),
    ],
    ids=["another name", "another address", "an unknown authority"],
)
def test_who_does_not_prove_who_it_is_is_not_spoken_to(
    keys: dict[str, str], reason: str, a: Scripted, start: Start
) -> None:
    config = build_config(a.table(), admin=ADMIN, log={"access": "access.log", "format": "json"})
    atlas = start(with_tls(config, **keys))

    assert atlas.get().status == 502

    assert a.requests == 0
    line = atlas.wait_for("502 for GET / HTTP/1.1: upstream a tls: TLS: its certificate is not")
    assert reason in line
    admin = AdminClient(atlas)
    wait_until(lambda: admin.metrics()["atlas_upstream_failures_total a tls"] == 1, "the count")
    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["end"]) == (502, "tls")


@pytest.mark.engines("lane")
@pytest.mark.usefixtures("folder")
def test_an_expired_certificate_is_not_accepted(
    authority: trustme.CA, a: Scripted, start: Start
) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    a.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("app.test", not_after=past).configure_cert(a.tls)
    atlas = start(with_tls(build_config(a.table()), server_name="app.test"))

    assert atlas.get().status == 502
    atlas.wait_for("certificate has expired")


def test_without_verification_anybody_is_spoken_to_and_that_is_warned_of(
    a: Scripted, start: Start
) -> None:
    text = with_tls(build_config(a.table()), ca="", verify=False, server_name="other.test")
    warning = "upstream a: its certificate is not verified"
    atlas = start(text)

    assert atlas.get().text == "a"
    atlas.wait_for(warning)
    atlas.reload(text + "[limits]\nfields = 50\n")
    atlas.wait_for(warning, times=2)


@pytest.mark.usefixtures("folder")
def test_one_that_speaks_no_tls_fails_and_another_is_asked(
    upstreams: contextlib.ExitStack, a: Scripted, start: Start
) -> None:
    def refuse(conversation: Conversation) -> None:
        conversation.sock.recv(65536)
        conversation.send(build_answer(status="400 Bad Request"))

    plain = upstreams.enter_context(Upstream(refuse, name="plain"))
    config = build_config(a.table(), plain.table(), routing={"retries": 1})
    a.tls = None  # of this one nobody asks it
    atlas = start(with_tls(config))

    assert [atlas.get().text for _ in range(4)] == ["a"] * 4

    assert plain.accepted >= 1
    atlas.reload(with_tls(build_config(plain.table())))
    assert atlas.get().status == 502
    atlas.wait_for("upstream plain tls: TLS: what came is not TLS")


@pytest.mark.usefixtures("folder")
def test_a_silent_one_is_given_up_in_time(upstreams: contextlib.ExitStack, start: Start) -> None:
    def say_nothing(conversation: Conversation) -> None:
        while conversation.sock.recv(65536):
            pass

    silent = upstreams.enter_context(Upstream(say_nothing))
    atlas = start(with_tls(build_config(silent.table(), timeouts={"connect": 0.3})))

    assert atlas.get().status == 504


@pytest.mark.usefixtures("folder")
def test_a_certificate_of_ours_is_shown_to_who_wants_to_see_it(
    authority: trustme.CA, folder: Path, a: Scripted, start: Start
) -> None:
    own = authority.issue_cert("atlas.test")
    own.private_key_pem.write_to_path(folder / "own.key")
    own.cert_chain_pems[0].write_to_path(folder / "own.pem")
    assert a.tls is not None
    a.tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(a.tls)
    config = build_config(a.table(), timeouts={"upstream_head": 5})
    atlas = start(with_tls(config, cert="own.pem", key="own.key"))
    assert atlas.get().text == "a"

    atlas.reload(with_tls(config))

    assert atlas.get().status == 502


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_gone_on_with(version: ssl.TLSVersion, a: Scripted, start: Start) -> None:
    resumed: list[bool | None] = []

    def tell(conversation: Conversation, _: Request) -> None:
        assert isinstance(conversation.sock, ssl.SSLSocket)
        resumed.append(conversation.sock.session_reused)
        conversation.send(build_answer(b"a"))

    assert a.tls is not None
    a.tls.minimum_version = a.tls.maximum_version = version
    a.script = tell
    atlas = start(with_tls(build_config(a.table(), pool={"idle": 0})))

    assert [atlas.get().text for _ in range(4)] == ["a"] * 4

    assert resumed == [False, True, True, True]


@pytest.mark.engines("lane")
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("path", ["/health", ""])
def test_probes_speak_it_too(path: str, authority: trustme.CA, a: Scripted, start: Start) -> None:
    check = {"path": path, "interval": 0.1, "fall": 1, "rise": 1}
    a.tls = serve_as(authority, "other.test")
    atlas = start(with_tls(build_config(a.table(), health_check=check)))
    line = atlas.wait_for("upstream a is down")
    assert "its certificate is not accepted" in line
    assert atlas.get().status == 503

    a.tls = serve_as(authority, "127.0.0.1")

    atlas.wait_for("upstream a is up")
    assert atlas.get().text == "a"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("head", ["", "Connection: close\r\n"])
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
def test_a_body_that_ends_without_close_notify_is_cut(
    head: str, is_cut: bool, a: Scripted, start: Start
) -> None:
    def answer(conversation: Conversation, _: Request) -> None:
        conversation.send(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + b"x" * 100_000)
        assert isinstance(conversation.sock, ssl.SSLSocket)
        if not is_cut:
            with contextlib.suppress(OSError):
                conversation.sock.unwrap()

    a.script = (answer, "close")
    atlas = start(with_tls(build_config(a.table())))

    with atlas.client() as client:
        client.send_head()
        if is_cut:
            with pytest.raises((Cut, ConnectionError, ValueError)):
                client.read_answer()
        else:
            assert client.read_answer().body == b"x" * 100_000


@pytest.mark.engines("lane")
@pytest.mark.usefixtures("folder")
def test_files_that_change_are_taken_over(folder: Path, a: Scripted, start: Start) -> None:
    atlas = start(with_tls(build_config(a.table())))
    with atlas.client() as client:
        assert client.get().text == "a"
        other = trustme.CA()

        other.cert_pem.write_to_path(folder / "ca.pem")
        atlas.send_signal(signal.SIGHUP)
        atlas.wait_for("upstreams.tls: other files for a")

        assert client.get().status == 502  # the connection that was kept is not used either
        (folder / "ca.pem").write_text("nonsense")
        atlas.send_signal(signal.SIGHUP)
        atlas.wait_for("ca.pem: holds no certificates (PEM)")
        a.tls = serve_as(other, "127.0.0.1")
        assert client.get().text == "a"


@pytest.mark.engines("lane")
def test_a_process_that_is_replaced_goes_on_with_files_that_were_good(
    folder: Path, a: Scripted, start: Start
) -> None:
    atlas = start(with_tls(build_config(a.table(), listen={"workers": 2}, admin=ADMIN)))
    assert atlas.get().text == "a"
    (folder / "ca.pem").write_text("nonsense")
    atlas.wait_for("ca.pem: holds no certificates (PEM)", times=2)
    pids = AdminClient(atlas).stats()["pids"]

    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: len(set(AdminClient(atlas).stats()["pids"]) - set(pids)) == 1, "another")

    assert [atlas.get().text for _ in range(8)] == ["a"] * 8


@pytest.mark.engines("lane")
@pytest.mark.usefixtures("folder")
def test_a_reload_that_asks_for_proof_does_not_use_what_was_there(
    a: Scripted, start: Start
) -> None:
    atlas = start(with_tls(build_config(a.table()), ca="", verify=False))
    with atlas.client() as client:
        assert client.get().text == "a"

        atlas.reload(with_tls(build_config(a.table()), server_name="other.test"))

        assert client.get().status == 502


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"ca": "none.pem"}, "upstreams.tls.ca: {}/none.pem: no such file or directory"),
        ({"ca": "atlas.toml"}, "upstreams.tls.ca: {}/atlas.toml: holds no certificates (PEM)"),
        (
            {"cert": "ca.pem", "key": "ca.pem"},
            "upstreams.tls.cert: {}/ca.pem holds no private key (PEM)",
        ),
    ],
)
def test_files_that_cannot_be_used_are_told_before_the_start(
    keys: dict[str, str], sentence: str, folder: Path
) -> None:
    table = {"name": "a", "address": "app.test", "port": 443}
    path = folder / "atlas.toml"
    path.write_text(with_tls(build_config(table), **keys))

    for option in ("--check", "--log-level=info"):
        atlas = Program([sys.executable, ATLAS, path, option])
        assert atlas.wait() == 2
        assert sentence.replace("{}", str(folder)) in atlas.log


@pytest.mark.usefixtures("folder")
def test_websockets_pass(authority: trustme.CA, start: Start) -> None:
    context = serve_as(authority, "127.0.0.1")
    with serve(echo, "127.0.0.1", 0, ssl=context, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        table = {"name": "a", "address": "127.0.0.1", "port": server.socket.getsockname()[1]}
        atlas = start(with_tls(build_config(table)))
        with connect(f"ws://127.0.0.1:{atlas.port}/", max_size=None) as websocket:
            for message in ("hello", bytes(1_000_000)):
                websocket.send(message)
                assert websocket.recv(timeout=20) == message
        server.shutdown()
        thread.join()


@pytest.mark.engines("lane")
@pytest.mark.usefixtures("folder")
def test_of_many_servers_behind_a_name_each_has_to_prove_to_be_that(
    authority: trustme.CA,
    upstreams: contextlib.ExitStack,
    tmp_path_factory: pytest.TempPathFactory,
    start: Start,
) -> None:
    names = Names(tmp_path_factory.mktemp("names"))
    names.let("app.test", "127.0.0.2", "127.0.0.3")
    one = upstreams.enter_context(named("one", address="127.0.0.2"))
    two = upstreams.enter_context(named("two", address="127.0.0.3", port=one.port))
    one.tls, two.tls = serve_as(authority, "app.test"), serve_as(authority, "other.test")
    table = {"name": "app", "address": "app.test", "port": one.port, "resolve": 5}
    atlas = start(with_tls(build_config(table)), env=names.env)

    assert [atlas.get().status for _ in range(4)] == [200, 502, 200, 502]
    atlas.wait_for("upstream app@127.0.0.3 tls: TLS: its certificate is not accepted: Hostname")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_proxy_header_goes_before_it(
    mode: str, authority: trustme.CA, upstreams: contextlib.ExitStack, start: Start
) -> None:
    context = serve_as(authority, "127.0.0.1")

    def answer(conversation: Conversation) -> None:
        told = read_told(conversation.sock)
        inner = Conversation(context.wrap_socket(conversation.sock.dup(), server_side=True))
        while inner.read_head():
            inner.send(build_answer(told.encode()))
        inner.close()

    upstream = upstreams.enter_context(Upstream(answer))
    config = build_config(upstream.table(proxy_protocol=2), listen={"mode": mode})
    atlas = start(with_tls(config))

    with atlas.client() as client:
        port = client.sock.getsockname()[1]
        said = f"2 TCP4 127.0.0.1 127.0.0.1 {port} {atlas.port}"
        assert [client.get().text for _ in range(3)] == [said] * 3


@pytest.fixture
def nginx(authority: trustme.CA, folder: Path) -> Iterator[int]:
    """nginx with TLS; it wants to see a certificate, and has a large file."""
    port = free_port()
    for name in ("nginx", "atlas"):
        pair = authority.issue_cert(f"{name}.test")
        pair.private_key_pem.write_to_path(folder / f"{name}.key")
        pair.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    (folder / "file.bin").write_bytes(BODY * 32)
    server = f"""
        listen 127.0.0.1:{port} ssl; root {folder};
        ssl_certificate {folder}/nginx.pem; ssl_certificate_key {folder}/nginx.key;
        ssl_client_certificate {folder}/ca.pem; ssl_verify_client on;
        location = /who {{ return 200 "$ssl_client_verify $ssl_server_name"; }}
    """
    with programs.nginx(folder, port, server):
        yield port


def test_nginx_is_an_upstream(nginx: int, start: Start) -> None:
    table = {"name": "a", "address": "127.0.0.1", "port": nginx}
    check = {"path": "/who", "interval": 0.1, "fall": 1}
    keys = {"server_name": "nginx.test", "cert": "atlas.pem", "key": "atlas.key"}
    atlas = start(with_tls(build_config(table, health_check=check), **keys))

    with atlas.client() as client:
        assert [client.get("/who").text for _ in range(5)] == ["SUCCESS nginx.test"] * 5
        assert client.get("/file.bin").body == BODY * 32
    assert "is down" not in atlas.log
