"""Mode "tcp": connections passed on byte by byte, whoever speaks first and whatever they say."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from atlas_pkg.proxying.tcp import HALF_CLOSED_LIMIT
from tests.fakes import Conversation, Upstream, black_hole
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.functional.programs import need
from tests.toolkit import Atlas, Client, Program, build_config, wait_until

MEGABYTE = bytes(range(256)) * 4096


def build(*upstreams: Mapping[str, object], **tables: Mapping[str, object]) -> str:
    listen = {"mode": "tcp", **tables.pop("listen", {})}
    return build_config(*upstreams, listen=listen, **tables)


def greeting(name: str) -> Upstream:
    """An upstream that speaks first, and then sends everything back, until the client has ended."""

    def serve(conversation: Conversation) -> None:
        conversation.send(name.encode())
        while data := conversation.sock.recv(262_144):
            conversation.send(data)
        conversation.send(b"bye")

    return Upstream(serve, name=name)


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(greeting("a"))


@pytest.fixture
def b(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(greeting("b"))


def read(client: Client, count: int) -> bytes:
    return b"".join(client._read(count))


def ask(atlas: Atlas, times: int) -> Counter[str]:
    """Who greets so many clients, one after the other."""
    greeted: Counter[str] = Counter()
    for _ in range(times):
        with atlas.client() as client:
            greeted[read(client, 1).decode()] += 1
    return greeted


def entries_of(atlas: Atlas, count: int) -> list[dict[str, Any]]:
    path = atlas.path.with_name("access.log")
    wait_until(lambda: path.read_bytes().count(b"\n") >= count, "the log")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_upstream_may_speak_first(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table()))

    with atlas.client() as client:
        assert read(client, 1) == b"a"


def test_bytes_pass_both_ways_and_so_does_the_end_of_one(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table()))

    with atlas.client() as client:
        assert read(client, 1) == b"a"
        client.send(b"\0\r\n\r\nGET")
        assert read(client, 8) == b"\0\r\n\r\nGET"
        threading.Thread(target=client.send, args=(MEGABYTE * 8,), daemon=True).start()
        assert read(client, len(MEGABYTE) * 8) == MEGABYTE * 8
        client.sock.shutdown(socket.SHUT_WR)
        assert read(client, 3) == b"bye"
        assert client.is_closed()


@pytest.mark.slow  # longer than a WebSocket would be given
def test_a_whole_question_may_wait_long_for_its_answer(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    def think(conversation: Conversation) -> None:
        while conversation.sock.recv(1024):
            pass
        time.sleep(HALF_CLOSED_LIMIT + 2.0)
        conversation.send(b"42")

    atlas = start(build(upstreams.enter_context(Upstream(think)).table()))

    with atlas.client() as client:
        client.sock.settimeout(60.0)
        client.send(b"?")
        client.sock.shutdown(socket.SHUT_WR)
        assert read(client, 2) == b"42"


def test_each_connection_is_a_choice_of_its_own(a: Upstream, b: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), b.table()))
    assert ask(atlas, 6) == {"a": 3, "b": 3}

    atlas.reload(build(a.table(weight=0), b.table()))

    assert ask(atlas, 3) == {"b": 3}


def test_a_client_is_known_by_its_address(a: Upstream, b: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), b.table(), routing={"strategy": "ip_hash"}))

    assert len(ask(atlas, 6)) == 1


def test_connecting_is_tried_elsewhere(a: Upstream, start: Start) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = {"name": "gone", "address": "127.0.0.1", "port": closed.getsockname()[1]}
        text = {"access": "access.log", "format": "json"}
        atlas = start(build(gone, a.table(), routing={"retries": 1}, log=text))

        assert ask(atlas, 4) == {"a": 4}

    assert max(entry["retries"] for entry in entries_of(atlas, 4)) == 1


def test_an_upstream_that_cannot_be_reached_closes_the_connection_without_a_word(
    start: Start,
) -> None:
    with black_hole() as port:
        table = {"name": "a", "address": "127.0.0.1", "port": port}
        log = {"access": "access.log", "format": "json"}
        atlas = start(build(table, timeouts={"connect": 0.2}, log=log))

        with atlas.client() as client:
            assert client.is_closed()

    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["end"]) == (504, "connect-timeout")


def test_without_an_upstream_the_connection_is_closed(start: Start) -> None:
    atlas = start(build(log={"access": "access.log", "format": "json"}))

    with atlas.client() as client:
        assert client.is_closed()

    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["end"], entry["upstream"]) == (503, "no-upstream", None)


def test_the_breaker_hears_of_connecting(a: Upstream, start: Start) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = {"name": "gone", "address": "127.0.0.1", "port": closed.getsockname()[1]}
        breaker = {"failures": 2, "open_for": 60}
        atlas = start(build(gone, a.table(), routing={"retries": 1}, circuit_breaker=breaker))
        ask(atlas, 8)

    atlas.wait_for("upstream gone: circuit breaker open")
    assert atlas.count("upstream gone connect") <= 2


def test_probes_take_an_upstream_out(a: Upstream, b: Upstream, start: Start) -> None:
    check = {"interval": 0.05, "timeout": 10, "fall": 1, "rise": 1}
    atlas = start(build(a.table(), b.table(), health_check=check))
    b.close()

    atlas.wait_for("upstream b is down")

    assert ask(atlas, 4) == {"a": 4}


def test_a_full_upstream_lets_the_next_one_wait(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(max_connections=1)))

    with atlas.client() as first, contextlib.ExitStack() as stack:
        assert read(first, 1) == b"a"
        second = stack.enter_context(atlas.client())
        second.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.sock.recv(1)
        first.close()
        second.sock.settimeout(20)
        assert second.sock.recv(1) == b"a"


@pytest.mark.engines("lane")
def test_clients_that_say_nothing_cost_no_thread(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), listen={"max_threads": 16}))

    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(200):
            client = stack.enter_context(atlas.client())
            assert read(client, 1) == b"a"
            clients.append(client)
        assert atlas.threads < 40
        clients[0].send(b"hello")
        assert read(clients[0], 5) == b"hello"


def test_a_client_that_does_not_read_stops_nobody_else(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table()))

    with atlas.client() as deaf, atlas.client() as client:
        deaf.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            deaf.send(MEGABYTE * 64)  # comes back, and is not taken
        assert read(client, 1) == b"a"
        client.send(b"hello")
        assert read(client, 5) == b"hello"
    assert atlas.peak_memory < 150_000_000


def test_silence_ends_a_connection_in_time(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), timeouts={"tunnel_idle": 0.3}))

    with atlas.client() as client:
        assert read(client, 1) == b"a"
        assert client.is_closed()
    wait_until(lambda: not a.connected, "the upstream to hear of it")


def test_an_upstream_that_dies_ends_its_connections(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.send(b"x")
        conversation.sock.recv(1)
        conversation.reset()

    upstream = upstreams.enter_context(Upstream(serve))
    atlas = start(build(upstream.table(), log={"access": "access.log", "format": "json"}))

    with atlas.client() as client:
        assert read(client, 1) == b"x"
        client.send(b"!")
        with pytest.raises(ConnectionResetError):  # no end: something may be missing
            client.sock.recv(1)

    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["end"]) == (200, "upstream-cut")


def test_a_client_that_breaks_off_is_no_end_of_input_for_its_upstream(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    heard: list[Exception | bytes] = []

    def serve(conversation: Conversation) -> None:
        conversation.send(b"x")
        try:
            heard.append(conversation.sock.recv(1))
        except ConnectionError as error:
            heard.append(error)

    atlas = start(build(upstreams.enter_context(Upstream(serve)).table()))
    client = socket.create_connection(("127.0.0.1", atlas.port))
    assert client.recv(1) == b"x"

    Conversation(client).reset()

    wait_until(lambda: heard, "the upstream to hear of it")
    assert isinstance(heard[0], ConnectionResetError)


def test_a_connection_is_one_line_when_it_ends(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), log={"access": "access.log", "format": "json"}))
    path = atlas.path.with_name("access.log")

    with atlas.client() as client:
        assert read(client, 1) == b"a"
        client.send(b"hello")
        assert read(client, 5) == b"hello"
        assert path.read_text() == ""
        client.sock.shutdown(socket.SHUT_WR)
        assert read(client, 3) == b"bye"

    (entry,) = entries_of(atlas, 1)
    assert (entry["protocol"], entry["method"], entry["target"]) == ("TCP", None, None)
    assert (entry["status"], entry["end"], entry["upstream"]) == (200, "tunnel", "a")
    assert (entry["bytes_in"], entry["bytes_out"]) == (5, 9)


def test_the_combined_line_has_status_and_bytes(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), log={"access": "-"}))

    ask(atlas, 1)

    line = atlas.wait_for('"TCP" 200 4 "-" "-"', printed=True)
    assert line.startswith("127.0.0.1 - - [")


def test_connections_and_bytes_are_counted(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), admin=ADMIN))
    ask(atlas, 3)

    admin = AdminClient(atlas)
    wait_until(lambda: admin.metrics()["atlas_requests_total a 2xx"] == 3, "the count")
    assert admin.metrics()["atlas_bytes_total out"] == 12  # "a" and "bye" three times


def test_a_drain_waits_for_connections_and_then_cuts_them(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), timeouts={"drain": 3.0}))

    with atlas.client() as client, atlas.client() as stays:
        assert read(client, 1) == read(stays, 1) == b"a"
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients, 2 connected")
        client.send(b"still here")
        assert read(client, 10) == b"still here"
        client.close()
        assert stays.is_closed()
    assert atlas.wait() == 1


def test_a_reload_leaves_connections_alone(a: Upstream, b: Upstream, start: Start) -> None:
    atlas = start(build(a.table()))

    with atlas.client() as client:
        assert read(client, 1) == b"a"
        atlas.reload(build(b.table()))
        assert ask(atlas, 2) == {"b": 2}
        client.send(b"still here")
        assert read(client, 10) == b"still here"


def test_a_proxy_in_front_says_who_the_client_is(a: Upstream, start: Start) -> None:
    log = {"access": "access.log", "format": "json"}
    atlas = start(build(a.table(), log=log, **{"listen.proxy_protocol": {"from": ["127.0.0.1"]}}))

    with atlas.client() as client:
        client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 443\r\nhello")
        assert read(client, 6) == b"ahello"
    with atlas.client() as client:
        client.send(b"hello, I am nobody's\r\n")
        assert client.is_closed()

    seen = sorted((entry["client"], entry["status"]) for entry in entries_of(atlas, 2))
    assert seen == [("127.0.0.1", 400), ("192.0.2.7", 200)]


def test_an_upstream_may_be_a_socket_file(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "db.sock"))
        listener.listen()
        atlas = start(build({"name": "a", "address": "unix:db.sock"}))

        with atlas.client() as client:
            client.send(b"hello")
            sock, _ = listener.accept()
            with sock:
                assert sock.recv(5) == b"hello"
                sock.sendall(b"from a file")
                assert read(client, 11) == b"from a file"


def test_tls_passes_untouched(upstreams: contextlib.ExitStack, start: Start) -> None:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("db.test").configure_cert(serving)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(asking)

    def serve(conversation: Conversation) -> None:
        with serving.wrap_socket(conversation.sock.dup(), server_side=True) as secured:
            secured.sendall(secured.recv(100).upper())

    atlas = start(build(upstreams.enter_context(Upstream(serve)).table()))

    with Client(atlas.port, tls=asking, name="db.test") as client:
        client.send(b"secret")
        assert read(client, 6) == b"SECRET"


@pytest.mark.engines("lane")
def test_redis_and_its_own_benchmark(start: Start) -> None:
    server, benchmark = need("redis-server"), need("redis-benchmark")
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket may not be long
        file = Path(folder) / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(file), "--save", "", "--dir", folder]
        program = Program([server, *options])
        try:
            wait_until(file.exists, "Redis")
            atlas = start(build({"name": "redis", "address": f"unix:{file}"}))
            load = Program(
                [benchmark, "-p", str(atlas.port), "-n", "3000", "-c", "20", "-t", "set,get,lpush"]
            )
            assert load.wait(60) == 0
            assert sum("requests completed" in line for line in load.printed) == 3
            assert "rror" not in "\n".join([*load.printed, *load.lines])
        finally:
            program.end()
