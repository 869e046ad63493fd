"""Where a body ends: decided once from the fields, then decoded piece by piece.

Most attacks on proxies make two parties disagree about the end of a message. So the decision is
taken in one place, from one reading of the fields, and `Framing` carries it through the rest of
the exchange. What Atlas sends on is framed anew from the decision, never copied.

`ChunkedDecoder` takes bytes as they arrive and gives back the data in them. It holds at most one
incomplete line, so memory stays small whatever the body's size. Extensions and trailers are
checked, bounded and dropped (RFC 9112 §7.1.1 and §7.1.2 allow it).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from atlas_pkg.errors import MalformedMessage
from atlas_pkg.http1 import syntax

# Content-Length beyond what the servers behind us can count in a signed 64-bit number.
MAX_LENGTH = 2**63 - 1

# One chunk line with its extensions. Signed uploads carry some 100 bytes; nobody needs 4 KiB.
MAX_CHUNK_LINE = 4096

# All trailer fields of one body together.
MAX_TRAILERS = 16 * 1024


class BodyKind(enum.Enum):
    """The four ways in which a message says where it ends, RFC 9112 §6.3."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


@dataclass(frozen=True, slots=True)
class Framing:
    """How one message is delimited; `length` is in bytes and only meant for `LENGTH`."""

    kind: BodyKind
    length: int = 0


NO_BODY = Framing(BodyKind.NONE)
CHUNKED = Framing(BodyKind.CHUNKED)
UNTIL_CLOSE = Framing(BodyKind.UNTIL_CLOSE)


def parse_content_length(value: bytes) -> int:
    """Read a Content-Length; raises `MalformedMessage` for all that is not one number."""
    if not syntax.DIGITS.fullmatch(value):
        raise MalformedMessage("Content-Length is not a number")
    # Python refuses to convert thousands of digits, and no length needs them.
    digits = value.lstrip(b"0") or b"0"
    if len(digits) > 19 or int(digits) > MAX_LENGTH:
        raise MalformedMessage("Content-Length is too large")
    return int(digits)


def frame_request(lengths: list[bytes], codings: list[bytes]) -> Framing:
    """Decide a request's framing from its Content-Length and Transfer-Encoding values.

    Raises `MalformedMessage` with status 501 for codings that exist but are not ours to undo, and
    400 for everything that two parties could read differently (RFC 9112 §6.1, §6.3).
    """
    if not codings:
        if not lengths:
            return NO_BODY
        if len(lengths) > 1:
            raise MalformedMessage("two Content-Length fields")
        length = parse_content_length(lengths[0])
        return Framing(BodyKind.LENGTH, length)
    if lengths:
        raise MalformedMessage("both Transfer-Encoding and Content-Length")
    if len(codings) > 1:
        raise MalformedMessage("two Transfer-Encoding fields")
    if codings[0].lower() == b"chunked":
        return CHUNKED
    if syntax.CODINGS_BEFORE_CHUNKED.fullmatch(codings[0]):
        raise MalformedMessage("Transfer-Encoding other than chunked is not supported", status=501)
    raise MalformedMessage("Transfer-Encoding is not chunked")


def frame_response(lengths: list[bytes], codings: list[bytes]) -> Framing:
    """Decide an answer's framing from its fields, before its status and method are looked at.

    Equal Content-Length values count as one (RFC 9110 §8.6); what differs or mixes is refused.
    Raises `MalformedMessage`.
    """
    if codings:
        if lengths:
            raise MalformedMessage("both Transfer-Encoding and Content-Length")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise MalformedMessage("Transfer-Encoding is not chunked")
        return CHUNKED
    if not lengths:
        return UNTIL_CLOSE
    members = b",".join(lengths).split(b",")
    numbers = {parse_content_length(member.strip(b" \t")) for member in members}
    if len(numbers) != 1:
        raise MalformedMessage("Content-Length values differ")
    return Framing(BodyKind.LENGTH, numbers.pop())


def encode_chunk(data: bytes) -> bytes:
    """Wrap `data` (not empty: an empty chunk would end the body) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


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

    __slots__ = ("_max_trailer_fields", "_part", "_pending", "_trailers", "remaining")

    def __init__(self, max_trailer_fields: int = 100) -> None:
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

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Take the next bytes; return the body data in them and what follows the body's end.

        The second part is empty until `is_done`. Raises `MalformedMessage` at the first byte that
        cannot be right; what was decoded before it in this call is lost.
        """
        pieces, rest = self.feed(data, len(data))
        return b"".join(pieces), rest

    def feed(self, data: bytes | bytearray, end: int) -> tuple[list[memoryview], bytes]:
        """As `decode`, for the first `end` bytes of `data` and without copying.

        The pieces of body data are views of `data`, valid as long as that is not written again.
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
