"""WebSockets and other tunnels through Atlas: bytes both ways, and ends passed on as they come."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.fakes import SWITCHED, Conversation, Request, Scripted, named
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Client, build_config, wait_until


def echo(websocket: ServerConnection) -> None:
    for message in websocket:
        if message == "close":
            websocket.close(4321, "as you wish")
            return
        websocket.send(message)


@pytest.fixture
def websocket_port() -> Iterator[int]:
    """A server of the websockets library that sends everything back."""
    with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def atlas(websocket_port: int, start: Start) -> Atlas:
    table = {"name": "a", "address": "127.0.0.1", "port": websocket_port}
    return start(build_config(table))


def open_websocket(atlas: Atlas) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{atlas.port}/chat", max_size=None, compression=None)


def test_websocket_messages_come_back(atlas: Atlas) -> None:
    megabyte = bytes(range(256)) * 4096

    with open_websocket(atlas) as websocket:
        for message in ("hello", "grüße", megabyte, "", b"\0"):
            websocket.send(message)
            assert websocket.recv(timeout=20) == message
        assert websocket.ping().wait(20)


def test_close_codes_pass_both_ways(atlas: Atlas) -> None:
    with open_websocket(atlas) as websocket:
        websocket.send("close")
        with pytest.raises(ConnectionClosed):
            websocket.recv(timeout=20)
        assert (websocket.close_code, websocket.close_reason) == (4321, "as you wish")

    with open_websocket(atlas) as websocket:
        websocket.close(1001, "leaving")
        assert websocket.close_code == 1001


def test_many_websockets_hold_no_worker(atlas: Atlas) -> None:
    with contextlib.ExitStack() as stack:
        websockets = [stack.enter_context(open_websocket(atlas)) for _ in range(50)]
        for number, websocket in enumerate(websockets):
            websocket.send(str(number))
        assert [ws.recv(timeout=20) for ws in websockets] == [str(n) for n in range(50)]
        began = time.monotonic()
        assert atlas.get().status in (400, 426)  # the library's answer to an ordinary request
        assert time.monotonic() - began < 15


def test_a_drain_waits_for_tunnels(atlas: Atlas) -> None:
    with open_websocket(atlas) as websocket:
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients, 1 connected")
        websocket.send("still here")
        assert websocket.recv(timeout=20) == "still here"
    assert atlas.wait() == 0


def test_a_drain_cuts_tunnels_in_the_end(websocket_port: int, start: Start) -> None:
    table = {"name": "a", "address": "127.0.0.1", "port": websocket_port}
    atlas = start(build_config(table, timeouts={"drain": 0.3}))

    with open_websocket(atlas) as websocket:
        atlas.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            websocket.recv(timeout=20)
    assert atlas.wait() == 1


def switch(atlas: Atlas) -> Client:
    """Open a raw tunnel."""
    client = atlas.client()
    client.send_head("GET", "/", Upgrade="raw", Connection="Upgrade")
    assert client.read_head().status == 101
    return client


def test_a_half_closed_tunnel_still_carries_the_other_way(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    def count(conversation: Conversation, _: Request) -> None:
        received = b""
        while not conversation.wait_for_end():
            received += b"."
        conversation.send(b"got %d bytes" % len(received))

    upstream = upstreams.enter_context(Scripted("a", (SWITCHED, count, "close")))
    atlas = start(build_config(upstream.table()))

    with switch(atlas) as client:
        client.send(b"12345")
        client.sock.shutdown(socket.SHUT_WR)

        assert client.sock.makefile("rb").read() == b"got 5 bytes"
    wait_until(lambda: not upstream.connected, "the tunnel to end")


def test_bytes_that_come_with_the_101_belong_to_the_tunnel(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(Scripted("a", (SWITCHED + b"first", "wait")))
    atlas = start(build_config(upstream.table()))

    with switch(atlas) as client:
        assert client._reader.read(5) == b"first"


@pytest.mark.parametrize("way", ["close", "reset"])
def test_an_upstream_that_dies_ends_the_tunnel(
    way: str, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(Scripted("a", (SWITCHED, "wait", way)))
    atlas = start(build_config(upstream.table()))

    with switch(atlas) as client:
        client.send(b"!")
        assert client.is_closed()


def test_a_client_that_dies_ends_the_tunnel(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(Scripted("a", (SWITCHED, "wait")))
    atlas = start(build_config(upstream.table()))

    Conversation(switch(atlas).sock).reset()

    wait_until(lambda: not upstream.connected, "the tunnel to end")


def test_an_idle_tunnel_ends(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(Scripted("a", (SWITCHED, "wait")))
    atlas = start(build_config(upstream.table(), timeouts={"tunnel_idle": 0.5}))

    began = time.monotonic()
    with switch(atlas) as client:
        assert client.is_closed()
        assert 0.4 < time.monotonic() - began < 15


def test_a_side_that_does_not_read_does_not_stop_the_other(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    size = 20_000_000

    def read_all(conversation: Conversation, _: Request) -> None:
        received = 0
        while received < size:
            received += len(conversation.sock.recv(1 << 16))

    # It sends everything before it reads anything at all.
    script = (SWITCHED, b"x" * size, read_all, b"done", "close")
    upstream = upstreams.enter_context(Scripted("a", script))
    atlas = start(build_config(upstream.table()))

    with switch(atlas) as client:
        sender = threading.Thread(target=client.send, args=(b"y" * size,))
        sender.start()
        assert client._reader.read(size) == b"x" * size
        sender.join()
        assert client._reader.read(4) == b"done"
    assert atlas.peak_memory < 100_000_000


def test_many_tunnels_end_at_once_without_a_trace(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(Scripted("a", (SWITCHED, "wait")))
    atlas = start(build_config(upstream.table()))
    atlas.settle()
    before = atlas.descriptors

    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(switch(atlas))

    wait_until(lambda: not upstream.connected, "the tunnels to end")
    wait_until(lambda: atlas.descriptors <= before + 8, "descriptors to be given back")


def keep_alive_timers(port: int) -> list[float]:
    """Seconds until the kernel asks the peers of connections from `port` whether they are there."""
    timers = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[1].endswith(f":{port:04X}") and columns[3] == "01":  # established
            kind, when = columns[5].split(":")
            if kind == "02":
                timers.append(int(when, 16) / 100)
    return timers


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel shows no timers")
def test_peers_that_vanish_are_noticed_on_both_sides(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    peers = []

    def note(conversation: Conversation, _: Request) -> None:
        peers.append(conversation.sock.getpeername()[1])

    upstream = upstreams.enter_context(Scripted("a", (note, SWITCHED, "wait")))
    atlas = start(build_config(upstream.table()))

    with switch(atlas):
        # What is ours of both connections.
        for port in (atlas.port, peers[0]):
            (timer,) = wait_until(lambda: keep_alive_timers(port), "a keep-alive timer")  # noqa: B023
            assert timer <= 60


def test_a_connection_over_which_an_upgrade_was_refused_is_not_used_again(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(named("a"))
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client:
        assert client.get(Upgrade="raw", Connection="Upgrade").text == "a"
        assert client.get().text == "a"
        assert client.get().text == "a"

    assert upstream.accepted == 2
