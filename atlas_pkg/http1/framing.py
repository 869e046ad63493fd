"""Where a body ends: decided once, from the fields.

Most attacks on proxies make two parties disagree about the end of a message. So the decision is
taken in one place, from one reading of the fields, and `Framing` carries it through the rest of
the exchange. What Atlas sends on is framed anew from the decision, never copied.

Not done here: reading the body (`body.py`), and its chunks (`chunked.py`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from atlas_pkg.errors import MalformedMessage
from atlas_pkg.http1 import syntax

# Content-Length beyond what the servers behind us can count in a signed 64-bit number.
MAX_LENGTH = 2**63 - 1


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
