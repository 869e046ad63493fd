"""Requests and answers: head bytes in, values out.

A head is the bytes up to and including the empty line. `MessageParser` validates it, decides
framing and persistence once, and returns a `Request` or `Response` that holds the decisions. The
fields stay one block of bytes: those that a proxy must understand are read out (`Fields`), the
rest is kept as it came, ready to be forwarded.

Not done here: reading from sockets (`net/stream.py`), bodies (`body.py`), and what the next
hop is told instead (`forwarding.py`).
"""

from __future__ import annotations

import functools
import ipaddress

from atlas_pkg.config.model import Limits
from atlas_pkg.errors import ClientError, MalformedMessage, Stage, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.fields import Fields
from atlas_pkg.http1.framing import (
    CHUNKED,
    NO_BODY,
    BodyKind,
    Framing,
    frame_request,
    frame_response,
)
from atlas_pkg.http1.memo import Memo

_NO_FIELDS = Fields(b"\r\n", 0)

# As whom Atlas signs the messages that it passes on, in `Via` (RFC 9110 §7.6.3), and how often a
# request may have come by already. Eight in a row is more than anybody builds; one that goes in a
# circle comes by until somebody runs out of connections.
OWN_NAME = b"atlas"
MOST_PASSAGES = 8

# Upstreams are bounded by the bytes of their head; a count keeps the work on it small.
MAX_RESPONSE_FIELDS = 1000


# The methods whose requests count down who passes them on (RFC 9110 §7.6.2).
_COUNTED = frozenset((b"TRACE", b"OPTIONS"))


class Request:
    """One request's head, decided. `target` is in the form that is sent on (RFC 9112 §3.2).

    Never changes, but for `onward`: what `forwarding.py` has made of it, kept because equal
    requests are one object.
    """

    line = b""  # the request line as received, for logs
    onward: tuple[bytes, bytes] | None = None
    # How many more may pass it on; None: it does not say (RFC 9110 §7.6.2).
    hops_left: int | None = None
    # The protocols that the client offers to switch to; empty if none (RFC 9110 §7.8).
    upgrade = b""

    def __init__(self, method: bytes, target: bytes, minor: int, fields: Fields) -> None:
        self.method = method
        self.target = target
        self.minor = minor  # 0 or 1: later minor versions are treated as 1.1
        self.fields = fields
        self.host = fields.host
        self.framing = framing = fields.framing
        # Will body bytes follow the head?
        self.has_body = framing is CHUNKED or framing.length > 0
        connection = fields.connection
        if not connection:
            self.keep_alive = minor == 1
        else:
            self.keep_alive = b"close" not in connection and (
                minor == 1 or b"keep-alive" in connection
            )
            if fields.upgrade and minor == 1 and b"upgrade" in connection:
                self.upgrade = fields.upgrade

    @property
    def expects_continue(self) -> bool:
        """Does the client wait for 100 (Continue) before its body? (RFC 9110 §10.1.1)"""
        expectations = self.fields.notable.get(b"expect")
        return (
            expectations is not None
            and self.minor == 1
            and self.has_body
            and b"100-continue" in syntax.split_list(expectations)
        )


class Response:
    """One answer's head, decided for the method that it answers.

    Never changes, but for `onward`: the heads that `forwarding.py` has made of it.
    """

    __slots__ = ("fields", "framing", "keep_alive", "minor", "onward", "reason", "status")

    def __init__(self, status: int, reason: bytes, fields: Fields, framing: Framing) -> None:
        self.status = status
        self.reason = reason
        self.fields = fields
        self.framing = framing
        self.minor = 1
        self.keep_alive = False
        self.onward: dict[bytes, bytes] = {}


class MessageParser:
    """Parses the heads of both directions under one set of limits. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: Memo[Request] = Memo()
        # Heads that came before, to be looked up before anything else is done with what came.
        self.known_request = self._requests.get
        self._request_fields: Memo[Fields] = Memo(counts_hits=True)
        self._responses: Memo[Response] = Memo()
        self._responses_to_head: Memo[Response] = Memo()  # which are framed apart
        self._response_fields: Memo[Fields] = Memo()

    def parse_request(self, head: bytes) -> Request:
        """Validate a complete request head; raises `ClientError`. Equal heads may share a value."""
        known = self._requests.get(head)
        if known is not None:
            return known
        line_end = head.index(b"\r\n")
        line = head[:line_end]
        if line_end > self._limits.request_line:
            raise ClientError(414, "the request line is too long")
        try:
            method, target, minor = _parse_request_line(line)
            block = head[line_end:-2]
            known_fields = self._request_fields.get(block)
            fields = known_fields or self._build_request_fields(block)
            request = Request(method, target, minor, fields)
            if not fields.is_common or minor == 0 or not target.startswith(b"/"):
                _settle_request(request)
            if method in _COUNTED:
                request.hops_left = _read_max_forwards(fields)
        except MalformedMessage as error:
            raise ClientError(error.status, error.reason) from None
        request.line = line
        if known_fields is None:
            self._request_fields.put(block, fields)
        else:
            self._request_fields.hits += 1
            self._requests.put(head, request)
        return request

    def parse_response(self, head: bytes, method: bytes) -> Response:
        """Validate a complete answer head to a request with `method`; raises `UpstreamError`.

        Equal heads may share a value.
        """
        responses = self._responses if method != b"HEAD" else self._responses_to_head
        known = responses.get(head)
        if known is not None:
            return known
        line_end = head.index(b"\r\n")
        match = syntax.STATUS_LINE.fullmatch(head, 0, line_end)
        if match is None:
            raise UpstreamError(Stage.HEAD, "its status line is malformed")
        block = head[line_end:-2]
        known_fields = self._response_fields.get(block)
        try:
            fields = known_fields or self._build_response_fields(block)
        except MalformedMessage as error:
            raise UpstreamError(Stage.HEAD, f"its answer is malformed: {error.reason}") from None
        status = int(match[2])
        framing = fields.framing
        if match[1] == b"0" and framing is CHUNKED:
            raise UpstreamError(Stage.HEAD, "its answer is chunked in HTTP/1.0")
        # RFC 9112 §6.3: these have no body, whatever their fields say.
        if status < 200 or status in {204, 304} or method == b"HEAD":
            framing = NO_BODY
        response = Response(status, match[3] or b"", fields, framing)
        response.minor = 0 if match[1] == b"0" else 1
        connection = fields.connection
        response.keep_alive = (
            b"close" not in connection
            and (match[1] == b"1" or b"keep-alive" in connection)
            and framing.kind is not BodyKind.UNTIL_CLOSE
        )
        if known_fields is None:
            self._response_fields.put(block, fields)
        else:
            responses.put(head, response)
        return response

    def _build_request_fields(self, block: bytes) -> Fields:
        fields = Fields(block, self._limits.fields)
        notable = fields.notable
        if fields.host is not None:
            if len(notable[b"host"]) > 1:
                raise MalformedMessage("two Host fields")
            check_host(fields.host)
        if b"content-length" in notable or b"transfer-encoding" in notable:
            fields.framing = frame_request(
                notable.get(b"content-length", []), notable.get(b"transfer-encoding", [])
            )
        if block.count(OWN_NAME) >= MOST_PASSAGES and _count_passages(fields) >= MOST_PASSAGES:
            raise MalformedMessage("the request goes in a circle", status=508)
        if fields.upgrade:
            fields.upgrade = _without_h2c(fields.upgrade)
        # True for nearly every request: then only the request line is left to be judged.
        fields.is_common = (
            fields.host is not None and fields.framing is not CHUNKED and b"expect" not in notable
        )
        return fields

    def _build_response_fields(self, block: bytes) -> Fields:
        fields = Fields(block, MAX_RESPONSE_FIELDS, syntax.NOTABLE_IN_ANSWERS)
        notable = fields.notable
        fields.lacks_date = b"\ndate:" not in fields.kept.lower()
        fields.framing = frame_response(
            notable.get(b"content-length", []), notable.get(b"transfer-encoding", [])
        )
        return fields


def refused_request(head: bytes) -> Request:
    """What is known of a request that is refused: its line, and whether it is for a head only."""
    request = Request(b"HEAD" if head.startswith(b"HEAD ") else b"", b"", 1, _NO_FIELDS)
    request.line = head[: head.find(b"\r\n")]
    request.keep_alive = False
    return request


def _without_h2c(protocols: bytes) -> bytes:
    """Take h2c out of a list of protocols.

    HTTP/2 in a tunnel would carry requests past everything that Atlas checks.
    """
    members = [member.strip(b" \t") for member in protocols.split(b",")]
    return b", ".join(one for one in members if one and one.lower() != b"h2c")


def _read_max_forwards(fields: Fields) -> int | None:
    """How many more may pass a request on; raises `MalformedMessage`."""
    values = fields.values(b"max-forwards")
    if not values:
        return None
    if len(set(values)) > 1 or not syntax.DIGITS.fullmatch(values[0]):
        raise MalformedMessage("Max-Forwards is not a number")
    digits = values[0].lstrip(b"0") or b"0"
    return int(digits) if len(digits) < 10 else 10**9  # for Python, which converts no endless ones


@functools.lru_cache
def check_host(host: bytes) -> None:
    """Raise `MalformedMessage` unless `host` is `name[:port]` or `[IPv6][:port]`."""
    match = syntax.HOST.fullmatch(host)
    if match is None:
        raise MalformedMessage("the Host field is not a host name with an optional port")
    if match[1] is not None:
        try:
            ipaddress.IPv6Address(match[1].decode("ascii"))
        except ValueError:
            raise MalformedMessage("the Host field is not a valid IPv6 address") from None


def _count_passages(fields: Fields) -> int:
    """How often a request has come through an Atlas, as far as `Via` tells."""
    entries = b",".join(fields.values(b"via")).split(b",")
    return sum(entry.split()[1:2] == [OWN_NAME] for entry in entries)


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Split a request line into method, target and minor version; raises `MalformedMessage`."""
    match = syntax.REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _explain_bad_request_line(line)
    method, target, minor = match.groups()
    if method == b"CONNECT":
        raise MalformedMessage("CONNECT is not supported", status=501)
    return method, target, 0 if minor == b"0" else 1


def _explain_bad_request_line(line: bytes) -> MalformedMessage:
    """Say in a few words what is wrong with a request line that the grammar refused."""
    match = syntax.ANY_REQUEST_LINE.fullmatch(line)
    if match is None:
        return MalformedMessage("the request line is malformed")
    if match[2] == b"0":
        return MalformedMessage("the HTTP version is not supported")
    if match[2] != b"1":
        return MalformedMessage("only HTTP/1.1 and HTTP/1.0 are spoken here", status=505)
    if match[1] == b"CONNECT":
        return MalformedMessage("CONNECT is not supported", status=501)
    return MalformedMessage("the request target has a character that is not allowed")


def _settle_request(request: Request) -> None:
    """Decide what the common road does not meet: other target forms, HTTP/1.0, a missing Host."""
    if request.minor == 0 and request.framing is CHUNKED:
        raise MalformedMessage("Transfer-Encoding in an HTTP/1.0 request")
    if request.fields.host is None and request.minor == 1:
        raise MalformedMessage("the Host field is missing")
    if request.minor == 1:
        expectations = syntax.split_list(request.fields.notable.get(b"expect", []))
        if any(expectation != b"100-continue" for expectation in expectations):
            raise MalformedMessage("the expectation is not supported", status=417)
    target = request.target
    if target.startswith(b"/") or (target == b"*" and request.method == b"OPTIONS"):
        return
    match = syntax.ABSOLUTE_TARGET.fullmatch(target)
    if match is None:
        raise MalformedMessage("the request target is neither a path nor an http URL")
    check_host(match[1])
    request.host = match[1]
    rest = match[2]
    if not rest and request.method == b"OPTIONS":
        request.target = b"*"
    else:
        request.target = rest if rest.startswith(b"/") else b"/" + rest
