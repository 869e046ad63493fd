"""Reading, writing and waiting on a real connection between two sockets of this machine."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.stream import Stream, set_patience

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
    assert 0.09 < time.monotonic() - began < 15


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
    assert time.monotonic() - began < 15


def test_a_client_that_closes_is_given_a_short_grace(client: Pair, upstream: Pair) -> None:
    (client_stream, far), (stream, _) = client, upstream
    far.close()
    began = time.monotonic()

    with pytest.raises(StreamError) as caught:
        stream.receive(20.0, client_stream)

    assert caught.value.side is Side.CLIENT
    assert time.monotonic() - began < 15


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
    assert 0.15 < time.monotonic() - began < 15


def test_sending_some_never_waits(client: Pair) -> None:
    stream, _ = client
    began = time.monotonic()

    while stream.send_some(b"x" * 1_000_000):
        pass

    assert stream.send_some(b"x") == 0
    assert time.monotonic() - began < 15


def test_sending_to_one_who_left_is_a_failure(client: Pair) -> None:
    stream, far = client
    reset(far)

    stream.wait_until_readable(20.0)  # the reset has arrived
    with pytest.raises(StreamError) as caught:
        stream.send(b"x", 20.0)

    assert caught.value.side is Side.CLIENT


def test_what_has_come_in_time_is_taken_however_late_it_is_looked_for(client: Pair) -> None:
    stream, far = client
    with pytest.raises(StreamError, match="in time"):
        stream.wait_until_readable(0.0)

    far.send(b"!")
    stream.wait_until_readable(20.0)
    assert stream.wait_until_readable(-1.0)  # the time was over before it could be looked at


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


def test_reading_now_never_waits(client: Pair) -> None:
    stream, far = client
    assert stream.receive_now() is None

    far.send(b"hello")
    stream.wait_until_readable(20.0)
    assert stream.receive_now() == b"hello"
    assert stream.receive_now() is None

    far.close()
    stream.wait_until_readable(20.0)
    assert stream.receive_now() == b""


def test_reading_now_tells_that_the_connection_has_broken(client: Pair) -> None:
    stream, far = client
    reset(far)
    stream.wait_until_readable(20.0)

    with pytest.raises(StreamError) as caught:
        stream.receive_now()

    assert caught.value.side is Side.CLIENT


def test_writing_now_returns_what_does_not_fit(client: Pair) -> None:
    stream, far = client
    data = bytes(range(256)) * 80_000

    assert stream.send_now(b"hello") == b""
    rest = stream.send_now(data)

    assert far.recv(5) == b"hello"
    assert 0 < len(rest) < len(data)
    assert data.endswith(rest)


def test_a_failure_to_write_now_is_met_again_by_who_sends_the_rest(client: Pair) -> None:
    stream, far = client
    reset(far)
    stream.wait_until_readable(20.0)

    assert stream.send_now(b"answer") == b"answer"

    with pytest.raises(StreamError) as caught:
        stream.send(b"answer", 20.0)
    assert caught.value.side is Side.CLIENT


def test_what_the_other_side_says_goes_first_where_it_is_heeded(
    client: Pair, upstream: Pair
) -> None:
    (client_stream, client_far), (stream, far) = client, upstream
    client_far.send(b"body")
    assert client_stream.wait_until_readable(20.0, stream, heeds_other=True)

    far.send(b"413")
    stream.wait_until_readable(20.0)

    assert not client_stream.wait_until_readable(20.0, stream, heeds_other=True)


@pytest.mark.parametrize("word", [b"413", b""])
def test_waiting_ends_when_the_other_side_speaks_or_ends(
    word: bytes, client: Pair, upstream: Pair
) -> None:
    (client_stream, _), (stream, far) = client, upstream
    later = threading.Timer(0.1, far.send if word else far.close, (word,) if word else ())
    later.start()

    assert not client_stream.wait_until_readable(20.0, stream, heeds_other=True)
    later.join()


def test_an_upstream_that_answers_early_is_noticed_before_more_is_sent(upstream: Pair) -> None:
    stream, far = upstream
    assert stream.wait_until_writable(20.0, heeds_input=True)

    far.send(b"413")
    stream.wait_until_readable(20.0)

    assert not stream.wait_until_writable(20.0, heeds_input=True)
    assert stream.wait_until_writable(20.0)  # who does not heed it may go on


def test_what_had_arrived_is_found_after_the_end_of_receiving(client: Pair) -> None:
    stream, far = client
    far.send(b"last words")
    stream.wait_until_readable(20.0)

    stream.end_receiving()

    assert stream.receive(20.0) == b"last words"
    assert stream.receive(20.0) == b""


def test_the_end_of_receiving_wakes_whoever_waits(client: Pair) -> None:
    stream, far = client
    later = threading.Timer(0.1, stream.end_receiving)
    later.start()

    assert stream.receive(20.0) == b""
    later.join()
    stream.send(b"still heard", 20.0)
    assert far.recv(99) == b"still heard"


def test_the_end_of_sending_is_the_end_of_input_over_there(client: Pair) -> None:
    stream, far = client
    stream.send(b"last", 20.0)

    stream.end_sending()

    assert far.recv(99) + far.recv(99) == b"last"
    far.send(b"and back")
    assert stream.receive(20.0) == b"and back"


def test_many_parts_leave_as_one(client: Pair) -> None:
    stream, far = client
    parts = [b"%d," % number for number in range(3000)]  # more than the kernel takes in one call
    reading = far.makefile("rb")

    stream.send_parts(parts[:3], 20.0)
    stream.send_parts(parts, 20.0)
    stream.end_sending()

    assert reading.read() == b"".join(parts[:3] + parts)
    reading.close()


def test_parts_are_all_sent_however_slowly_they_are_read(client: Pair) -> None:
    stream, far = client
    parts = [bytes([number]) * 100_000 for number in range(100)]
    received = bytearray()

    def read() -> None:
        while piece := far.recv(100_000):
            received.extend(piece)

    reading = threading.Thread(target=read)
    reading.start()
    stream.send_parts(parts, 20.0)
    stream.end_sending()
    reading.join(20)

    assert received == b"".join(parts)


def test_an_end_is_told_from_something_still_to_be_read(client: Pair) -> None:
    stream, far = client
    assert not stream.has_ended()

    far.send(b"!")
    stream.wait_until_readable(20.0)
    far.close()
    assert not stream.has_ended()

    stream.receive(20.0)
    stream.wait_until_readable(20.0)
    assert stream.has_ended()


def test_the_grace_of_a_client_is_what_it_is_given(client: Pair, upstream: Pair) -> None:
    (client_stream, far), (stream, _) = client, upstream
    client_stream.client_gone = 0.0
    far.close()

    with pytest.raises(StreamError) as caught:
        stream.receive(20.0, client_stream)

    assert caught.value.side is Side.CLIENT


def test_without_blocking_no_call_waits(client: Pair) -> None:
    stream, _ = client
    stream.stop_blocking()

    with pytest.raises(StreamError) as caught:
        stream.receive(0.0)

    assert caught.value.timed_out
    assert stream.receive_now() is None
