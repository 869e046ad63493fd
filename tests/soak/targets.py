"""What the fuzzers feed: one function that takes bytes and fails when Atlas and others disagree.

The first byte says which part of Atlas reads the rest:

* requests: what is accepted and sent on must be read as the same request by h11 and httptools
  (`tests/http1/readers.py`);
* answers: what is accepted must be read with the same status, fields and body by h11;
* chunks: any split must give the same body, and h11 must read that body in our own framing;
* blocks of fields: what is kept must be well formed again, and keep nothing that ends here.

Refusing is always right here. The corpus of wire cases says what must not be refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import h11

from atlas_pkg.config.model import Forwarding, Limits
from atlas_pkg.errors import ClientError, MalformedMessage, UpstreamError
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.chunked import LAST_CHUNK, ChunkedDecoder
from atlas_pkg.http1.fields import Fields
from atlas_pkg.http1.forwarding import Forwarder
from atlas_pkg.http1.framing import CHUNKED, UNTIL_CLOSE, BodyKind
from atlas_pkg.http1.message import MessageParser, Response
from tests.http1.readers import ENDS_HERE, Misread, NotWhole, check_agreement, decode, encode_chunk
from tests.http1.samples import BASES
from tests.wire.corpus import load_cases

REQUEST, ANSWER, CHUNKS, FIELDS = range(4)

_PARSER = MessageParser(Limits())
_FORWARDER = Forwarder(Forwarding(x_forwarded=False, via=False))


def check(data: bytes) -> None:
    """Feed one input; raises `AssertionError` for a finding, and nothing else."""
    if not data:
        return
    kind, rest = data[0] % 4, data[1:]
    if kind == REQUEST:
        check_request(rest)
    elif kind == ANSWER:
        check_answer(rest)
    elif kind == CHUNKS:
        check_chunks(rest)
    else:
        check_fields(rest)


def check_request(data: bytes) -> None:
    """Requests: refused, or read alike by others in what is sent on."""
    try:
        check_agreement(data)
    except (ClientError, MalformedMessage, NotWhole):
        return
    except Misread as error:
        raise AssertionError(f"{error}: {data!r}") from error


def check_answer(data: bytes) -> None:
    """Answers: refused, or read alike by h11 in what is sent on."""
    method = b"HEAD" if data[:1] == b"h" else b"GET"
    data = data[1:]
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return
    try:
        response = _PARSER.parse_response(data[:end], method)
        body = _take_answer_body(response, data[end:])
    except (UpstreamError, MalformedMessage):
        return
    # h11 wants a client to switch or to wait; what is asked here is how a final answer is read.
    if body is None or response.status < 200:
        return
    onward = response.framing
    if onward is UNTIL_CLOSE:
        onward = CHUNKED
    head = _FORWARDER.build_response_head(response, onward, persistence=b"")
    framed = body
    if onward is CHUNKED:
        framed = encode_chunk(body) + LAST_CHUNK
    status, got = _read_answer_with_h11(head + framed, method)
    assert (status, got) == (response.status, body), f"{head!r} {framed!r}"


def _take_answer_body(response: Response, rest: bytes) -> bytes | None:
    """The body of an answer; None where it is cut."""
    kind = response.framing.kind
    if kind is BodyKind.NONE:
        return b""
    if kind is BodyKind.UNTIL_CLOSE:
        return rest
    if kind is BodyKind.LENGTH:
        length = response.framing.length
        return rest[:length] if len(rest) >= length else None
    decoder = ChunkedDecoder()
    body, _ = decode(decoder, rest)
    return body if decoder.is_done else None


def _read_answer_with_h11(data: bytes, method: bytes) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1024 * 1024)
    connection.send(h11.Request(method=method, target=b"/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body = 0, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise AssertionError(f"h11 waits for more: {event} in {data!r}")
    except h11.RemoteProtocolError as error:
        raise AssertionError(f"h11: {error}: {data!r}") from error
    assert connection.trailing_data[0] == b"", f"h11 finds something after it: {data!r}"
    return status, body


def check_chunks(data: bytes) -> None:
    """Chunks: the same at every split, refused at every split or at none."""
    cut, raw = (data[0], data[1:]) if data else (0, b"")
    whole = _decode([raw])
    at = cut * len(raw) // 255
    assert _decode([raw[:at], raw[at:]]) == whole, f"cut at {at}: {raw!r}"
    assert _decode([raw[i : i + 1] for i in range(len(raw))]) == whole, f"byte by byte: {raw!r}"
    if whole is None or not whole[2]:
        return
    used = raw[: len(raw) - len(whole[1])]
    check_request(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + used)


def _decode(pieces: list[bytes]) -> tuple[bytes, bytes, bool] | None:
    """Body, rest, and whether it was whole; None where it was refused."""
    decoder = ChunkedDecoder()
    body = rest = b""
    try:
        for piece in pieces:
            if decoder.is_done:
                rest += piece
                continue
            data, rest = decode(decoder, piece)
            body += data
    except MalformedMessage:
        return None
    return body, rest, decoder.is_done


def check_fields(data: bytes) -> None:
    """Blocks of fields: what is kept is well formed, and nothing in it ends here."""
    block = b"\r\n" + data + b"\r\n"
    try:
        fields = Fields(block, 1000)
    except MalformedMessage:
        return
    assert syntax.FIELD_BLOCK.fullmatch(fields.kept), f"{block!r}: {fields.kept!r}"
    kept = fields.kept.split(b"\r\n")[1:-1]
    given = block.split(b"\r\n")[1:-1]
    assert [line for line in given if line in kept] == kept, f"{block!r}: {fields.kept!r}"
    names = {line.partition(b":")[0].lower() for line in kept}
    assert not names & (ENDS_HERE - {b"host"}), f"{block!r}: {fields.kept!r}"


def seeds() -> Iterator[bytes]:
    """What to begin with: every text of the wire corpus, marked with who reads it."""
    for base in BASES:
        yield bytes([REQUEST]) + base
    for case in load_cases():
        if len(case.sent) < 2000:
            yield bytes([REQUEST]) + case.sent
            head, _, body = case.sent.partition(b"\r\n\r\n")
            yield bytes([FIELDS]) + head.partition(b"\r\n")[2]
            if body:
                yield bytes([CHUNKS, 128]) + body
        for script in case.upstream:
            for step in script:
                if step.verb == "sends" and isinstance(step.data, bytes) and len(step.data) < 2000:
                    yield bytes([ANSWER]) + b"g" + step.data
