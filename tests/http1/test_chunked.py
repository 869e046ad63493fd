"""Chunks: what is decoded and what is refused, the same at every split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.errors import MalformedMessage
from atlas_pkg.http1.chunked import (
    LAST_CHUNK,
    MAX_CHUNK_LINE,
    MAX_TRAILERS,
    ChunkedDecoder,
    size_of_one_chunk,
)
from tests.http1.readers import decode, encode_chunk

BODIES = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"005;a=b\r\nhello\r\n00;c\r\n\r\n", b"hello"),
    (b'5 ; a = "b;\\"c"\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n', b"hello0123456789"),
    (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    (b"d\r\n5\r\n0\r\n\r\nhello\r\n0\r\n\r\n", b"5\r\n0\r\n\r\nhello"),
    (b"1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n", b"x"),
]


@pytest.mark.parametrize(("raw", "body"), BODIES)
@pytest.mark.parametrize("rest", [b"", b"GET / HTTP/1.1\r\n\r\n"])
def test_chunks_are_decoded_at_every_split(raw: bytes, body: bytes, rest: bytes) -> None:
    data = raw + rest

    for at in range(len(data) + 1):
        assert decode_in([data[:at], data[at:]]) == (body, rest)


@pytest.mark.parametrize(("raw", "body"), BODIES)
def test_chunks_are_decoded_byte_by_byte(raw: bytes, body: bytes) -> None:
    assert decode_in([raw[at : at + 1] for at in range(len(raw))]) == (body, b"")


def decode_in(pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Decode a body that comes in pieces; returns it and what followed it."""
    decoder = ChunkedDecoder()
    body = rest = b""
    for piece in pieces:
        if decoder.is_done:
            rest += piece
            continue
        data, rest = decode(decoder, piece)
        body += data
    assert decoder.is_done
    return body, rest


BAD_BODIES = [
    b"g\r\n",
    b"5g\r\n",
    b"0x5\r\n",
    b"+5\r\n",
    b" 5\r\n",
    b"5 \r\n",
    b"\r\n",
    b";a\r\n",
    b"5;\r\n",
    b"5;a=\r\n",
    b'5;a="\r\n',
    b"5;\x01\r\n",
    b"5\nhello\n",
    b"5\rhello",
    b"1000000000000000\r\n",
    b"5\r\nhelloX",
    b"5\r\nhello\n",
    b"5\r\nhello\rX",
    b"0\r\nX\r\n\r\n",
    b"0\r\nX : y\r\n\r\n",
    b"0\r\n X: y\r\n\r\n",
    b"0\r\n: y\r\n\r\n",
    b"0\r\nX: \x00\r\n\r\n",
    b"0\r\nX: y\n\r\n",
    b"0\r\n\n",
    b"5;" + b"x" * MAX_CHUNK_LINE,
    b"0\r\nX: " + b"y" * MAX_TRAILERS,
    b"0\r\n" + b"X: y\r\n" * 101,
]


@pytest.mark.parametrize("raw", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_malformed_chunks_are_refused_at_every_split(raw: bytes) -> None:
    for at in range(min(len(raw), 100)):
        decoder = ChunkedDecoder()

        with pytest.raises(MalformedMessage):
            feed(decoder, [raw[:at], raw[at:]])


@pytest.mark.parametrize("raw", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_malformed_chunks_are_refused_byte_by_byte(raw: bytes) -> None:
    with pytest.raises(MalformedMessage):
        feed(ChunkedDecoder(), [raw[at : at + 1] for at in range(len(raw))])


def feed(decoder: ChunkedDecoder, pieces: list[bytes]) -> None:
    for piece in pieces:
        decode(decoder, piece)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_any_split_of_chunks_gives_the_same_body(chunks: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(encode_chunk(chunk) for chunk in chunks) + LAST_CHUNK
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))

    pieces = [raw[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    assert decode_in(pieces) == (b"".join(chunks), b"")


def test_decoder_takes_note_of_bytes_that_went_past_it() -> None:
    decoder = ChunkedDecoder()

    first, _ = decode(decoder, b"a\r\n012")
    decoder.skip(decoder.remaining)
    last, rest = decode(decoder, b"\r\n1\r\nx\r\n0\r\n\r\nrest")

    assert (first, last, rest) == (b"012", b"x", b"rest")
    assert decoder.is_done


@given(st.binary(min_size=1, max_size=300))
def test_a_body_in_one_chunk_is_known_at_once(data: bytes) -> None:
    assert size_of_one_chunk(b"%x\r\n" % len(data) + data + b"\r\n" + LAST_CHUNK) == len(data)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"5", b"5\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n"),
        b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"6\r\nhello\r\n0\r\n\r\n",
        b"05\r\nhello\r\n0\r\n\r\n",
        b"A\r\n0123456789\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA: b\r\n\r\n",
        b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ],
)
def test_all_else_is_left_to_be_decoded(body: bytes) -> None:
    assert size_of_one_chunk(body) is None
