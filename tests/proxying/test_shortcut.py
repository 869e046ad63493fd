"""The shortcut: small answers in pieces are passed on by the lane, and by nobody else."""

from __future__ import annotations

import itertools
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_pkg.errors import ClientGone
from atlas_pkg.http1.chunked import LAST_CHUNK, ChunkedDecoder
from atlas_pkg.serving.lane import HAS_EPOLL
from tests.http1.readers import decode, encode_chunk
from tests.serving.lane_support import Scene

pytestmark = pytest.mark.skipif(not HAS_EPOLL, reason="without an epoll there is no lane")

BODY = bytes(range(256)) * 20


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(raw), *(place % len(raw) for place in at)})
    return [raw[begin:end] for begin, end in itertools.pairwise(bounds)]


Cuts = st.lists(st.integers(0, 100_000), max_size=5)


@settings(max_examples=40)
@given(Cuts)
def test_an_answer_of_known_length_is_the_same_however_it_comes(cuts: list[int]) -> None:
    scene = Scene()
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    for _ in range(2):  # both connections are kept
        scene.ask()
        scene.answer(*cut(raw, cuts))

        assert scene.read(BODY).endswith(b"\r\n\r\n" + BODY)
        assert scene.handed_over == 0
    scene.close()


@settings(max_examples=40)
@given(Cuts, st.integers(1, 3000))
def test_an_answer_in_chunks_is_the_same_however_it_comes(cuts: list[int], size: int) -> None:
    scene = Scene()
    pieces = [BODY[at : at + size] for at in range(0, len(BODY), size)]
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"".join(map(encode_chunk, pieces)) + LAST_CHUNK
    for _ in range(2):
        scene.ask()
        scene.answer(*cut(raw, cuts))

        _, _, body = scene.read(LAST_CHUNK).partition(b"\r\n\r\n")
        assert decode(ChunkedDecoder(), body) == (BODY, b"")
        assert scene.handed_over == 0
    scene.close()


def test_an_answer_until_close_ends_with_its_connection() -> None:
    scene = Scene()
    scene.ask()

    scene.answer(b"HTTP/1.1 200 OK\r\n\r\n", BODY[:100], BODY[100:])
    scene.upstream.close()
    scene.step()

    _, _, body = scene.read(LAST_CHUNK).partition(b"\r\n\r\n")
    assert decode(ChunkedDecoder(), body) == (BODY, b"")
    assert scene.handed_over == 0
    scene.close()


def test_an_end_that_comes_together_with_the_last_data_is_noticed() -> None:
    # An edge-triggered epoll tells of both at once, and never again.
    scene = Scene()
    scene.ask()

    scene.upstream.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)
    scene.upstream.close()
    scene.step()
    if scene.lane._awaited:
        scene.step()

    _, _, body = scene.read(LAST_CHUNK).partition(b"\r\n\r\n")
    assert decode(ChunkedDecoder(), body) == (BODY, b"")
    scene.close()


def test_a_body_that_is_cut_is_never_ended_cleanly() -> None:
    scene = Scene()
    scene.ask()

    scene.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    scene.upstream.close()
    scene.step()

    assert scene.read(b"never").endswith(b"\r\n\r\nhalf")
    assert scene.handed_over == 0
    scene.close()


def test_a_request_in_pieces_waits_with_what_has_come_of_it() -> None:
    scene = Scene()
    for piece in (b"GET /1k HT", b"TP/1.1\r", b"\nHost: a\r\n"):
        scene.client.sendall(piece)
        scene.step()
        assert scene.handed_over == 0

    scene.ask(b"\r\n")

    scene.answer(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert scene.read(b"\r\n\r\n").startswith(b"HTTP/1.1 204")
    scene.close()


def test_requests_that_come_together_are_answered_in_order() -> None:
    scene = Scene()
    scene.ask(b"".join(b"GET /1k HTTP/1.1\r\nHost: %d\r\n\r\n" % number for number in range(3)))
    for number in range(3):
        body = b"answer %d" % number
        scene.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + body)
        assert scene.read(body).endswith(body)

    assert scene.handed_over == 0
    scene.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\nx", "it is large"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", "it is no final one"),
        (b"nonsense\r\n\r\n", "another attempt may help"),
    ],
)
def test_what_takes_waiting_or_a_thought_is_handed_over(answer: bytes, why: str) -> None:
    scene = Scene()
    scene.ask()

    scene.answer(answer)

    assert scene.handed_over == 1, why
    scene.close()


def test_a_bad_request_is_answered_by_the_lane() -> None:
    scene = Scene()
    scene.client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    scene.step()

    assert scene.read(b"\n").startswith(b"HTTP/1.1 400 ")
    assert scene.handed_over == 0
    scene.close()


def test_a_client_that_has_closed_its_sending_half_hears_an_answer_that_goes_on() -> None:
    # Its grace counts from the last piece: the road waits for each piece anew.
    scene = Scene()
    scene.ask()
    scene.client.shutdown(socket.SHUT_WR)
    scene.answer(b"HTTP/1.1 200 OK\r\n\r\n")
    (exchange,) = scene.lane._awaited.values()
    timeouts = exchange.generation.config.timeouts
    now = time.monotonic()
    assert exchange.find_loss(now) is None

    scene.answer(b"one more piece")

    assert exchange.find_loss(now + timeouts.client_gone + 1) is None
    assert isinstance(exchange.find_loss(now + 2 * timeouts.client_gone + 2), ClientGone)
    scene.close()
