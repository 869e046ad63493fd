"""A record as one line of the access log: for tools that know nginx, or as JSON.

`Combined` is nginx's format of that name, byte for byte, so what reads nginx's logs reads ours.
What comes from outside may hold anything, and a line of a log must stay one line, with its fields
where they belong: quotes, backslashes, control characters and all bytes beyond ASCII are written
as `\\xHH`. A value that is missing is `-`.

`Json` is one object a line, for machines. It has what `combined` has no place for: where the time
went, which upstream answered, and how the exchange ended. Text is ASCII with JSON's own escapes; a
byte that is not UTF-8 stands there as the four characters `\\xHH`. What is missing is null.

Most values come again and again, so how they are written is remembered; request lines do not.

Pure, but for the time zone, and thread-safe.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Protocol

from atlas_pkg.observing.record import NO_TIMES, RAW_LINE, Record

# As nginx's own table has it, DEL included.
_UNSAFE = re.compile(rb'["\\\x00-\x1f\x7f-\xff]')

# The address stands without quotes, so it may hold no space either.
_UNSAFE_WORD = re.compile(rb'["\\\x00-\x20\x7f-\xff]')

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Values whose written form is remembered, for each way of writing.
_REMEMBERED = 1024

# Fewer of those that clients may make as long as a head: one of 32 KB takes 160 KB when escaped.
_REMEMBERED_LONG = 128

_encode = json.JSONEncoder().encode


class Format(Protocol):
    """A way to write records."""

    shows_times: bool  # when each stage was reached

    def format(self, records: Sequence[Record], epoch: float) -> list[bytes]:
        """Return a line with its end for each record.

        `epoch` is what is to be added to their instants to get seconds since 1970.
        """


class Combined:
    """`ADDRESS - - [10/Oct/2000:13:55:36 +0000] "LINE" STATUS BYTES "REFERER" "USER-AGENT"`."""

    shows_times = False

    def __init__(self) -> None:
        self._stamp = functools.lru_cache(2)(_tell_time)
        self._begin = functools.lru_cache(_REMEMBERED)(_begin_line)
        self._tell = functools.lru_cache(_REMEMBERED)(_tell_answer)
        self._end = functools.lru_cache(_REMEMBERED_LONG)(_end_line)

    def format(self, records: Sequence[Record], epoch: float) -> list[bytes]:
        """Return a line with its end for each record; see `Format`."""
        lines = [record.line for record in records]
        if _UNSAFE.search(b"".join(lines)) or b"" in lines:  # one look for all of them
            lines = [_show(line) for line in lines]
        stamps = self._stamps(records, epoch)
        begin, tell, end = self._begin, self._tell, self._end
        return [
            b"".join(
                (
                    begin(record.address),
                    stamp,
                    line,
                    tell(record.status, record.body_out),
                    end(record.origin),
                )
            )
            for record, line, stamp in zip(records, lines, stamps, strict=True)
        ]

    def _stamps(self, records: Sequence[Record], epoch: float) -> Iterable[bytes]:
        """The time of each, which is nearly always the same second for all of them."""
        first, last = (int(record.ended_at + epoch) for record in (records[0], records[-1]))
        if first == last:
            return repeat(self._stamp(first), len(records))
        return [self._stamp(int(record.ended_at + epoch)) for record in records]


def _begin_line(address: str) -> bytes:
    return b"%b - - [" % _show_word(address)


def _tell_time(second: int) -> bytes:
    return b'%b] "' % _show_local(second).encode()


def _tell_answer(status: int, size: int) -> bytes:
    return b'" %03d %d ' % (status, size)


def _end_line(origin: tuple[bytes, bytes]) -> bytes:
    referer, user_agent = origin
    return b'"%b" "%b"\n' % (_show(referer), _show(user_agent))


class Json:
    """One object a line."""

    shows_times = True

    def __init__(self) -> None:
        self._stamp = (-1, "", "")  # of the last second: it, its date, its offset
        self._quote_host = functools.lru_cache(_REMEMBERED_LONG)(_quote)
        self._quote_text = functools.lru_cache(_REMEMBERED)(_quote_text)
        self._tell_place = functools.lru_cache(_REMEMBERED)(_tell_place)
        self._tell_origin = functools.lru_cache(_REMEMBERED_LONG)(_tell_origin)

    def format(self, records: Sequence[Record], epoch: float) -> list[bytes]:
        """Return a line with its end for each record; see `Format`."""
        lines = _tell_lines([record.line for record in records])
        return [
            self._format(record, line, record.ended_at + epoch).encode()
            for record, line in zip(records, lines, strict=True)
        ]

    def _format(self, record: Record, line: str, ended_at: float) -> str:
        times = record.times or NO_TIMES
        head_at, chosen_at = record.head_at, times.chosen_at
        return (
            f'{{"time":"{self._show_time(ended_at)}","client":{self._quote_text(record.address)}'
            f',{line},"host":{self._quote_host(record.host)},"status":{record.status}'
            f',"bytes_in":{record.body_in},"bytes_out":{record.body_out}'
            f",{self._tell_place(record.route, record.group, record.upstream)}"
            f',"head":{_span(record.began_at, head_at)},"queue":{_span(head_at, chosen_at)}'
            f',"connect":{_span(chosen_at, times.connected_at)}'
            f',"first_byte":{_span(times.asked_at, times.first_byte_at)}'
            f',"total":{_span(record.began_at, record.ended_at)}'
            f',"retries":{record.retries},"reused":{"true" if record.reused else "false"}'
            f',"end":"{record.end}","request_id":{_quote(record.request_id)}'
            f",{self._tell_origin(record.origin)}}}\n"
        )

    def _show_time(self, instant: float) -> str:
        """Write an instant as ISO 8601 has it, in local time."""
        # Rounded before it is split: 0.9996 s belong to the next second.
        second, thousandths = divmod(round(instant * 1000), 1000)
        stamped, date, offset = self._stamp
        if second != stamped:
            local = time.localtime(second)
            date = time.strftime("%Y-%m-%dT%H:%M:%S", local)
            offset = _show_offset(local)
            offset = f"{offset[:3]}:{offset[3:]}"
            self._stamp = (second, date, offset)
        return f"{date}.{thousandths:03d}{offset}"


def _show_local(second: int) -> str:
    """Write a second as nginx's `$time_local`, with English months wherever we run."""
    local = time.localtime(second)
    month = _MONTHS[local.tm_mon - 1]
    clock = time.strftime("%Y:%H:%M:%S", local)
    return f"{local.tm_mday:02d}/{month}/{clock} {_show_offset(local)}"


def _show_offset(local: time.struct_time) -> str:
    """Write the distance from UTC, as +HHMM."""
    minutes = local.tm_gmtoff // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}{abs(minutes) % 60:02d}"


def _show(value: bytes) -> bytes:
    """Write a value so that it stays where it belongs."""
    if not _UNSAFE.search(value):  # nearly all
        return value or b"-"
    return _UNSAFE.sub(_escape, value)


def _show_word(text: str) -> bytes:
    return _UNSAFE_WORD.sub(_escape, text.encode(errors="surrogateescape")) or b"-"


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\x%02X" % match[0][0]


def _tell_lines(lines: list[bytes]) -> list[str]:
    """Write request lines as their three words."""
    if _UNSAFE.search(b"".join(lines)):  # one look for all of them
        return [_tell_line(line) for line in lines]
    found = []
    for line in b"\n".join(lines).decode().split("\n"):
        words = line.split(" ")
        if len(words) == 3 and "" not in words:
            method, target, protocol = words
            found.append(f'"method":"{method}","target":"{target}","protocol":"{protocol}"')
        else:
            found.append(_tell_line(line.encode()))
    return found


def _tell_line(line: bytes) -> str:
    """Write a request line as its words; one that has not three stays whole, as target."""
    words = line.split(b" ")
    if line == RAW_LINE:
        words = [b"", b"", line]
    elif len(words) != 3:
        words = [b"", line, b""]
    method, target, protocol = map(_quote, words)
    return f'"method":{method},"target":{target},"protocol":{protocol}'


def _tell_place(route: str, group: str, upstream: str) -> str:
    names = ("" if name == "-" else name for name in (route, group, upstream))
    route, group, upstream = map(_quote_text, names)
    return f'"route":{route},"group":{group},"upstream":{upstream}'


def _tell_origin(origin: tuple[bytes, bytes]) -> str:
    referer, user_agent = map(_quote, origin)
    return f'"referer":{referer},"user_agent":{user_agent}'


def _quote(value: bytes) -> str:
    """Write a value from outside as a JSON string, or null where there is none."""
    if not value:
        return "null"
    if not _UNSAFE.search(value):  # nearly all, and four times as fast
        return f'"{value.decode()}"'
    text = _encode(value.decode(errors="backslashreplace"))
    # JSON allows DEL to stand there; a terminal that shows the log might obey it.
    return text.replace("\x7f", "\\u007f")


def _quote_text(text: str) -> str:
    return _quote(text.encode(errors="surrogateescape"))


def _span(begin: float, end: float) -> str:
    """Write how long a stage took; null where it was not reached (again, after a failure)."""
    if not begin or end < begin:
        return "null"
    # Most heads come whole, and most connections are at hand.
    return "0.000000" if end == begin else f"{end - begin:.6f}"
