"""What Atlas sends on is read by others as exactly the request that Atlas read.

Two parsers of other makers read it: h11, and llhttp by way of httptools. They need not accept what
the client sent; they must agree on what is forwarded.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from atlas_pkg.errors import ClientError, MalformedMessage
from tests.http1.readers import Misread, NotWhole, Reading, check_agreement, read_with_h11, take
from tests.http1.samples import BASES, requests, spoiled


@pytest.mark.parametrize(
    ("data", "count"), list(zip(BASES, [1, 2, 1, 1, 2, 2, 2], strict=True)), ids=range(len(BASES))
)
def test_good_requests_are_read_alike(data: bytes, count: int) -> None:
    assert check_agreement(data) == count


def test_readers_can_disagree() -> None:
    with pytest.raises(Misread, match="after it"):
        read_with_h11(BASES[0] + BASES[0])


def test_reading_is_compared_without_the_neighbours_fields() -> None:
    reading = Reading(b"GET", b"/", [(b"host", b"a"), (b"te", b"x"), (b"connection", b"te")])

    assert reading.end_to_end().fields == [(b"host", b"a")]


@settings(max_examples=150)
@given(requests())
def test_accepted_request_is_read_alike_by_others(data: bytes) -> None:
    try:
        _, _, _, rest = take(data)
    except ClientError:
        return

    assert check_agreement(data) == 1
    assert rest == b""


@settings(max_examples=250)
@given(spoiled() | spoiled(requests()))
def test_spoiled_request_is_refused_or_read_alike_by_others(data: bytes) -> None:
    try:
        check_agreement(data)
    except (ClientError, MalformedMessage, NotWhole):
        return
