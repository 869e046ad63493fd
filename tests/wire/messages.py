"""Reads what arrived at either end, with a parser that shares nothing with Atlas.

Where a body was cut into chunks depends on how the bytes came in, so two texts cannot be compared
byte for byte. They are compared as messages: the head as it is, the body decoded, and whether the
message is whole. A message that could be framed in two ways is never whole here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([^\r\n]*)")
_CODING = re.compile(rb"(?i)\r\ntransfer-encoding:[ \t]*([^\r\n]*)")
_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3})")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\r\n]*)?\r\n")
_TRAILERS = re.compile(rb"(?:[^\r\n]+\r\n)*\r\n")

# What proxies add, set anew or write in their own way; left out where different ones are compared.
_NOISE = frozenset(
    b"connection content-length transfer-encoding keep-alive via date server x-forwarded-for"
    b" x-forwarded-proto x-forwarded-host".split()
)


@dataclass(frozen=True)
class Message:
    """One message: its head up to the empty line, its body decoded, and what is known of its end.

    `end` is "whole", "cut", or "open" for a body that only the end of the connection ends.
    """

    head: bytes
    body: bytes
    end: str

    @property
    def status(self) -> int:
        """The status of an answer, 0 where there is none."""
        match = _STATUS.match(self.head)
        return int(match[1]) if match else 0

    def field(self, name: bytes) -> list[bytes]:
        """All values of one field."""
        lines = re.findall(rb"(?i)\r\n" + re.escape(name) + rb":[ \t]*([^\r\n]*)", self.head)
        return [line.rstrip(b" \t") for line in lines]

    def head_lines(self) -> tuple[list[bytes], list[bytes]]:
        """The lines of the head in their order, and apart from them those that proxies set."""
        lines = self.head.split(b"\r\n")
        own = [line for line in lines if line.partition(b":")[0].lower() in _NOISE]
        return [line for line in lines if line not in own], sorted(own)

    def essence(self) -> tuple[bytes, list[tuple[bytes, bytes]], bytes, str]:
        """The message without what proxies do differently and may: case, order of names, noise."""
        line, _, block = self.head.partition(b"\r\n")
        # Each speaks a version of its own to either side.
        line = line[9:12] if line.startswith(b"HTTP/") else line.rpartition(b" ")[0]
        pairs = [item.partition(b":")[::2] for item in block.split(b"\r\n") if item]
        fields = [(name.lower(), value.strip(b" \t")) for name, value in pairs]
        kept = [pair for pair in fields if pair[0] not in _NOISE]
        return line, sorted(kept, key=lambda pair: pair[0]), self.body, self.end


def read_requests(raw: bytes) -> list[Message]:
    """Split what an upstream received into requests."""
    messages = []
    while raw:
        message, raw = _read_one(raw, has_body=True, is_request=True)
        messages.append(message)
    return messages


def read_answers(raw: bytes, methods: list[bytes]) -> list[Message]:
    """Split what a client received into answers to requests with `methods`."""
    messages = []
    waiting = list(methods)
    while raw:
        status = _STATUS.match(raw)
        number = int(status[1]) if status else 0
        method = waiting[0] if waiting else b"GET"
        if waiting and number >= 200:
            waiting.pop(0)
        has_body = number >= 200 and number not in {204, 304} and method != b"HEAD"
        message, raw = _read_one(raw, has_body=has_body, is_request=False)
        if number == 101:
            message, raw = Message(message.head, raw, "open"), b""
        messages.append(message)
    return messages


def _read_one(raw: bytes, *, has_body: bool, is_request: bool) -> tuple[Message, bytes]:
    """Take one message off the front of `raw`; returns it and what follows."""
    end = raw.find(b"\r\n\r\n") + 4
    if end < 4:
        return Message(raw, b"", "cut"), b""
    head, rest = raw[:end], raw[end:]
    lengths, codings = _LENGTH.findall(head), _CODING.findall(head)
    if not has_body:
        return Message(head, b"", "whole"), rest
    if len(lengths) + len(codings) > 1 or (codings and codings[0].strip().lower() != b"chunked"):
        return Message(head, rest, "cut"), b""
    if codings:
        body, is_whole, rest = _read_chunks(rest)
        return Message(head, body, "whole" if is_whole else "cut"), rest
    if lengths and not lengths[0].strip().isdigit():
        return Message(head, rest, "cut"), b""
    if lengths:
        length = int(lengths[0][-30:])
        state = "whole" if len(rest) >= length else "cut"
        return Message(head, rest[:length], state), rest[length:]
    if is_request:
        return Message(head, b"", "whole"), rest
    return Message(head, rest, "open"), b""


def _read_chunks(raw: bytes) -> tuple[bytes, bool, bytes]:
    """Decode a chunked body: its data, whether it is whole, and what follows."""
    body = b""
    while match := _CHUNK.match(raw):
        size, start = int(match[1], 16), match.end()
        if not size:
            trailers = _TRAILERS.match(raw, start)
            return (body, True, raw[trailers.end() :]) if trailers else (body, False, b"")
        body += raw[start : start + size]
        if raw[start + size : start + size + 2] != b"\r\n":
            return body, False, b""
        raw = raw[start + size + 2 :]
    return body, False, b""


def methods_in(raw: bytes) -> list[bytes]:
    """The methods of the requests in `raw`, as far as they can be told."""
    return [message.head.partition(b" ")[0] for message in read_requests(raw)]
