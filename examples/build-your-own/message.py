"""What the bytes of HTTP/1.1 mean: heads and bodies, and where they end. Steps 2 to 7 use this.

Whatever could be read in two ways is refused: the server behind might read it in the other one.
"""

from __future__ import annotations

import re
import select
import socket

LARGEST_HEAD = 32 * 1024  # bytes; what never ends would fill the memory

REQUEST_LINE = re.compile(rb"([A-Z]+) [!-~]+ HTTP/1\.1")
STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: .*)?")
FIELD = re.compile(rb"([\w!#$%&'*+.^`|~-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
LENGTH = re.compile(rb"[0-9]{1,18}")  # so many digits fit into 64 bits everywhere
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")

# Fields that concern one connection and not the message, and what we answer ourselves. By the
# standard Transfer-Encoding is one of them; here it stays, since chunks are passed on as they come.
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"expect"}

# The framing of a body is its length, or one of these.
CHUNKED, UNTIL_CLOSE = -1, -2


class MalformedMessage(Exception):
    """It can be read in more ways than one, or in none."""


class Stream:
    """A socket with a buffer: `buffered` is what has been read and not been used yet."""

    def __init__(self, sock: socket.socket, patience: float) -> None:
        sock.settimeout(patience)
        self.sock = sock
        self.buffered = b""

    def receive(self) -> bytes:
        """Wait for more, and keep it; b"" at the end of input."""
        data = self.sock.recv(65536)
        self.buffered += data
        return data

    def read_until(self, end: bytes) -> bytes:
        """Return what stands before `end`; what stands behind it stays."""
        while end not in self.buffered:
            if len(self.buffered) > LARGEST_HEAD:
                raise MalformedMessage("it does not end")
            if not self.receive():
                raise ConnectionError("closed in the middle of a message")
        found, _, self.buffered = self.buffered.partition(end)
        return found

    def read(self, most: int) -> bytes:
        """Return what has come, at most so many bytes; b"" at the end of input."""
        if not self.buffered:
            self.receive()
        data, self.buffered = self.buffered[:most], self.buffered[most:]
        return data

    def send(self, data: bytes) -> None:
        """Write all of it."""
        self.sock.sendall(data)

    def is_readable(self) -> bool:
        """Is there something to read, if only the end of input? Does not wait."""
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return bool(poller.poll(0))


class Head:
    """The head of a message: its first line, its fields, and the framing of its body."""

    def __init__(self, text: bytes, framing: int) -> None:
        """`framing` is what holds if the fields say nothing."""
        self.line, *lines = text.split(b"\r\n")
        matches = [FIELD.fullmatch(line) for line in lines]
        self.fields = [(match[1].lower(), match[2]) for match in matches if match]
        if len(self.fields) < len(lines):
            raise MalformedMessage("a line that is no field")
        lengths, codings = self.values(b"content-length"), self.values(b"transfer-encoding")
        if len(lengths + codings) > 1:
            raise MalformedMessage("it says twice where it ends")
        if codings not in ([], [b"chunked"]) or not all(map(LENGTH.fullmatch, lengths)):
            raise MalformedMessage("nobody can tell where it ends")
        self.framing = CHUNKED if codings else int(lengths[0]) if lengths else framing

    def values(self, name: bytes) -> list[bytes]:
        """All values under a name, in small letters."""
        return [value.lower() for other, value in self.fields if other == name]

    def is_last(self) -> bool:
        """Does the connection end with this message?"""
        says_close = b"close" in b",".join(self.values(b"connection"))
        return says_close or self.framing == UNTIL_CLOSE or self.line.startswith(b"HTTP/1.0")

    def onward(self, *own: bytes) -> bytes:
        """The head as the next hop gets it, with fields of our own."""
        line = re.sub(rb"^HTTP/1\.0", b"HTTP/1.1", self.line)  # we speak for ourselves
        kept = [b"%b: %b" % field for field in self.fields if field[0] not in HOP_BY_HOP]
        return b"\r\n".join([line, *kept, *own, b"", b""])


def read_request(client: Stream) -> Head:
    """Read the head of a request. Without a word about a body, there is none."""
    request = Head(client.read_until(b"\r\n\r\n"), 0)
    if not REQUEST_LINE.fullmatch(request.line):
        raise MalformedMessage("no request")
    if request.values(b"expect"):  # the client waits for a word before it sends its body
        client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    return request


def read_response(upstream: Stream, request: Head) -> Head:
    """Read the head of an answer. Without a word about its body, that ends with the connection."""
    response = Head(upstream.read_until(b"\r\n\r\n"), UNTIL_CLOSE)
    status = STATUS_LINE.fullmatch(response.line)
    if status is None:
        raise MalformedMessage("no answer")
    if status[1].startswith(b"1"):  # a word in between; the answer proper follows
        return read_response(upstream, request)
    if status[1] in (b"204", b"304") or request.line.startswith(b"HEAD "):
        response.framing = 0  # whatever its fields say
    return response


def copy_body(source: Stream, target: Stream, framing: int) -> None:
    """Pass on a body, piece by piece, up to its end. Raises where it breaks off."""
    if framing == CHUNKED:
        while copy_chunk(source, target):
            pass
    elif framing == UNTIL_CLOSE:
        while data := source.read(65536):
            target.send(data)
    else:
        copy_bytes(source, target, framing)


def copy_chunk(source: Stream, target: Stream) -> int:
    """Pass on a chunk, and return its size. That of the last one is 0."""
    line = source.read_until(b"\r\n")
    if not CHUNK_SIZE.fullmatch(line):
        raise MalformedMessage("no size of a chunk")
    size = int(line, 16)
    target.send(line + b"\r\n")
    copy_bytes(source, target, size)
    if source.read_until(b"\r\n"):
        raise MalformedMessage("a chunk longer than its size")
    target.send(b"\r\n")
    return size


def copy_bytes(source: Stream, target: Stream, count: int) -> None:
    """Pass on exactly so many bytes."""
    while count:
        data = source.read(min(count, 65536))
        if not data:
            raise ConnectionError("closed in the middle of a body")
        target.send(data)
        count -= len(data)


def refuse(client: Stream, status: bytes) -> bool:
    """Answer by ourselves; False: the client's connection ends here."""
    client.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
    return False
