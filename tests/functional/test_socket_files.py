"""Upstreams that are reached through a socket file: gunicorn's and uvicorn's usual way."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect
from websockets.sync.server import unix_serve

from tests.fakes import Conversation, Upstream, build_answer, echoing_fields, named
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.functional.test_interoperability import BODY, DIGEST, WSGI_UPSTREAM
from tests.functional.test_tunnels import echo
from tests.toolkit import Program, build_config, wait_until

ASGI_UPSTREAM = """
import hashlib

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while (event := await receive()).get("more_body"):
        body += event["body"]
    body += event["body"]
    answer = hashlib.sha256(body).hexdigest().encode() if body else b"hello"
    fields = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": answer})
"""

TABLE = {"name": "a", "address": "unix:run/a.sock"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A socket file that is not there yet, in a folder beside the configuration."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "a.sock"


def test_a_socket_file_beside_the_configuration_is_asked(
    file: Path, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstreams.enter_context(echoing_fields(address=f"unix:{file}"))
    atlas = start(build_config(TABLE))

    with atlas.client() as client:
        answers = [client.get().text for _ in range(3)]

    assert all("X-Forwarded-For: 127.0.0.1" in answer for answer in answers)
    assert f"upstream a at unix:{file}, weight 1" in atlas.log


def test_large_bodies_pass_both_ways(
    file: Path, upstreams: contextlib.ExitStack, start: Start
) -> None:
    def send_back(conversation: Conversation) -> None:
        while request := conversation.read_head():
            conversation.send(build_answer(b"".join(conversation.read_body(request))))

    body = bytes(range(256)) * 40_000
    upstreams.enter_context(Upstream(send_back, address=f"unix:{file}"))
    atlas = start(build_config(TABLE))

    with atlas.client() as client:
        for _ in range(3):
            assert client.post(body).body == body


def test_websockets_pass(file: Path, start: Start) -> None:
    with unix_serve(echo, str(file)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        atlas = start(build_config(TABLE))

        with connect(f"ws://127.0.0.1:{atlas.port}/", max_size=None) as websocket:
            for message in ("hello", bytes(1_000_000)):
                websocket.send(message)
                assert websocket.recv(timeout=20) == message
        server.shutdown()
        thread.join()


@pytest.mark.engines("lane")
def test_the_file_may_come_and_go(file: Path, start: Start) -> None:
    atlas = start(build_config(TABLE))
    assert atlas.get().status == 502
    atlas.wait_for("502 for GET / HTTP/1.1: upstream a connect: no such file or directory")

    for name in ("first", "second"):
        with named(name, address=f"unix:{file}"), atlas.client() as client:
            assert [client.get().text for _ in range(3)] == [name] * 3
        assert atlas.get().status == 502
        file.unlink()
    atlas.wait_for("502 for GET / HTTP/1.1: upstream a connect: connection refused")


@pytest.mark.engines("lane")
def test_probes_go_through_the_file(file: Path, start: Start) -> None:
    check = {"path": "/", "interval": 0.1, "fall": 1, "rise": 1}
    atlas = start(build_config(TABLE, health_check=check))
    atlas.wait_for("upstream a is down: connect failed: no such file or directory")
    assert atlas.get().status == 503

    with echoing_fields(address=f"unix:{file}"):
        atlas.wait_for("upstream a is up: status 200")
        assert "Host: example.test" in atlas.get().text


def test_the_breaker_spares_a_file_that_is_not_there(
    file: Path, upstreams: contextlib.ExitStack, start: Start
) -> None:
    other = upstreams.enter_context(named("b"))
    breaker = {"failures": 1, "open_for": 2.0}
    atlas = start(build_config(TABLE, other.table(), circuit_breaker=breaker))
    assert sorted(atlas.get().status for _ in range(4)) == [200, 200, 200, 502]

    upstreams.enter_context(named("a", address=f"unix:{file}"))

    wait_until(lambda: atlas.get().text == "a", "the breaker to close")


@contextlib.contextmanager
def busy(file: Path) -> Iterator[socket.socket]:
    """A server that has not accepted whoever came before, and has room for nobody else."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as before:
        listener.bind(str(file))
        listener.listen(0)
        before.connect(str(file))
        yield listener
    file.unlink()


def test_who_has_no_time_to_accept_is_waited_for(file: Path, start: Start) -> None:
    """nginx would answer 502 at once: "Resource temporarily unavailable"."""
    atlas = start(build_config(TABLE))

    with busy(file) as listener, atlas.client() as client:
        client.send_head()
        assert not select.select([client.sock], [], [], 0.3)[0]
        listener.accept()[0].close()
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(65536)
            accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
            assert client.read_answer().text == "x"


def test_who_never_accepts_is_waited_for_in_vain(file: Path, start: Start) -> None:
    atlas = start(build_config(TABLE, timeouts={"connect": 0.2}))

    with busy(file):
        assert atlas.get().status == 504


@pytest.mark.engines("lane")
def test_it_has_a_name_and_an_address_wherever_upstreams_are_shown(
    file: Path, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstreams.enter_context(named("a", address=f"unix:{file}"))
    atlas = start(build_config(TABLE, admin=ADMIN))
    admin = AdminClient(atlas)
    assert atlas.get().text == "a"

    wait_until(lambda: admin.metrics()["atlas_requests_total a 2xx"] == 1, "the request to count")
    assert f"unix:{file}" in admin.ask("/status.txt")[1]
    assert admin.steer("a", "state=maintenance") == 200
    assert atlas.get().status == 503


@pytest.mark.parametrize("program", ["gunicorn", "uvicorn"])
def test_an_application_server_is_served_through_its_file(
    program: str, file: Path, start: Start
) -> None:
    pytest.importorskip(program)
    source = WSGI_UPSTREAM if program == "gunicorn" else ASGI_UPSTREAM
    (file.parent / "app.py").write_text(source)
    options = {
        "gunicorn": ["--bind=unix:a.sock", "--threads=4", "--no-control-socket", "app:app"],
        "uvicorn": ["--uds=a.sock", "--log-level=warning", "app:app"],
    }
    server = Program([sys.executable, "-m", program, *options[program]], cwd=file.parent)
    try:
        atlas = start(build_config(TABLE))
        wait_until(lambda: atlas.get().status == 200, f"{program} to listen")
        with atlas.client() as client:
            for _ in range(20):
                assert client.get().text == "hello"
                assert client.post(BODY).text == DIGEST
    finally:
        server.end()
