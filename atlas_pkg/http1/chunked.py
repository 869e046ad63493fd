"""The chunked transfer coding (RFC 9112 §7.1): decoded piece by piece, whatever the cuts.

Decoding is strict, since a chunk line that two parties read differently is how requests are
smuggled. Only blanks behind a size are let pass in answers: embedded servers pad it with them, and
an answer smuggles no request. Extensions are discarded. Trailers are held to the rules of fields,
and dropped.
"""

from __future__ import annotations

import enum

from atlas_pkg.errors import MalformedMessage
from atlas_pkg.http1 import syntax

# One chunk line with its extensions. Signed uploads carry some 100 bytes; nobody needs 4 KiB.
MAX_CHUNK_LINE = 4096

# All trailer fields of one body together.
MAX_TRAILERS = 16 * 1024

LAST_CHUNK = b"0\r\n\r\n"


def size_of_one_chunk(body: bytes) -> int | None:
    """The size of the data if `body` is all of it in a single chunk, in just the bytes that we
    would write for it; else None. Short answers come so, and may pass as they are.
    """
    match = syntax.ONE_CHUNK.match(body)
    if match is None:
        return None
    size = int(match[1], 16)
    is_whole = len(body) == match.end() + size + 7 and body.endswith(b"\r\n0\r\n\r\n")
    return size if is_whole else None


class _Part(enum.Enum):
    """What the decoder expects next."""

    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILERS = enum.auto()
    DONE = enum.auto()


class ChunkedDecoder:
    """Decodes one chunked body, fed with pieces cut anywhere (RFC 9112 §7.1).

    `remaining` is how many bytes of the current chunk are still to come. Not thread-safe.
    """

    __slots__ = (
        "_max_trailer_fields",
        "_may_be_padded",
        "_part",
        "_pending",
        "_trailers",
        "remaining",
    )

    def __init__(self, max_trailer_fields: int = 100, *, may_be_padded: bool = False) -> None:
        """`may_be_padded`: blanks may stand between a chunk's size and its line end."""
        self._may_be_padded = may_be_padded
        self._part = _Part.SIZE
        self._pending = b""
        self._trailers = (0, 0)  # fields and bytes seen so far
        self._max_trailer_fields = max_trailer_fields
        self.remaining = 0

    @property
    def is_done(self) -> bool:
        """Has the whole body, trailers included, been decoded?"""
        return self._part is _Part.DONE

    def skip(self, count: int) -> None:
        """Note that `count` bytes of the current chunk were moved without passing through here."""
        self.remaining -= count
        if not self.remaining:
            self._part = _Part.DATA_END

    def feed(self, data: bytes | bytearray, end: int) -> tuple[list[memoryview], bytes]:
        """Take the first `end` bytes of `data`; returns the body's data in them, and what follows
        the body's end.

        The pieces are views of `data`, valid as long as that is not written again. The second part
        is empty until `is_done`. Raises `MalformedMessage` at the first byte that cannot be right;
        what was decoded before it in this call is lost.
        """
        judged = len(self._pending)
        if judged:
            data = self._pending + bytes(memoryview(data)[:end])
            end = len(data)
            self._pending = b""
        view = memoryview(data)
        pieces: list[memoryview] = []
        at = 0
        while at < end and self._part is not _Part.DONE:
            if self._part is _Part.DATA:
                taken = min(self.remaining, end - at)
                pieces.append(view[at : at + taken])
                at += taken
                self.skip(taken)
                continue
            if self._part is _Part.SIZE and (match := syntax.ONE_CHUNK.match(data, at, end)):
                self.remaining = int(match[1], 16)  # the common case, judged at once
                self._part = _Part.DATA
                at = match.end()
                continue
            line_end = data.find(b"\n", at, end)
            if line_end < 0:
                self._keep_pending(bytes(view[at:end]), judged if at == 0 else 0)
                return pieces, b""
            self._take_line(bytes(view[at : line_end + 1]))
            at = line_end + 1
        return pieces, bytes(view[at:end])

    def _keep_pending(self, rest: bytes, judged: int) -> None:
        """Keep an incomplete line, unless it can no longer become a good one.

        The first `judged` bytes of it have been looked at before: looking again at each piece
        would make a line that comes byte by byte cost the square of its length.
        """
        limit = {_Part.SIZE: MAX_CHUNK_LINE, _Part.DATA_END: 1}.get(self._part, MAX_TRAILERS)
        if len(rest) > limit:
            raise MalformedMessage("a chunk line is too long or missing")
        if self._part is _Part.DATA_END and rest != b"\r":
            raise MalformedMessage("chunk data is longer than its size")
        # Judge what is there already: a hostile client must not keep us waiting with it.
        if self._part is _Part.SIZE and not syntax.CHUNK_START.match(rest):
            raise MalformedMessage("a chunk size is not hexadecimal")
        if syntax.BAD_LINE_END.search(rest, max(0, judged - 1)):
            raise MalformedMessage("a line in the chunked body does not end with CRLF")
        self._pending = rest

    def _take_line(self, line: bytes) -> None:
        """Judge one line with its line end and move on to the part that follows it."""
        if not line.endswith(b"\r\n") or line.find(b"\r") != len(line) - 2:
            raise MalformedMessage("a line in the chunked body does not end with CRLF")
        if self._part is _Part.SIZE:
            self._take_size(line[:-2])
        elif self._part is _Part.DATA_END:
            if line != b"\r\n":
                raise MalformedMessage("chunk data is longer than its size")
            self._part = _Part.SIZE
        elif line == b"\r\n":
            self._part = _Part.DONE
        else:
            self._check_trailer(line)

    def _take_size(self, line: bytes) -> None:
        if len(line) > MAX_CHUNK_LINE:
            raise MalformedMessage("a chunk line is too long")
        if self._may_be_padded:
            line = line.rstrip(b" \t")
        match = syntax.CHUNK_LINE.fullmatch(line)
        if match is None:
            raise MalformedMessage("a chunk size or extension is malformed")
        digits = match[1].lstrip(b"0")
        if len(digits) > 15:  # 60 bits: no overflow in anybody's 64-bit counter
            raise MalformedMessage("a chunk size is too large")
        self.remaining = int(digits or b"0", 16)
        self._part = _Part.DATA if self.remaining else _Part.TRAILERS

    def _check_trailer(self, line: bytes) -> None:
        """Hold trailers to the rules of fields although they are dropped."""
        fields, size = self._trailers
        self._trailers = fields, size = fields + 1, size + len(line)
        if fields > self._max_trailer_fields or size > MAX_TRAILERS:
            raise MalformedMessage("too many trailer fields", status=431)
        if not syntax.FIELD_BLOCK.fullmatch(b"\r\n" + line):
            raise MalformedMessage("a trailer field is malformed")
