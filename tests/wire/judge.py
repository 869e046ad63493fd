"""Says whether what a party received is what its script expects.

`Exact` is for Atlas: heads byte for byte (only the place of the fields that a proxy sets itself is
its own choice), bodies decoded, answers of its own complete with length and `Connection: close`.
`Lenient` is for other proxies: names in any case and order, fields that each adds for itself left
out, and any refusal is as good as another.
"""

from __future__ import annotations

import email.utils
import re
from dataclasses import replace
from itertools import groupby

from tests.wire.messages import Message, read_answers, read_requests

# Answers of Atlas to a client's fault end the connection.
_CLOSING = {400, 408, 413, 414, 417, 431, 501, 505}


class Exact:
    """Compares what one party received with what it should have; see the module."""

    def __init__(self, side: str, methods: list[bytes]) -> None:
        """`side` is "client" or "upstream"; `methods` are those of the requests it sent."""
        self._reads_answers = side == "client"
        self._methods = methods

    def is_as_expected(self, received: bytes, expected: list[bytes | int]) -> bool:
        """Is `received` exactly `expected`, no less and no more?"""
        got = self._read(received, self._methods)
        wanted = self._expand(expected)
        return len(got) == len(wanted) and all(map(self._are_equal, got, wanted))

    def _read(self, raw: bytes, methods: list[bytes]) -> list[Message]:
        return read_answers(raw, methods) if self._reads_answers else read_requests(raw)

    def _expand(self, expected: list[bytes | int]) -> list[Message | int]:
        """Turn texts into messages; neighbouring texts may be parts of one."""
        items: list[Message | int] = []
        for is_text, group in groupby(expected, lambda item: isinstance(item, bytes)):
            if is_text:
                answered = len([item for item in items if isinstance(item, int)])
                text = b"".join(group)  # type: ignore[arg-type]
                items += self._read(text, self._methods[answered:])
            else:
                items += group  # type: ignore[arg-type]
        return items

    def _are_equal(self, got: Message, wanted: Message | int) -> bool:
        if isinstance(wanted, Message):
            if self._reads_answers and not wanted.field(b"date"):
                got = _without_date(got)
            same_body = (got.body, got.end) == (wanted.body, wanted.end)
            return same_body and got.head_lines() == wanted.head_lines()
        if got.status != wanted or got.end != "whole" or len(got.field(b"content-length")) != 1:
            return False
        return wanted not in _CLOSING or got.field(b"connection") == [b"close"]


def _without_date(answer: Message) -> Message:
    """An answer without the Date that Atlas has added, if there is exactly one and it is good."""
    dates = [value.decode("ascii") for value in answer.field(b"date")]
    if answer.status < 200 or len(dates) != 1 or email.utils.parsedate_tz(dates[0]) is None:
        return answer
    return replace(answer, head=re.sub(rb"\r\nDate: [^\r]*", b"", answer.head))


class Lenient(Exact):
    """Judges other proxies; see the module."""

    def _are_equal(self, got: Message, wanted: Message | int) -> bool:
        if isinstance(wanted, Message):
            return got.essence() == wanted.essence()
        # Any refusal of a client's fault will do, but an upstream's fault must not be the client's.
        return got.status >= (500 if wanted >= 502 and wanted != 505 else 400)
