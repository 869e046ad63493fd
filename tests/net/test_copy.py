"""A body from one connection to another: whole, in bounded memory, while both sides are there."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from atlas_pkg.errors import MalformedMessage, Side, StreamError, TruncatedMessage
from atlas_pkg.http1.body import Body
from atlas_pkg.http1.chunked import LAST_CHUNK, ChunkedDecoder
from atlas_pkg.http1.framing import CHUNKED, UNTIL_CLOSE, BodyKind, Framing
from atlas_pkg.net import copy as copying
from atlas_pkg.net.copy import Copier
from atlas_pkg.net.splice import HAS_SPLICE
from atlas_pkg.net.stream import Stream, set_patience
from tests.http1.readers import decode, encode_chunk
from tests.toolkit import descriptors

DATA = os.urandom(3_000_000)

# Longer than anything takes; it only keeps a broken test from hanging.
PATIENCE = 20.0


class Party:
    """One end of a connection, and Atlas's end of it: a stream."""

    def __init__(self, side: Side) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname(), PATIENCE)
            near, _ = listener.accept()
        near.settimeout(None)
        # So little that nothing fits in between: who does not read stops the other side soon.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        set_patience(near, receive=0.02, send=0.02)
        self.stream = Stream(near, side)
        self.received = bytearray()

    def sending(self, data: bytes, *, is_last: bool = False) -> threading.Thread:
        """Send `data` in a thread, until nobody takes it any more."""

        def run() -> None:
            with contextlib.suppress(OSError):
                self.sock.sendall(data)
                if is_last:
                    self.sock.shutdown(socket.SHUT_WR)

        return start(run)

    def reading(self) -> threading.Thread:
        """Read into `received` in a thread, until the end of input."""

        def run() -> None:
            with contextlib.suppress(OSError):
                while piece := self.sock.recv(65_536):
                    self.received += piece

        return start(run)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()
        self.stream.close()


def start(run: object) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


@pytest.fixture
def source() -> Iterator[Party]:
    party = Party(Side.UPSTREAM)
    yield party
    party.close()


@pytest.fixture
def sink() -> Iterator[Party]:
    party = Party(Side.CLIENT)
    yield party
    party.close()


@pytest.fixture(params=["pipe", "buffer"])
def copier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copier]:
    """One that has a kernel pipe for what is large, and one that has none."""
    if request.param == "buffer":
        monkeypatch.setattr(copying, "HAS_SPLICE", False)
    elif not HAS_SPLICE:
        pytest.skip("there is no splice here")
    made = Copier()
    yield made
    made.close()


def copy(
    copier: Copier,
    body: Body,
    source: Party,
    sink: Party,
    *,
    timeout: float = PATIENCE,
    heeds_sink: bool = False,
) -> bool:
    return copier.copy(
        body,
        source.stream,
        sink.stream,
        read_timeout=timeout,
        write_timeout=timeout,
        heeds_sink=heeds_sink,
    )


def of_length(count: int) -> Body:
    framing = Framing(BodyKind.LENGTH, count)
    return Body(framing, framing)


def finish(sink: Party, *threads: threading.Thread) -> bytes:
    """Nothing more is sent to the sink: returns what it has got in all."""
    sink.stream.end_sending()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return bytes(sink.received)


@pytest.mark.parametrize("count", [1, 262_144, len(DATA)])
def test_exactly_so_many_bytes_are_moved(
    count: int, copier: Copier, source: Party, sink: Party
) -> None:
    body = of_length(count)
    writing, reading = source.sending(DATA[:count] + b"more"), sink.reading()

    assert copy(copier, body, source, sink)

    assert finish(sink, writing, reading) == DATA[:count]
    assert (source.stream.buffered or source.stream.receive(PATIENCE)) == b"more"
    assert body.moved == count


def test_what_was_read_with_the_head_goes_first(copier: Copier, source: Party, sink: Party) -> None:
    source.stream.buffered = DATA[:10]
    writing, reading = source.sending(DATA[10:]), sink.reading()

    copy(copier, of_length(len(DATA)), source, sink)

    assert finish(sink, writing, reading) == DATA


@pytest.mark.parametrize("size", [1, 1000, 200_000, len(DATA)])
def test_chunks_of_any_size_give_the_same_data(
    size: int, copier: Copier, source: Party, sink: Party
) -> None:
    data = DATA if size > 1 else DATA[:2000]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    raw = b"".join(map(encode_chunk, pieces)) + LAST_CHUNK
    writing, reading = source.sending(raw + b"more"), sink.reading()

    copy(copier, Body(CHUNKED, CHUNKED), source, sink)

    decoder = ChunkedDecoder()
    assert decode(decoder, finish(sink, writing, reading)) == (data, b"")
    assert decoder.is_done
    assert (source.stream.buffered or source.stream.receive(PATIENCE)) == b"more"


def test_a_body_until_close_ends_with_the_connection(
    copier: Copier, source: Party, sink: Party
) -> None:
    writing, reading = source.sending(DATA, is_last=True), sink.reading()

    copy(copier, Body(UNTIL_CLOSE, CHUNKED), source, sink)

    decoder = ChunkedDecoder()
    assert decode(decoder, finish(sink, writing, reading)) == (DATA, b"")
    assert decoder.is_done


@pytest.mark.parametrize("kind", [BodyKind.LENGTH, BodyKind.CHUNKED])
def test_a_source_that_ends_early_is_an_error_after_what_came(
    kind: BodyKind, copier: Copier, source: Party, sink: Party
) -> None:
    half = DATA[: len(DATA) // 2]
    raw, body = half, of_length(len(DATA))
    if kind is BodyKind.CHUNKED:
        raw, body = b"%x\r\n" % len(DATA) + half, Body(CHUNKED, UNTIL_CLOSE)
    writing, reading = source.sending(raw, is_last=True), sink.reading()

    with pytest.raises(TruncatedMessage):
        copy(copier, body, source, sink)

    assert finish(sink, writing, reading) == half
    assert not body.is_done


@pytest.mark.parametrize("count", [8, len(DATA)])
def test_a_source_that_stalls_is_a_failure_of_its_side_in_time(
    count: int, copier: Copier, source: Party, sink: Party
) -> None:
    source.sock.sendall(b"half")

    with pytest.raises(StreamError) as caught:
        copy(copier, of_length(count), source, sink, timeout=0.2)

    assert (caught.value.side, caught.value.timed_out) == (Side.UPSTREAM, True)
    assert sink.sock.recv(9) == b"half"


def test_a_sink_that_does_not_read_is_a_failure_of_its_side_in_time(
    copier: Copier, source: Party, sink: Party
) -> None:
    source.sending(bytes(50_000_000))

    with pytest.raises(StreamError) as caught:
        copy(copier, of_length(50_000_000), source, sink, timeout=0.2)

    assert (caught.value.side, caught.value.timed_out) == (Side.CLIENT, True)


@pytest.mark.parametrize("count", [8, len(DATA)])
def test_a_sink_that_leaves_is_noticed_while_the_source_is_awaited(
    count: int, copier: Copier, source: Party, sink: Party
) -> None:
    sink.reset()

    with pytest.raises(StreamError) as caught:
        copy(copier, of_length(count), source, sink)

    assert (caught.value.side, caught.value.timed_out) == (Side.CLIENT, False)


def test_malformed_chunks_are_an_error(copier: Copier, source: Party, sink: Party) -> None:
    source.sock.sendall(b"5\r\nhelloX")

    with pytest.raises(MalformedMessage):
        copy(copier, Body(CHUNKED, CHUNKED), source, sink)


def test_nothing_of_a_body_that_failed_is_found_in_the_next(
    copier: Copier, source: Party, sink: Party
) -> None:
    stuck = Party(Side.CLIENT)
    writing = source.sending(bytes(50_000_000))
    with pytest.raises(StreamError):
        copy(copier, of_length(50_000_000), source, stuck, timeout=0.2)
    stuck.close()
    another = Party(Side.UPSTREAM)
    also, reading = another.sending(DATA), sink.reading()

    copy(copier, of_length(len(DATA)), another, sink)

    assert finish(sink, also, reading) == DATA
    another.close()
    source.close()
    writing.join(PATIENCE)


# How much the sink reads before it speaks and reads no more.
SPEAKS_AFTER = [0, 1, 300_000, 1_500_000]


@pytest.mark.parametrize("kind", [BodyKind.LENGTH, BodyKind.CHUNKED])
@pytest.mark.parametrize("after", SPEAKS_AFTER)
def test_a_sink_that_speaks_interrupts_and_nothing_is_lost(
    after: int, kind: BodyKind, copier: Copier, source: Party, sink: Party
) -> None:
    raw, body = DATA, of_length(len(DATA))
    if kind is BodyKind.CHUNKED:
        pieces = DATA[:100], DATA[100:1_000_000], DATA[1_000_000:1_000_100], DATA[1_000_100:]
        raw, body = b"".join(map(encode_chunk, pieces)) + LAST_CHUNK, Body(CHUNKED, CHUNKED)
    writing = source.sending(raw)

    def read_then_speak() -> None:
        while len(sink.received) < after:
            sink.received += sink.sock.recv(min(65_536, after - len(sink.received)))
        sink.sock.sendall(b"HTTP/1.1 413 Too Large\r\n\r\n")

    speaking = start(read_then_speak)
    is_whole = copy(copier, body, source, sink, heeds_sink=True)
    speaking.join(PATIENCE)
    assert not is_whole
    assert sink.stream.receive(PATIENCE).startswith(b"HTTP/1.1 413")

    # Somebody else goes on, in another thread, once the sink reads again.
    reading, another = sink.reading(), Copier()
    assert copy(another, body, source, sink)
    another.close()

    sent = finish(sink, writing, reading)
    if kind is BodyKind.CHUNKED:
        decoder = ChunkedDecoder()
        sent, _ = decode(decoder, sent)
        assert decoder.is_done
    assert sent == DATA
    assert body.is_through


@pytest.mark.parametrize("count", [20, len(DATA)])
def test_a_sink_that_speaks_interrupts_the_waiting_for_the_source(
    count: int, copier: Copier, source: Party, sink: Party
) -> None:
    body = of_length(count)
    source.sock.sendall(DATA[:10])

    def read_then_speak() -> None:
        while len(sink.received) < 10:
            sink.received += sink.sock.recv(10)
        sink.sock.sendall(b"HTTP/1.1 413 Too Large\r\n\r\n")

    speaking = start(read_then_speak)
    assert not copy(copier, body, source, sink, heeds_sink=True)
    speaking.join(PATIENCE)

    writing, reading = source.sending(DATA[10:count]), sink.reading()
    assert copy(copier, body, source, sink)
    assert finish(sink, writing, reading) == DATA[:count]


def test_an_answer_that_is_there_already_goes_before_the_body(
    copier: Copier, source: Party, sink: Party
) -> None:
    body = of_length(10)
    sink.sock.sendall(b"HTTP/1.1 413 Too Large\r\n\r\n")
    sink.stream.wait_until_readable(PATIENCE)
    source.sock.sendall(b"0123456789")
    source.stream.wait_until_readable(PATIENCE)

    assert not copy(copier, body, source, sink, heeds_sink=True)

    assert not body.is_touched


def test_memory_does_not_depend_on_the_size_of_a_body(
    copier: Copier, source: Party, sink: Party
) -> None:
    piece, count = bytes(1_000_000), 60

    def send() -> None:
        for _ in range(count):
            source.sock.sendall(piece)

    def read() -> None:
        while sink.sock.recv_into(buffer):
            pass

    buffer = bytearray(65_536)
    writing, reading = start(send), start(read)
    tracemalloc.start()
    try:
        copy(copier, of_length(count * len(piece)), source, sink)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    finish(sink, writing, reading)
    assert most < 1_000_000


def test_a_sink_that_does_not_read_stops_the_source(
    copier: Copier, source: Party, sink: Party
) -> None:
    copying_thread = start(lambda: run_quietly(copier, source, sink))
    source.sock.settimeout(0.5)

    with pytest.raises(TimeoutError):
        source.sock.sendall(bytes(200_000_000))  # far more than the kernel holds

    source.reset()
    sink.reset()
    copying_thread.join(PATIENCE)
    assert not copying_thread.is_alive()


def run_quietly(copier: Copier, source: Party, sink: Party) -> None:
    with contextlib.suppress(StreamError, TruncatedMessage):
        copy(copier, of_length(1_000_000_000), source, sink)


def test_a_copier_that_is_closed_holds_nothing(copier: Copier, source: Party, sink: Party) -> None:
    before = descriptors()
    writing, reading = source.sending(DATA), sink.reading()
    copy(copier, of_length(len(DATA)), source, sink)
    finish(sink, writing, reading)

    copier.close()
    copier.close()  # twice is once

    assert descriptors() <= before


def test_waiting_for_a_slow_source_uses_no_cpu(copier: Copier, source: Party, sink: Party) -> None:
    began = time.thread_time()

    with pytest.raises(StreamError):
        copy(copier, of_length(len(DATA)), source, sink, timeout=0.5)

    assert time.thread_time() - began < 0.25
