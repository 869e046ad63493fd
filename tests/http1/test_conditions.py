"""Conditions and ranges, in the order of RFC 9110 §13.2.2."""

from __future__ import annotations

import pytest

from atlas_pkg.config.model import Limits
from atlas_pkg.http1.conditions import Selection, select, show_date
from atlas_pkg.http1.message import MessageParser

SIZE, TAG, MODIFIED = 10, b'"tag"', 1_700_000_000
NOW = MODIFIED + 1000
SAME = show_date(MODIFIED).decode()
BEFORE, AFTER = (show_date(MODIFIED + by).decode() for by in (-1, 1))
WHOLE = Selection(200, 0, SIZE)
FAILED, NOT_MODIFIED, BEYOND = Selection(412, 0, 0), Selection(304, 0, 0), Selection(416, 0, 0)


def judge(*lines: str, method: str = "GET", size: int = SIZE, now: int = NOW) -> Selection:
    head = "\r\n".join([f"{method} / HTTP/1.1", "Host: a", *lines, "", ""])
    request = MessageParser(Limits()).parse_request(head.encode("latin-1"))
    return select(request, size=size, tag=TAG, modified=MODIFIED, now=now)


def part(start: int, length: int) -> Selection:
    return Selection(206, start, length)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('If-Match: "tag"', WHOLE),
        ('If-Match: "a", "tag"', WHOLE),
        ("If-Match: *", WHOLE),
        ('If-Match: "other"', FAILED),
        ('If-Match: W/"tag"', FAILED),  # a strong comparison
        (f"If-Unmodified-Since: {SAME}", WHOLE),
        (f"If-Unmodified-Since: {AFTER}", WHOLE),
        (f"If-Unmodified-Since: {BEFORE}", FAILED),
        ("If-Unmodified-Since: yesterday", WHOLE),
        ('If-None-Match: "tag"', NOT_MODIFIED),
        ('If-None-Match: W/"tag"', NOT_MODIFIED),
        ('If-None-Match: "a",W/"b" , "tag"', NOT_MODIFIED),
        ("If-None-Match: *", NOT_MODIFIED),
        ('If-None-Match: "other"', WHOLE),
        ("If-None-Match: tag", WHOLE),
        (f"If-Modified-Since: {SAME}", NOT_MODIFIED),
        (f"If-Modified-Since: {AFTER}", NOT_MODIFIED),
        (f"If-Modified-Since: {BEFORE}", WHOLE),
        ("If-Modified-Since: Tuesday, 14-Nov-23 22:13:20 GMT", NOT_MODIFIED),  # RFC 850
        ("If-Modified-Since: Tue Nov 14 22:13:20 2023", NOT_MODIFIED),  # asctime
        ("If-Modified-Since: now", WHOLE),
        ("Accept: */*", WHOLE),
    ],
)
def test_a_condition_alone(line: str, expected: Selection) -> None:
    assert judge(line) == expected
    assert judge(line, method="HEAD") == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # Entity tags go before dates, and what must match before what must not.
        (('If-Match: "tag"', f"If-Unmodified-Since: {BEFORE}"), WHOLE),
        (('If-Match: "other"', 'If-None-Match: "tag"'), FAILED),
        (('If-None-Match: "other"', f"If-Modified-Since: {SAME}"), WHOLE),
        (('If-Match: "tag"', 'If-None-Match: "tag"'), NOT_MODIFIED),
        (('If-None-Match: "a"', 'If-None-Match: "tag"'), NOT_MODIFIED),
        # A range counts where the whole would have been sent.
        (('If-None-Match: "tag"', "Range: bytes=0-1"), NOT_MODIFIED),
        (('If-None-Match: "other"', "Range: bytes=0-1"), part(0, 2)),
        (('If-Match: "other"', "Range: bytes=99-"), FAILED),
    ],
)
def test_conditions_together(lines: tuple[str, ...], expected: Selection) -> None:
    assert judge(*lines) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", part(0, 1)),
        ("bytes=2-4", part(2, 3)),
        ("bytes=2-", part(2, 8)),
        ("bytes=2-99", part(2, 8)),
        ("bytes=-3", part(7, 3)),
        ("bytes=-99", part(0, 10)),
        ("Bytes=9-9", part(9, 1)),
        ("bytes=10-", BEYOND),
        ("bytes=10-20", BEYOND),
        (f"bytes={'9' * 30}-", BEYOND),
        ("bytes=-0", BEYOND),
        # Not understood, or several: the whole (RFC 9110 §14.2).
        ("bytes=4-2", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=0-1,3-4", WHOLE),
        ("bytes 0-1", WHOLE),
        ("lines=0-1", WHOLE),
        (f"bytes={'9' * 5000}-", WHOLE),
    ],
)
def test_a_range(value: str, expected: Selection) -> None:
    assert judge(f"Range: {value}") == expected
    assert judge(f"Range: {value}", method="HEAD") == WHOLE


def test_no_range_of_nothing_can_be_sent() -> None:
    assert judge("Range: bytes=0-", size=0) == BEYOND
    assert judge("Range: bytes=-1", size=0) == BEYOND


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ('"tag"', part(2, 3)),
        ('W/"tag"', WHOLE),
        ('"other"', WHOLE),
        (SAME, part(2, 3)),
        (BEFORE, WHOLE),
        (AFTER, WHOLE),  # it has to be just this date
        ("nonsense", WHOLE),
    ],
)
def test_a_range_of_what_the_client_knows(condition: str, expected: Selection) -> None:
    assert judge("Range: bytes=2-4", f"If-Range: {condition}") == expected
    assert judge(f"If-Range: {condition}") == WHOLE


def test_a_date_is_no_proof_while_its_second_may_still_bring_a_change() -> None:
    lines = ("Range: bytes=2-4", f"If-Range: {SAME}")

    assert judge(*lines, now=MODIFIED) == judge(*lines, now=MODIFIED + 1) == WHOLE
    assert judge(*lines, now=MODIFIED + 2) == part(2, 3)
