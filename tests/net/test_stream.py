"""Reading, writing and waiting on a real connection between two sockets of this machine."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.stream import Stream, set_patience, wait_until_either, wait_until_taken

Pair = tuple[Stream, socket.socket]


def connect() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), 20)
        near, _ = listener.accept()
    near.settimeout(None)
    set_patience(near, receive=0.02, send=0.02)
    return near, far


@pytest.fixture
def upstream() -> Iterator[Pair]:
    near, far = connect()
    yield Stream(near, Side.UPSTREAM), far
    near.close()
    far.close()


@pytest.fixture
def client() -> Iterator[Pair]:
    near, far = connect()
    yield Stream(near, Side.CLIENT), far
    near.close()
    far.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_what_has_arrived_is_read(upstream: Pair) -> None:
    stream, far = upstream
    far.send(b"hello")

    assert stream.receive(20.0) == b"hello"


def test_what_comes_later_is_waited_for(upstream: Pair) -> None:
    stream, far = upstream
    later = threading.Timer(0.1, far.send, (b"hello",))  # beyond the patience of the socket
    later.start()

    assert stream.receive(20.0) == b"hello"
    later.join()


def test_the_end_of_input_is_no_bytes(upstream: Pair) -> None:
    stream, far = upstream
    far.close()

    assert stream.receive(20.0) == b""
    assert stream.receive_into(memoryview(bytearray(9)), 20.0) == 0


def test_silence_is_a_failure_of_that_side_in_time(upstream: Pair) -> None:
    stream, _ = upstream
    began = time.monotonic()

    with pytest.raises(StreamError) as caught:
        stream.receive(0.1)

    assert (caught.value.side, caught.value.timed_out) == (Side.UPSTREAM, True)
    assert 0.09 < time.monotonic() - began < 5


def test_a_reset_is_a_failure_of_that_side_with_its_reason(upstream: Pair) -> None:
    stream, far = upstream
    reset(far)

    with pytest.raises(StreamError) as caught:
        stream.receive(20.0)

    assert (caught.value.side, caught.value.timed_out) == (Side.UPSTREAM, False)
    assert caught.value.reason == "connection reset by peer"


def test_a_client_that_resets_ends_the_waiting_for_its_upstream(
    client: Pair, upstream: Pair
) -> None:
    (client_stream, far), (stream, _) = client, upstream
    threading.Timer(0.1, reset, (far,)).start()
    began = time.monotonic()

    with pytest.raises(StreamError) as caught:
        stream.receive(20.0, client_stream)

    assert (caught.value.side, caught.value.timed_out) == (Side.CLIENT, False)
    assert time.monotonic() - began < 5


def test_a_client_that_closes_is_given_a_short_grace(client: Pair, upstream: Pair) -> None:
    (client_stream, far), (stream, _) = client, upstream
    far.close()
    began = time.monotonic()

    with pytest.raises(StreamError) as caught:
        stream.receive(20.0, client_stream)

    assert caught.value.side is Side.CLIENT
    assert time.monotonic() - began < 5


def test_a_client_that_only_half_closes_hears_an_answer_soon(client: Pair, upstream: Pair) -> None:
    (client_stream, client_far), (stream, far) = client, upstream
    client_far.shutdown(socket.SHUT_WR)
    later = threading.Timer(0.3, far.send, (b"answer",))
    later.start()

    assert stream.receive(20.0, client_stream) == b"answer"
    later.join()


def test_a_client_that_sends_more_does_not_end_the_waiting(client: Pair, upstream: Pair) -> None:
    (client_stream, client_far), (stream, far) = client, upstream
    client_far.send(b"the next request")
    later = threading.Timer(0.1, far.send, (b"answer",))
    later.start()

    assert stream.receive(20.0, client_stream) == b"answer"
    later.join()


def test_all_is_sent_however_slowly_it_is_read(client: Pair) -> None:
    stream, far = client
    data = bytes(range(256)) * 40_000
    received = bytearray()

    def read() -> None:
        while len(received) < len(data):
            received.extend(far.recv(100_000))

    reading = threading.Thread(target=read)
    reading.start()
    stream.send(data, 20.0)
    reading.join(20)

    assert received == data


def test_a_reader_that_stops_is_a_failure_in_time(client: Pair) -> None:
    stream, _ = client
    began = time.monotonic()

    with pytest.raises(StreamError) as caught:
        stream.send(b"x" * 20_000_000, 0.2)

    assert (caught.value.side, caught.value.timed_out) == (Side.CLIENT, True)
    assert 0.15 < time.monotonic() - began < 5


def test_sending_some_never_waits(client: Pair) -> None:
    stream, _ = client
    began = time.monotonic()

    while stream.send_some(b"x" * 1_000_000):
        pass

    assert stream.send_some(b"x") == 0
    assert time.monotonic() - began < 5


def test_sending_to_one_who_left_is_a_failure(client: Pair) -> None:
    stream, far = client
    reset(far)

    stream.wait_until_readable(20.0)  # the reset has arrived
    with pytest.raises(StreamError) as caught:
        stream.send(b"x", 20.0)

    assert caught.value.side is Side.CLIENT


def test_it_tells_whether_something_can_be_read(client: Pair) -> None:
    stream, far = client
    assert not stream.is_readable()

    far.send(b"!")
    stream.wait_until_readable(20.0)
    assert stream.is_readable()

    stream.receive(20.0)
    assert not stream.is_readable()
    far.close()
    stream.wait_until_readable(20.0)
    assert stream.is_readable()


def test_an_aborted_connection_is_reset(client: Pair) -> None:
    stream, far = client

    stream.abort()

    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_the_first_to_speak_is_told(client: Pair, upstream: Pair) -> None:
    (client_stream, client_far), (stream, far) = client, upstream
    assert wait_until_either(client_stream, stream, 0.02) is None

    client_far.send(b"!")
    client_stream.wait_until_readable(20.0)
    assert wait_until_either(client_stream, stream, 20.0) is client_stream

    far.send(b"!")
    stream.wait_until_readable(20.0)
    assert wait_until_either(client_stream, stream, 20.0) is stream  # the second wins a tie


def test_an_upstream_that_answers_early_is_noticed_before_more_is_sent(upstream: Pair) -> None:
    stream, far = upstream
    assert wait_until_taken(stream, 20.0)

    far.send(b"413")
    stream.wait_until_readable(20.0)

    assert not wait_until_taken(stream, 20.0)
