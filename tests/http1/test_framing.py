"""Where a body ends: what lengths and codings say of it."""

from __future__ import annotations

import pytest

from atlas_pkg.errors import MalformedMessage
from atlas_pkg.http1.framing import (
    CHUNKED,
    MAX_LENGTH,
    NO_BODY,
    UNTIL_CLOSE,
    BodyKind,
    Framing,
    frame_request,
    frame_response,
    parse_content_length,
)


@pytest.mark.parametrize(
    ("value", "length"),
    [(b"0", 0), (b"5", 5), (b"007", 7), (b"0" * 5000 + b"1", 1), (b"%d" % MAX_LENGTH, MAX_LENGTH)],
)
def test_digits_are_a_length(value: bytes, length: int) -> None:
    assert parse_content_length(value) == length


@pytest.mark.parametrize(
    "value",
    [b"", b"+5", b"-5", b"0_5", b"0x5", b"5 5", b"5,5", b" 5", b"5\n", "٥".encode(), b"\xb2"],
)
def test_everything_else_is_no_length(value: bytes) -> None:
    with pytest.raises(MalformedMessage, match="not a number"):
        parse_content_length(value)


@pytest.mark.parametrize("value", [b"%d" % (MAX_LENGTH + 1), b"9" * 19, b"1" * 5000])
def test_length_is_bounded(value: bytes) -> None:
    with pytest.raises(MalformedMessage, match="too large"):
        parse_content_length(value)


@pytest.mark.parametrize(
    ("lengths", "codings", "framing"),
    [
        ([], [], NO_BODY),
        ([b"0"], [], Framing(BodyKind.LENGTH, 0)),
        ([b"5"], [], Framing(BodyKind.LENGTH, 5)),
        ([], [b"chunked"], CHUNKED),
        ([], [b"CHUNKED"], CHUNKED),
    ],
)
def test_request_is_framed_in_one_way(
    lengths: list[bytes], codings: list[bytes], framing: Framing
) -> None:
    assert frame_request(lengths, codings) == framing


@pytest.mark.parametrize(
    ("lengths", "codings", "status"),
    [
        ([b"5", b"5"], [], 400),
        ([b"5"], [b"chunked"], 400),
        ([b"x"], [b"chunked"], 400),
        ([], [b"chunked", b"chunked"], 400),
        ([], [b""], 400),
        ([], [b"chunked, chunked"], 400),
        ([], [b"identity"], 400),
        ([], [b"gzip, chunked"], 501),
        ([], [b"Deflate,\tchunked"], 501),
    ],
)
def test_request_that_could_be_framed_in_two_ways_is_refused(
    lengths: list[bytes], codings: list[bytes], status: int
) -> None:
    with pytest.raises(MalformedMessage) as caught:
        frame_request(lengths, codings)

    assert caught.value.status == status


@pytest.mark.parametrize(
    ("lengths", "codings", "framing"),
    [
        ([], [], UNTIL_CLOSE),
        ([b"5"], [], Framing(BodyKind.LENGTH, 5)),
        ([b"5", b"5"], [], Framing(BodyKind.LENGTH, 5)),
        ([b"5, 05"], [], Framing(BodyKind.LENGTH, 5)),
        ([], [b"Chunked"], CHUNKED),
    ],
)
def test_answer_is_framed_in_one_way(
    lengths: list[bytes], codings: list[bytes], framing: Framing
) -> None:
    assert frame_response(lengths, codings) == framing


@pytest.mark.parametrize(
    ("lengths", "codings"),
    [
        ([b"5", b"6"], []),
        ([b"5, 6"], []),
        ([b""], []),
        ([b","], []),
        ([b"5", b"+5"], []),
        ([b"5"], [b"chunked"]),
        ([], [b"chunked", b"chunked"]),
        ([], [b"gzip, chunked"]),
        ([], [b"identity"]),
    ],
)
def test_answer_that_could_be_framed_in_two_ways_is_refused(
    lengths: list[bytes], codings: list[bytes]
) -> None:
    with pytest.raises(MalformedMessage):
        frame_response(lengths, codings)
