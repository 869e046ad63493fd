"""Requests as other parsers read them: h11 and httptools (llhttp, strict).

Used to ask one question: is what Atlas sends on read by everybody as the one request that it was
taken for? Each reader must find exactly one whole request and nothing after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import h11
import httptools

from atlas_pkg.config.model import Forwarding, Limits
from atlas_pkg.http1.chunked import LAST_CHUNK, ChunkedDecoder
from atlas_pkg.http1.forwarding import Forwarder
from atlas_pkg.http1.framing import BodyKind
from atlas_pkg.http1.message import MessageParser, Request

# llhttp refuses methods that it does not know.
KNOWN_METHODS = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH PROPFIND SEARCH REPORT PURGE".split()
)

# What speaks to the neighbour, frames the message or announces what is dropped.
ENDS_HERE = frozenset(
    b"connection keep-alive proxy-connection te trailer upgrade expect content-length"
    b" transfer-encoding http2-settings".split()
)
_PROTECTED = frozenset((b"host", b"content-length", b"transfer-encoding"))
_LOOKALIKES = frozenset((b"contentlength", b"transferencoding"))

# What a stranger says of where a request came from is dropped, whatever separates its words.
_CLAIMS = re.compile(rb"forwarded|x-forwarded-.*|x-real-ip")
_TO_DASHES = bytes.maketrans(b"_.", b"--")

_PARSER = MessageParser(Limits())
_FORWARDER = Forwarder(Forwarding(x_forwarded=False, via=False))
_CLIENT = _FORWARDER.describe_client("192.0.2.1", "http")


class Misread(Exception):
    """A reader did not find exactly one whole request."""


class NotWhole(Exception):
    """What there is ends before a request does, so nothing can be said of it yet."""


@dataclass
class Reading:
    """One request as somebody reads it; fields in their order, names in lower case."""

    method: bytes = b""
    target: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    def end_to_end(self) -> Reading:
        """The same without the neighbours' own fields; only the order of equal names counts."""
        changed = {*ENDS_HERE}
        if self.method in (b"TRACE", b"OPTIONS"):
            changed.add(b"max-forwards")  # which is counted down (RFC 9110 §7.6.2)
        kept = [
            pair
            for pair in self.fields
            if pair[0] not in changed and not _CLAIMS.fullmatch(pair[0].translate(_TO_DASHES))
        ]
        kept.sort(key=lambda pair: pair[0])
        return Reading(self.method, self.target, kept, self.body)


def take(data: bytes) -> tuple[Request, Reading, bytes, bytes]:
    """Let Atlas take one request off the front of `data`.

    Returns it, what it should be read as, what is sent on, and what follows it. Raises what the
    parser and the decoder raise, and `NotWhole`.
    """
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        raise NotWhole("in the head")
    head, rest = data[:end], data[end:]
    request = _PARSER.parse_request(head)
    body, rest = _take_body(request, rest)
    onward = _FORWARDER.build_request_head(request, _CLIENT, b"fallback")
    if request.framing.kind is BodyKind.CHUNKED:
        onward += encode_chunk(body) + LAST_CHUNK
    else:
        onward += body
    expected = Reading(request.method, request.target, _expected_fields(head, request), body)
    return request, expected, onward, rest


def encode_chunk(data: bytes) -> bytes:
    """One chunk of `data`; of none, nothing, since an empty chunk would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def decode(decoder: ChunkedDecoder, data: bytes) -> tuple[bytes, bytes]:
    """The body's data in the next bytes, in one piece, and what follows the body's end."""
    pieces, rest = decoder.feed(data, len(data))
    return b"".join(pieces), rest


def _take_body(request: Request, rest: bytes) -> tuple[bytes, bytes]:
    if request.framing.kind is BodyKind.CHUNKED:
        decoder = ChunkedDecoder()
        body, rest = decode(decoder, rest)
        if not decoder.is_done:
            raise NotWhole("in the body")
        return body, rest
    length = request.framing.length
    if len(rest) < length:
        raise NotWhole("in the body")
    return rest[:length], rest[length:]


def _fold(name: bytes) -> bytes:
    """What CGI, WSGI and Rack make of a name, but for the case."""
    return re.sub(rb"[_.]", b"-", name.lower())


def _expected_fields(head: bytes, request: Request) -> list[tuple[bytes, bytes]]:
    """The fields of a head that are to be sent on, found in the plainest way there is."""
    pairs = []
    for line in head.split(b"\r\n")[1:-2]:
        name, _, value = line.partition(b":")
        pairs.append((name.lower(), value.strip(b" \t")))
    named = {
        _fold(member.strip(b" \t"))
        for name, value in pairs
        if name == b"connection"
        for member in value.split(b",")
    }
    gone = ENDS_HERE | (named - _PROTECTED - {b"close", b"keep-alive", b"upgrade"})
    kept = [
        pair
        for pair in pairs
        if _fold(pair[0]) not in gone
        and not re.fullmatch(rb"forwarded|x-real-ip|x-forwarded-.*", _fold(pair[0]))
        and (_fold(pair[0]) != b"x-request-id" or pair[0] == b"x-request-id")
        and re.sub(rb"[^a-z]", b"", pair[0]) not in _LOOKALIKES
    ]
    hosts = [value for name, value in kept if name == b"host"]
    host = request.host if request.host is not None else b"fallback"
    if hosts != [host]:
        kept = [(b"host", host), *(pair for pair in kept if pair[0] != b"host")]
    return kept


def read_with_h11(data: bytes) -> Reading:
    """Read one request with h11."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1024 * 1024)
    connection.receive_data(data)
    reading = Reading()
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                reading.method, reading.target = bytes(event.method), bytes(event.target)
                reading.fields = [(bytes(name), bytes(value)) for name, value in event.headers]
            elif isinstance(event, h11.Data):
                reading.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise Misread(f"h11 waits for more: {event}")
    except h11.RemoteProtocolError as error:
        raise Misread(f"h11: {error}") from error
    if connection.trailing_data[0]:
        raise Misread("h11 finds something after it")
    return reading


class _Listener:
    """Notes what httptools reports."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.ended = 0

    def on_message_begin(self) -> None:
        self.readings.append(Reading())

    def on_url(self, url: bytes) -> None:
        self.readings[-1].target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.readings[-1].fields.append((name.lower(), value.rstrip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.readings[-1].body += body

    def on_message_complete(self) -> None:
        self.ended += 1


def read_with_httptools(data: bytes) -> Reading:
    """Read one request with httptools; only for `KNOWN_METHODS`."""
    listener = _Listener()
    parser = httptools.HttpRequestParser(listener)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        # It stops after the head, and takes what follows for the other protocol's.
        if data.partition(b"\r\n\r\n")[2]:
            raise Misread("httptools switches protocols") from None
    except httptools.HttpParserError as error:
        raise Misread(f"httptools: {error}") from error
    if (len(listener.readings), listener.ended) != (1, 1):
        raise Misread(f"httptools finds {len(listener.readings)} requests, {listener.ended} whole")
    reading = listener.readings[0]
    reading.method = parser.get_method()
    return reading


def check_agreement(data: bytes) -> int:
    """Take all requests off `data`, and hold what is sent on to what others read in it.

    Returns how many there were; stops at the first that is refused or not whole.
    """
    count = 0
    while data:
        request, expected, onward, rest = take(data)
        raw, data = data[: len(data) - len(rest)], rest
        count += 1
        check_raw(raw, expected)
        expected = expected.end_to_end()
        assert read_with_h11(onward).end_to_end() == expected, onward
        # httptools takes the body of an upgrade for bytes of the other protocol.
        is_upgrade_with_body = bool(request.upgrade) and request.has_body
        if expected.method in KNOWN_METHODS and not is_upgrade_with_body:
            assert read_with_httptools(onward).end_to_end() == expected, onward
    return count


def check_raw(raw: bytes, expected: Reading) -> None:
    """Where others accept what the client sent, they must find the same method and body in it."""
    readers = [read_with_h11]
    if expected.method in KNOWN_METHODS:
        readers.append(read_with_httptools)
    for reader in readers:
        try:
            reading = reader(raw)
        except Misread:
            continue
        assert (reading.method, reading.body) == (expected.method, expected.body), raw
