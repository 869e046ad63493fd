"""Conditions and ranges of a request for something whose state is known (RFC 9110 §13, §14).

A client that has a copy asks only for what it lacks: nothing, if its copy is still good (304), or
the rest of it (206). `select` judges the fields in the order of §13.2.2. A range counts only
if it is one, and a GET asks for it; with `If-Range` only of what the client knows already.

What the state is, a file's size and time for example, is said by who calls: `serving/static.py`.
"""

from __future__ import annotations

import calendar
import email.utils
import functools
import re
from typing import NamedTuple

from atlas_pkg.http1.message import Request

# Most requests have none of these.
_ANY = re.compile(rb"\n(?:if-|range:)", re.IGNORECASE)

_ENTITY_TAG = re.compile(rb'(W/)?("[!#-~\x80-\xff]*")')

# No file is longer than 19 digits tell; a number of a hundred is beyond its end as well.
_RANGE = re.compile(rb"bytes=[ \t]*([0-9]{0,100})-([0-9]{0,100})[ \t]*", re.IGNORECASE)


class Selection(NamedTuple):
    """What the answer is: its status, and of the whole the part that it sends."""

    status: int  # 200, 206, 304, 412 or 416
    start: int
    length: int


def select(request: Request, *, size: int, tag: bytes, modified: int, now: int) -> Selection:
    """Judge what a GET or HEAD is to be sent of something that would be sent whole.

    `tag` is a strong entity tag with its quotes; `modified` and `now` are seconds since 1970.
    """
    fields = request.fields
    whole = Selection(200, 0, size)
    if not _ANY.search(fields.block):
        return whole
    if matches := fields.values(b"if-match"):
        if not _names(matches, tag, is_strong=True):
            return Selection(412, 0, 0)
    elif (since := _read_date(fields.get(b"if-unmodified-since"))) is not None and modified > since:
        return Selection(412, 0, 0)
    if matches := fields.values(b"if-none-match"):
        if _names(matches, tag, is_strong=False):
            return Selection(304, 0, 0)
    elif (since := _read_date(fields.get(b"if-modified-since"))) is not None and modified <= since:
        return Selection(304, 0, 0)
    ranges = fields.values(b"range")
    if len(ranges) != 1 or request.method != b"GET":
        return whole
    condition = fields.get(b"if-range")
    if condition is not None and not _is_known(condition, tag, modified, now):
        return whole
    return _cut_out(ranges[0], size) or whole


@functools.lru_cache(maxsize=64)
def show_date(second: int) -> bytes:
    """Write seconds since 1970 as HTTP does (RFC 9110 §5.6.7)."""
    return email.utils.formatdate(second, usegmt=True).encode("ascii")


def _names(values: list[bytes], tag: bytes, *, is_strong: bool) -> bool:
    """Is `tag` among the entity tags in `values`? For a strong comparison weak ones are none."""
    value = b",".join(values)
    if value == b"*":
        return True
    found = _ENTITY_TAG.findall(value)
    return any(opaque == tag and not (weak and is_strong) for weak, opaque in found)


def _is_known(condition: bytes, tag: bytes, modified: int, now: int) -> bool:
    """Does `If-Range` name just this state (RFC 9110 §13.1.5)?

    A date does so only where a second change within its second can be ruled out (§8.8.2.2).
    """
    if condition.endswith(b'"'):
        return condition == tag
    return _read_date(condition) == modified and modified < now - 1


def _cut_out(text: bytes, size: int) -> Selection | None:
    """Read one range of bytes; None for what is to be ignored."""
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        return Selection(206, size - length, length) if length else Selection(416, 0, 0)
    first, last = int(match[1]), int(match[2] or size)
    if match[2] and last < first:
        return None
    if first >= size:
        return Selection(416, 0, 0)
    return Selection(206, first, min(last + 1, size) - first)


def _read_date(value: bytes | None) -> int | None:
    """Read a date in any of HTTP's three forms; None for what is none, and is to be ignored."""
    if value is None:
        return None
    parsed = email.utils.parsedate(value.decode("latin-1"))
    if parsed is None:
        return None
    try:
        return calendar.timegm(parsed)
    except (ValueError, OverflowError):
        return None
