"""Large bodies: all of it, in order, and never held whole."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import pytest

from tests.fakes import Conversation, Request, Scripted, Upstream, build_answer, digesting
from tests.functional.conftest import Start
from tests.toolkit import Client, Threads, build_config, wait_until

MEGABYTE = 1_000_000
MOST_MEMORY = 100 * MEGABYTE

# Not a power of two, so that no edge of it falls together with an edge of a buffer.
PIECE = bytes(range(251)) * 1000

SIZES = [
    pytest.param(200 * MEGABYTE, id="200 MB"),
    pytest.param(1000 * MEGABYTE, id="1 GB", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
]


def pieces(size: int) -> Iterator[bytes]:
    """Bytes that differ from place to place, `size` in all."""
    for start in range(0, size, len(PIECE)):
        turn = start // len(PIECE) % 251
        yield (PIECE[turn:] + PIECE[:turn])[: size - start]


def digest_of(size: int) -> str:
    digest = hashlib.sha256()
    for piece in pieces(size):
        digest.update(piece)
    return digest.hexdigest()


def in_chunks(parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


def send_body(client: Client, size: int, framing: str) -> None:
    if framing == "chunked":
        client.send_head("POST", Transfer_Encoding="chunked")
        parts = in_chunks(pieces(size))
    else:
        client.send_head("POST", Content_Length=str(size))
        parts = pieces(size)
    for part in parts:
        client.send(part)


def producing(size: int, framing: str) -> Upstream:
    """An upstream whose answers have a body of `size` bytes."""
    heads = {
        "length": f"Content-Length: {size}\r\n",
        "chunked": "Transfer-Encoding: chunked\r\n",
        "until close": "",
    }

    def serve(conversation: Conversation) -> None:
        while conversation.read_head():
            conversation.send(f"HTTP/1.1 200 OK\r\n{heads[framing]}\r\n".encode())
            parts = pieces(size)
            for part in in_chunks(parts) if framing == "chunked" else parts:
                conversation.send(part)
            if framing == "until close":
                return

    return Upstream(serve)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_upload_arrives_whole(
    framing: str, size: int, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(digesting())
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client:
        send_body(client, size, framing)
        answer = client.read_answer()

        assert answer.text == digest_of(size)
        assert client.post(b"again").text == hashlib.sha256(b"again").hexdigest()
    assert atlas.peak_memory < MOST_MEMORY


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", ["length", "chunked", "until close"])
def test_a_large_answer_arrives_whole(
    framing: str, size: int, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(producing(size, framing))
    atlas = start(build_config(upstream.table()))
    digest = hashlib.sha256()

    with atlas.client() as client:
        client.send_head()
        for piece in client.read_body(client.read_head()):
            digest.update(piece)

    assert digest.hexdigest() == digest_of(size)
    assert atlas.peak_memory < MOST_MEMORY


def echo(conversation: Conversation, request: Request) -> None:
    """Answer with the body while reading it, as `request.pipe(response)` does in Node."""
    conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in conversation.read_body(request):
        conversation.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    conversation.send(b"0\r\n\r\n")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upstream_may_answer_while_it_reads(
    framing: str, upstreams: contextlib.ExitStack, start: Start
) -> None:
    size = 50 * MEGABYTE
    upstream = upstreams.enter_context(Scripted("a", ("unread", echo)))
    atlas = start(build_config(upstream.table()))
    digest, threads = hashlib.sha256(), Threads()

    with atlas.client() as client:
        threads.start(send_body, client, size, framing)
        for piece in client.read_body(client.read_head()):
            digest.update(piece)
        threads.join()

    assert digest.hexdigest() == digest_of(size)
    assert atlas.peak_memory < MOST_MEMORY


def test_a_slow_reader_does_not_fill_the_memory(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(producing(500 * MEGABYTE, "length"))
    atlas = start(build_config(upstream.table()))

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(20)]
        for client in clients:
            client.send_head()
        for client in clients:
            assert next(client.read_body(client.read_head()))

        # None of them reads on: what has arrived waits in sockets, not in Atlas.
        assert atlas.peak_memory < MOST_MEMORY


def test_an_early_413_reaches_a_client_that_is_still_sending(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(Scripted("too big", ("unread", 413, "wait")))
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client:
        client.send_head("POST", Content_Length=str(100 * MEGABYTE))
        with contextlib.suppress(ConnectionError):
            for piece in pieces(5 * MEGABYTE):
                client.send(piece)
        answer = client.read_answer()

    assert (answer.status, answer.text) == (413, "too big")
    wait_until(lambda: not upstream.connected, "the upstream to be freed")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_over_the_limit_is_413(
    framing: str, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(digesting())
    atlas = start(build_config(upstream.table(), limits={"body": MEGABYTE}))

    with atlas.client() as client:
        with contextlib.suppress(ConnectionError):
            send_body(client, 3 * MEGABYTE, framing)

        assert client.read_answer().status == 413
    with atlas.client() as client:
        send_body(client, MEGABYTE, framing)

        assert client.read_answer().text == digest_of(MEGABYTE)


def test_events_arrive_one_by_one(upstreams: contextlib.ExitStack, start: Start) -> None:
    # The upstream sends the next event only when the client has acknowledged the last.
    def serve(conversation: Conversation) -> None:
        while request := conversation.read_head():
            if request.target == "/seen":
                acknowledged.append(1)
                conversation.send(build_answer())
                continue
            conversation.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for number in range(5):
                conversation.send(b"data: %d\n\n" % number)
                wait_until(lambda number=number: len(acknowledged) > number)  # type: ignore[misc]
            return

    acknowledged: list[int] = []
    upstream = upstreams.enter_context(Upstream(serve))
    atlas = start(build_config(upstream.table()))

    events = []
    with atlas.client() as client, atlas.client() as other:
        client.send_head(Accept="text/event-stream")
        head = client.read_head()
        for event in client.read_body(head):
            events.append(event)
            other.get("/seen")

    assert events == [b"data: %d\n\n" % number for number in range(5)]
