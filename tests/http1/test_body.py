"""A body under way: what is sent on is what came, however that was cut, and never ends too soon."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.errors import MalformedMessage, TruncatedMessage
from atlas_pkg.http1.body import Body
from atlas_pkg.http1.chunked import LAST_CHUNK, ChunkedDecoder
from atlas_pkg.http1.framing import CHUNKED, NO_BODY, UNTIL_CLOSE, BodyKind, Framing
from tests.http1.readers import decode, encode_chunk

NEXT = b"GET / HTTP/1.1\r\n\r\n"
FRAMINGS = (BodyKind.LENGTH, BodyKind.CHUNKED, BodyKind.UNTIL_CLOSE)

# How bodies come and go. What has a length keeps it; HTTP/1.0 clients do not know chunks.
WAYS = (
    (BodyKind.LENGTH, BodyKind.LENGTH),
    (BodyKind.CHUNKED, BodyKind.CHUNKED),
    (BodyKind.CHUNKED, BodyKind.UNTIL_CLOSE),
    (BodyKind.UNTIL_CLOSE, BodyKind.CHUNKED),
    (BodyKind.UNTIL_CLOSE, BodyKind.UNTIL_CLOSE),
)


def frame(kind: BodyKind, pieces: list[bytes]) -> tuple[Framing, bytes]:
    """How a sender frames `pieces`, and the bytes on its connection."""
    data = b"".join(pieces)
    if kind is BodyKind.LENGTH:
        return Framing(kind, len(data)), data
    if kind is BodyKind.UNTIL_CLOSE:
        return UNTIL_CLOSE, data
    return CHUNKED, b"".join(map(encode_chunk, pieces)) + LAST_CHUNK


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(raw), *(place % (len(raw) + 1) for place in at)})
    return [raw[begin:end] for begin, end in itertools.pairwise(bounds)]


def feed(body: Body, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Feed what arrives; returns what is sent on and what follows the body."""
    sent = rest = b""
    for piece in pieces:
        if body.is_done:
            rest += piece
            continue
        parts, rest = body.feed(piece, len(piece))
        sent += b"".join(parts)
    return sent, rest


def undo(onward: Framing, sent: bytes) -> bytes:
    """Read what was sent on as its receiver does; all of it has to be one whole body."""
    if onward.kind is not BodyKind.CHUNKED:
        return sent
    decoder = ChunkedDecoder()
    data, rest = decode(decoder, sent)
    assert (decoder.is_done, rest) == (True, b"")
    return data


@given(
    st.sampled_from(WAYS),
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 300), max_size=8),
)
def test_any_cutting_gives_the_same_data(
    way: tuple[BodyKind, BodyKind], pieces: list[bytes], cuts: list[int]
) -> None:
    (framing, raw), onward = frame(way[0], pieces), frame(way[1], pieces)[0]
    follows = b"" if framing is UNTIL_CLOSE else NEXT
    body = Body(framing, onward)

    sent, rest = feed(body, cut(raw + follows, cuts))
    if framing is UNTIL_CLOSE:
        sent += b"".join(body.end())

    assert undo(onward, sent) == b"".join(pieces)
    assert rest == follows
    assert body.is_through
    assert body.moved == len(b"".join(pieces))


@given(
    st.sampled_from(WAYS),
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=200, max_size=200),
)
def test_what_passes_by_in_bulk_is_framed_as_what_is_fed(
    way: tuple[BodyKind, BodyKind], pieces: list[bytes], turns: list[bool]
) -> None:
    (framing, raw), onward = frame(way[0], pieces), frame(way[1], pieces)[0]
    body, sent, at = Body(framing, onward), b"", 0

    for is_bulk in turns:
        if at == len(raw) or body.is_done:
            break
        if is_bulk and body.bulk:
            count = min(body.bulk, len(raw) - at, 7)
            before, after = body.skip(count)
            sent += before + raw[at : at + count] + after
        else:
            count = min(len(raw) - at, 3)
            parts, rest = body.feed(raw[at : at + count], count)
            sent += b"".join(parts)
            count -= len(rest)
        at += count
    if framing is UNTIL_CLOSE and at == len(raw):
        sent += b"".join(body.end())

    if body.is_done:
        assert undo(onward, sent) == b"".join(pieces)
        assert body.moved == len(b"".join(pieces))


@pytest.mark.parametrize("framing", [NO_BODY, Framing(BodyKind.LENGTH, 0)])
def test_a_body_of_nothing_is_done_before_it_begins(framing: Framing) -> None:
    body = Body(framing, framing)

    assert (body.is_done, body.is_through, body.is_touched) == (True, True, False)


def test_no_more_is_read_than_belongs_to_the_body() -> None:
    body = Body(Framing(BodyKind.LENGTH, 5), Framing(BodyKind.LENGTH, 5))
    assert (body.most, body.bulk) == (5, 5)

    body.feed(b"abc", 3)

    assert (body.most, body.bulk) == (2, 2)
    assert Body(CHUNKED, CHUNKED).most is None
    assert Body(UNTIL_CLOSE, CHUNKED).most is None


def test_only_what_is_data_for_certain_may_pass_by_without_a_look() -> None:
    body = Body(CHUNKED, CHUNKED)
    assert body.bulk == 0

    body.feed(b"a\r\n01", 5)

    assert body.bulk == 8
    assert Body(UNTIL_CLOSE, CHUNKED).bulk == 0


@pytest.mark.parametrize("way", WAYS[:3])
def test_a_body_that_is_cut_is_never_ended_cleanly(way: tuple[BodyKind, BodyKind]) -> None:
    (framing, raw), onward = frame(way[0], [b"hello", b"world"]), frame(way[1], [])[0]
    for at in range(len(raw)):
        body = Body(framing, onward)
        sent, _ = feed(body, [raw[:at]])

        with pytest.raises(TruncatedMessage):
            body.end()

        assert not body.is_done
        assert not sent.endswith(LAST_CHUNK)


def test_the_end_of_the_connection_ends_a_body_until_close() -> None:
    body = Body(UNTIL_CLOSE, UNTIL_CLOSE)
    assert feed(body, [b"hello"]) == (b"hello", b"")
    assert not body.is_done

    assert list(body.end()) == []

    assert body.is_through


@pytest.mark.parametrize("kind", FRAMINGS)
def test_a_body_over_its_limit_is_refused_with_413(kind: BodyKind) -> None:
    framing, raw = frame(kind, [b"hello", b"world"])
    assert feed(Body(framing, framing, limit=10), [raw])[0]

    for pieces in ([raw], cut(raw, list(range(len(raw))))):
        with pytest.raises(MalformedMessage) as caught:
            feed(Body(framing, framing, limit=9), pieces)
        assert caught.value.status == 413


def test_what_passes_by_counts_towards_the_limit() -> None:
    body = Body(CHUNKED, CHUNKED, limit=9)
    body.feed(b"a\r\n", 3)

    with pytest.raises(MalformedMessage) as caught:
        body.skip(10)

    assert caught.value.status == 413


def test_too_many_trailer_fields_are_refused_with_431() -> None:
    raw = b"0\r\n" + b"A: b\r\n" * 3 + b"\r\n"
    assert feed(Body(CHUNKED, CHUNKED, max_trailer_fields=3), [raw]) == (LAST_CHUNK, b"")

    with pytest.raises(MalformedMessage) as caught:
        feed(Body(CHUNKED, CHUNKED, max_trailer_fields=2), [raw])

    assert caught.value.status == 431


def test_trailers_and_extensions_end_here() -> None:
    raw = b"5;a=b\r\nhello\r\n0;c\r\nX: y\r\n\r\n"

    sent, _ = feed(Body(CHUNKED, CHUNKED), [raw])

    assert sent == b"5\r\nhello\r\n" + LAST_CHUNK


def test_a_body_is_through_when_the_other_side_has_taken_it() -> None:
    body = Body(Framing(BodyKind.LENGTH, 5), Framing(BodyKind.LENGTH, 5))
    assert not body.is_touched
    body.feed(b"hello", 5)
    body.unsent = b"lo"
    assert (body.is_done, body.is_touched, body.is_through) == (True, True, False)

    body.unsent = b""

    assert body.is_through
