"""Reading, writing and waiting on real TLS connections between two sockets of this machine."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.connect import connect
from atlas_pkg.net.stream import Stream
from atlas_pkg.net.tls import RECORD_BYTES, TlsStream, _escape, build_context
from atlas_pkg.net.tunnel import Relay, Tunnel

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: version.name)
def contexts(
    request: pytest.FixtureRequest, authority: trustme.CA
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's, of one version of TLS."""
    serving = build_context(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("atlas.test").configure_cert(serving)
    asking = build_context(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(asking)
    serving.minimum_version = serving.maximum_version = request.param
    return serving, asking


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def open_pair() -> tuple[Stream, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), 20)
        near, _ = listener.accept()
    return Stream(near, Side.CLIENT), far


class Pair:
    """Atlas's end, and the other one, which blocks and belongs to the test."""

    def __init__(self, stream: TlsStream, far: ssl.SSLSocket) -> None:
        self.stream = stream
        self.far = far

    def send_raw(self, data: bytes) -> None:
        """Send bytes of the connection below TLS."""
        socket.socket.send(self.far, data)

    def end_raw(self) -> None:
        """Close the connection below TLS, without close-notify."""
        socket.socket.shutdown(self.far, socket.SHUT_WR)

    def close(self) -> None:
        self.stream.close()
        self.far.close()


@pytest.fixture
def pair(contexts: Contexts) -> Iterator[Pair]:
    """Atlas as the server, a client of the library as the other end."""
    serving, asking = contexts
    plain, sock = open_pair()
    stream = TlsStream(plain, serving)
    with ThreadPoolExecutor() as pool:
        shaking = pool.submit(
            asking.wrap_socket, sock, server_hostname="atlas.test", suppress_ragged_eofs=False
        )
        stream.shake_hands(20.0)
        far = shaking.result(20)
    made = Pair(stream, far)
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def receive_all(far: ssl.SSLSocket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (more := far.recv(count - len(data))):
        data += more
    return bytes(data)


def test_what_was_sent_arrives_both_ways(pair: Pair) -> None:
    pair.far.sendall(b"hello")
    assert pair.stream.receive(20.0) == b"hello"

    assert pair.stream.send_now(b"good day") == b""
    assert pair.far.recv(100) == b"good day"


def test_nothing_is_none_and_never_waits(pair: Pair) -> None:
    assert pair.stream.receive_now() is None
    assert not pair.stream.is_readable()
    assert not pair.stream.has_ended()
    assert pair.stream.is_silent()


def test_silence_is_a_failure_in_time(pair: Pair) -> None:
    with pytest.raises(StreamError) as caught:
        pair.stream.receive(0.05)

    assert (caught.value.side, caught.value.timed_out) == (Side.CLIENT, True)


def test_half_a_record_is_not_yet_anything(pair: Pair) -> None:
    pair.send_raw(b"\x17\x03\x03\x00\x40only the beginning")
    until(lambda: not pair.stream.is_silent())

    assert pair.stream.receive_now() is None
    assert not pair.stream.is_readable()
    with pytest.raises(StreamError) as caught:
        pair.stream.receive(0.05)
    assert caught.value.timed_out


def test_nothing_rests_unseen_of_a_record_that_was_read_in_part(pair: Pair) -> None:
    pair.far.sendall(b"0123456789")
    view = memoryview(bytearray(4))

    assert pair.stream.receive_into(view, 20.0) == 4

    assert (bytes(view), pair.stream.buffered) == (b"0123", b"456789")
    assert pair.stream.is_readable()


def test_a_large_view_is_filled_by_many_records(pair: Pair) -> None:
    data = bytes(range(256)) * 1024
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(pair.far.sendall, data)
        received, view = bytearray(), memoryview(bytearray(100_000))
        while len(received) < len(data):
            count = pair.stream.receive_into(view[: len(data) - len(received)], 20.0)
            received += bytes(view[:count]) + pair.stream.buffered
            pair.stream.buffered = b""
        sending.result(20)

    assert bytes(received) == data


def test_much_is_sent_to_one_that_reads_late(pair: Pair) -> None:
    data = bytes(range(256)) * 40_000
    view, rest = memoryview(data), len(data)
    while (sent := pair.stream.send_some(view[len(data) - rest :])) > 0:
        rest -= sent
    assert 0 < rest < len(data)

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(receive_all, pair.far, len(data))
        pair.stream.send_parts([view[len(data) - rest :][:100], view[len(data) - rest :][100:]], 20)
        assert reading.result(20) == data


def test_one_that_does_not_read_is_a_failure_in_time(pair: Pair) -> None:
    with pytest.raises(StreamError) as caught:
        pair.stream.send(bytes(50_000_000), 0.05)

    assert (caught.value.side, caught.value.timed_out) == (Side.CLIENT, True)


def test_a_rest_that_is_sent_later_is_complete(pair: Pair) -> None:
    data = bytes(range(256)) * 40_000

    rest = pair.stream.send_now(data)
    assert rest

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(receive_all, pair.far, len(data))
        pair.stream.send(rest, 20.0)
        assert reading.result(20) == data


def test_one_thread_may_read_while_another_writes(pair: Pair) -> None:
    data = bytes(range(256)) * 20_000

    def echo() -> None:
        left = len(data)
        while left:
            got = pair.far.recv(65536)
            pair.far.sendall(got)
            left -= len(got)

    with ThreadPoolExecutor() as pool:
        echoing = pool.submit(echo)
        sending = pool.submit(pair.stream.send, data, 20.0)
        received = b""
        while len(received) < len(data):
            received += pair.stream.receive(20.0)
        sending.result(20)
        echoing.result(20)

    assert received == data


def test_close_notify_is_the_end(pair: Pair) -> None:
    pair.far.sendall(b"last")
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(pair.far.unwrap)
        assert pair.stream.receive(20.0) == b"last"
        assert pair.stream.receive(20.0) == b""
        assert pair.stream.has_ended()
        assert pair.stream.is_readable()
        assert pair.stream.receive_into(memoryview(bytearray(9)), 20.0) == 0
        pair.stream.close()
        closing.result(20)


def test_an_end_without_close_notify_is_a_failure(pair: Pair) -> None:
    pair.far.sendall(b"last")
    pair.end_raw()
    assert pair.stream.receive(20.0) == b"last"

    for read in (pair.stream.receive_now, lambda: pair.stream.receive(20.0)):
        with pytest.raises(StreamError) as caught:
            read()
        assert "close-notify" in caught.value.reason
    with pytest.raises(StreamError):
        pair.stream.receive_into(memoryview(bytearray(9)), 20.0)
    assert pair.stream.has_ended()
    assert pair.stream.is_readable()


def test_what_came_before_a_cut_is_read(pair: Pair) -> None:
    pair.far.sendall(bytes(2 * RECORD_BYTES))
    pair.end_raw()

    view = memoryview(bytearray(3 * RECORD_BYTES))
    received = pair.stream.receive_into(view, 20.0)
    while received < 2 * RECORD_BYTES:
        received += pair.stream.receive_into(view, 20.0)

    assert received == 2 * RECORD_BYTES
    with pytest.raises(StreamError):
        pair.stream.receive_into(view, 20.0)


def test_a_reset_is_a_failure(pair: Pair) -> None:
    pair.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.far.close()

    with pytest.raises(StreamError) as caught:
        pair.stream.receive(20.0)

    assert (caught.value.side, caught.value.timed_out) == (Side.CLIENT, False)


def test_closing_says_close_notify(pair: Pair) -> None:
    pair.stream.close()

    assert pair.far.recv(9) == b""  # without it this would be an SSLEOFError
    pair.stream.close()


def test_aborting_says_no_close_notify(pair: Pair) -> None:
    pair.stream.abort()

    with pytest.raises(OSError, match=r"reset|EOF"):
        pair.far.recv(9)


def test_the_sending_half_alone_can_be_closed(pair: Pair) -> None:
    pair.far.sendall(b"has come")
    until(lambda: not pair.stream.is_silent())

    pair.stream.end_sending()
    assert pair.far.recv(9) == b""
    pair.far.sendall(b"comes later")

    assert pair.stream.receive(20.0) == b"has come"
    assert pair.stream.receive(20.0) == b"comes later"


def test_what_is_on_its_way_is_not_lost_when_the_sending_half_is_closed(pair: Pair) -> None:
    data = bytes(range(256)) * 16_384
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(pair.far.sendall, data)
        arrived = pair.stream.receive(20.0)
        until(lambda: not pair.stream.is_silent())

        pair.stream.end_sending()

        while len(arrived) < len(data):
            arrived += pair.stream.receive(20.0)
        sending.result(20)
    assert arrived == data
    assert pair.far.recv(9) == b""


def test_without_descriptors_the_sending_half_ends_all_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("atlas_pkg.net.tls.socket.socketpair", fail)

    pair.stream.end_sending()

    with pytest.raises(ssl.SSLError, match="EOF"):
        pair.far.recv(9)


def test_a_look_finds_data_and_keeps_it(pair: Pair) -> None:
    pair.far.sendall(b"hello")

    assert pair.stream.is_readable(20.0)
    pair.far.sendall(b", and more")
    until(lambda: not pair.stream.is_silent())
    assert not pair.stream.has_ended()

    assert pair.stream.buffered == b"hello, and more"


def test_ending_from_another_thread_wakes_who_waits(pair: Pair) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(pair.stream.receive, 20.0)
        pair.stream.shut_down()
        with pytest.raises(StreamError):
            waiting.result(20)


def test_garbage_is_a_failure(pair: Pair) -> None:
    pair.send_raw(b"GET / HTTP/1.1\r\n\r\n")

    with pytest.raises(StreamError) as caught:
        pair.stream.receive(20.0)

    assert caught.value.reason.startswith("TLS: ")


def test_a_subject_cannot_be_taken_for_another_field_or_two_attributes() -> None:
    assert _escape("a\r\nX-Admin: yes\0") == "aX-Admin: yes"
    assert _escape('alice, "of" sales+1 ') == r"alice\, \"of\" sales\+1\ "
    assert _escape("#1") == r"\#1"
    assert _escape("Zoë") == "Zoë"


# As the client of an upstream


@pytest.fixture
def server(contexts: Contexts) -> Iterator[tuple[int, list[ssl.SSLSocket]]]:
    """A server that shakes hands with all who come; its port and its connections."""
    connections: list[ssl.SSLSocket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(20)
            try:
                connections.append(contexts[0].wrap_socket(sock, server_side=True))
            except OSError:  # the client's doing
                sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1], connections
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(20)
    for connection in connections:
        connection.close()


def reach(port: int) -> Stream:
    return connect([(socket.AF_INET, ("127.0.0.1", port))], 20.0)


def open_to(port: int, context: ssl.SSLContext, name: str) -> TlsStream:
    plain = stream = reach(port)
    try:
        stream = TlsStream(plain, context, server_name=name)
        stream.shake_hands(20.0)
    except StreamError:
        stream.close()
        raise
    return stream


def test_tickets_are_nothing_to_read(
    server: tuple[int, list[ssl.SSLSocket]], contexts: Contexts
) -> None:
    port, connections = server
    stream = open_to(port, contexts[1], "atlas.test")
    until(lambda: bool(connections))
    if stream._tls.version() == "TLSv1.3":
        until(lambda: not stream.is_silent())

    assert not stream.is_readable(0.01)
    assert stream.wait_until_writable(20.0, heeds_input=True)
    connections[0].sendall(b"hello")
    assert not stream.wait_until_writable(20.0, heeds_input=True) or stream.is_readable(20.0)
    assert stream.buffered == b"hello"
    stream.close()


def test_a_session_is_gone_on_with(
    server: tuple[int, list[ssl.SSLSocket]], contexts: Contexts
) -> None:
    port, connections = server
    first = open_to(port, contexts[1], "atlas.test")
    until(lambda: len(connections) == 1)
    connections[0].sendall(b"x")
    assert first.receive(20.0) == b"x"  # the tickets of TLS 1.3 came before it
    session = first.session
    first.close()

    second = TlsStream(reach(port), contexts[1], server_name="atlas.test", session=session)
    second.shake_hands(20.0)

    until(lambda: len(connections) == 2)
    assert connections[1].session_reused
    second.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("other.test", "Hostname mismatch"), ("bad..name", "TLS: ")],
)
def test_another_name_is_not_accepted(
    server: tuple[int, list[ssl.SSLSocket]], contexts: Contexts, name: str, reason: str
) -> None:
    with pytest.raises(StreamError) as caught:
        open_to(server[0], contexts[1], name)

    assert (caught.value.side, caught.value.timed_out) == (Side.UPSTREAM, False)
    assert reason in caught.value.reason


def test_an_unknown_authority_is_not_accepted(server: tuple[int, list[ssl.SSLSocket]]) -> None:
    with pytest.raises(StreamError) as caught:
        open_to(server[0], ssl.create_default_context(), "atlas.test")

    assert "its certificate is not accepted: " in caught.value.reason


def test_a_handshake_that_is_not_answered_fails_in_time(contexts: Contexts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stream = TlsStream(reach(silent.getsockname()[1]), contexts[1], server_name="atlas.test")
        with pytest.raises(StreamError) as caught:
            stream.shake_hands(0.05)
        stream.close()

    assert caught.value.timed_out


def test_a_handshake_can_go_step_by_step(contexts: Contexts) -> None:
    serving, asking = contexts
    plain, sock = open_pair()
    stream = TlsStream(plain, serving)
    assert not stream.shake_hands_now()

    with ThreadPoolExecutor() as pool:
        shaking = pool.submit(asking.wrap_socket, sock, server_hostname="atlas.test")
        until(stream.shake_hands_now)
        far = shaking.result(20)

    stream.close()
    far.close()


def test_a_tunnel_carries_it_both_ways_and_passes_the_ends_on(pair: Pair) -> None:
    near, far = socket.socketpair()
    far.settimeout(20)
    relay, has_ended = Relay(), threading.Event()
    errors: list[StreamError | None] = []

    def note(_: Tunnel, error: StreamError | None) -> None:
        errors.append(error)
        has_ended.set()

    relay.start()
    upstream = Stream(near, Side.UPSTREAM)
    relay.add(Tunnel(pair.stream, upstream, 20.0, note, half_closed_limit=20.0))
    data = bytes(range(256)) * 16_384
    with ThreadPoolExecutor() as pool:
        sending = [pool.submit(end.sendall, data) for end in (pair.far, far)]
        arrived = bytearray()
        while len(arrived) < len(data):
            arrived += far.recv(65_536)
        assert arrived == data
        assert receive_all(pair.far, len(data)) == data
        for sent in sending:
            sent.result(20)

    far.shutdown(socket.SHUT_WR)
    assert pair.far.recv(1) == b""
    pair.far.unwrap()

    assert far.recv(1) == b""
    assert has_ended.wait(20)
    assert errors == [None]
    relay.stop()
    upstream.close()
    far.close()
