"""PROXY headers, byte for byte: taken off whole and not a byte more, or refused."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from atlas_pkg.errors import ClientError, Side, StreamError
from atlas_pkg.net.proxy_protocol import build_header, read_header
from atlas_pkg.net.stream import Ends, Stream

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
NAMED = Ends("192.0.2.1", 56324, "198.51.100.7", 443)
NAMED6 = Ends("2001:db8::1", 56324, "2001:db8::2", 443)

LINE = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
LINE6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"


def binary(command: int, kind: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, kind, size) + body


ADDRESSES = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + struct.pack("!HH", 56324, 443)
ADDRESSES6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    + struct.pack("!HH", 56324, 443)
)
MAPPED = b"\0" * 10 + b"\xff\xff" + ADDRESSES[:4] + b"\0" * 10 + b"\xff\xff" + ADDRESSES[4:]
TLV = b"\x04\x00\x03abc"

GOOD = {
    "1": (LINE, NAMED),
    "1, IPv6": (LINE6, NAMED6),
    "1, ports at their ends": (
        b"PROXY TCP4 192.0.2.1 198.51.100.7 0 65535\r\n",
        NAMED._replace(source_port=0, destination_port=65535),
    ),
    "2": (binary(0x21, 0x11, ADDRESSES), NAMED),
    "2, IPv6": (binary(0x21, 0x21, ADDRESSES6), NAMED6),
    "2, IPv4 as IPv6": (binary(0x21, 0x21, MAPPED), NAMED),
    "2, with more": (binary(0x21, 0x11, ADDRESSES + TLV), NAMED),
    "2, with much more": (binary(0x21, 0x11, ADDRESSES + bytes(4000)), NAMED),
    # The connection's own:
    "1, unknown": (b"PROXY UNKNOWN\r\n", None),
    "1, unknown, and more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    "1, unknown, the longest": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None),
    "2, local": (binary(0x20, 0x00, b""), None),
    "2, local with addresses": (binary(0x20, 0x11, ADDRESSES), None),
    "2, unspecified": (binary(0x21, 0x00, b""), None),
    "2, a socket file": (binary(0x21, 0x31, bytes(216)), None),
    "2, datagrams": (binary(0x21, 0x12, ADDRESSES), None),
}

BAD = {
    "HTTP": (b"GET / HTTP/1.1\r\n", "is missing"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01", "is missing"),
    "another case": (b"proxy TCP4 192.0.2.1 198.51.100.7 1 2\r\n", "is missing"),
    "1, two blanks": (b"PROXY  TCP4 192.0.2.1 198.51.100.7 1 2\r\n", "is malformed"),
    "1, blank at the end": (b"PROXY TCP4 192.0.2.1 198.51.100.7 1 2 \r\n", "is malformed"),
    "1, UDP": (b"PROXY UDP4 192.0.2.1 198.51.100.7 1 2\r\n", "is malformed"),
    "1, the other family": (b"PROXY TCP6 192.0.2.1 198.51.100.7 1 2\r\n", "is malformed"),
    "1, two families": (b"PROXY TCP6 2001:db8::1 198.51.100.7 1 2\r\n", "is malformed"),
    "1, leading zero": (b"PROXY TCP4 192.0.2.01 198.51.100.7 1 2\r\n", "is malformed"),
    "1, port with leading zero": (b"PROXY TCP4 192.0.2.1 198.51.100.7 01 2\r\n", "is malformed"),
    "1, port beyond": (b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 2\r\n", "is malformed"),
    "1, negative port": (b"PROXY TCP4 192.0.2.1 198.51.100.7 -1 2\r\n", "is malformed"),
    "1, no port": (b"PROXY TCP4 192.0.2.1 198.51.100.7 1\r\n", "is malformed"),
    "1, a name": (b"PROXY TCP4 localhost 198.51.100.7 1 2\r\n", "is malformed"),
    "1, a zone": (b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n", "is malformed"),
    "1, beyond ASCII": (b"PROXY TCP4 192.0.2.\xb2 198.51.100.7 1 2\r\n", "is malformed"),
    "1, NUL": (b"PROXY TCP4 192.0.2.1\0 198.51.100.7 1 2\r\n", "is malformed"),
    "1, nothing": (b"PROXY \r\n", "is malformed"),
    "1, without CR": (LINE.replace(b"\r", b"") + b"x" * 107, "is too long"),
    "1, too long": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "is too long"),
    "1, without end": (b"PROXY " + b"x" * 5000, "is too long"),
    "2, a spoilt signature": (b"\r\n\r\n\0\r\nQUIX\n" + b"\x20\0\0\0", "is missing"),
    "2, version 1": (binary(0x11, 0x11, ADDRESSES), "has an unknown version or command"),
    "2, version 3": (binary(0x31, 0x11, ADDRESSES), "has an unknown version or command"),
    "2, another command": (binary(0x22, 0x11, ADDRESSES), "has an unknown version or command"),
    "2, another family": (binary(0x21, 0x41, ADDRESSES), "has an unknown kind of address"),
    "2, another transport": (binary(0x21, 0x13, ADDRESSES), "has an unknown kind of address"),
    "2, too short": (binary(0x21, 0x11, ADDRESSES[:11]), "is too short for its addresses"),
    "2, too short for IPv6": (binary(0x21, 0x21, ADDRESSES), "is too short for its addresses"),
    "2, without addresses": (binary(0x21, 0x11, b""), "is too short for its addresses"),
    "2, too long": (binary(0x21, 0x11, ADDRESSES, length=4097), "is too long"),
    "2, much too long": (binary(0x21, 0x11, ADDRESSES, length=65535), "is too long"),
}


@pytest.fixture
def proxy() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


@pytest.fixture
def stream(proxy: socket.socket) -> Iterator[Stream]:
    """A client's connection; `proxy` is at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.connect(listener.getsockname())
        stream = Stream(listener.accept()[0], Side.CLIENT)
    yield stream
    stream.close()


@pytest.mark.parametrize(("data", "named"), GOOD.values(), ids=GOOD)
def test_a_header_is_taken_off_and_not_a_byte_more(
    data: bytes, named: Ends | None, stream: Stream, proxy: socket.socket
) -> None:
    proxy.sendall(data + b"\x16\x03\x01")
    own = Ends(*proxy.getsockname(), *proxy.getpeername())

    assert read_header(stream) == (named or own)

    assert stream.buffered == b""
    assert stream.receive_now() == b"\x16\x03\x01"


@pytest.mark.parametrize(("data", "named"), GOOD.values(), ids=GOOD)
def test_a_header_may_come_byte_by_byte(
    data: bytes, named: Ends | None, stream: Stream, proxy: socket.socket
) -> None:
    own = Ends(*proxy.getsockname(), *proxy.getpeername())
    for byte in data[:-1]:
        proxy.sendall(bytes([byte]))
        assert read_header(stream) is None

    proxy.sendall(data[-1:] + b"GET")

    assert read_header(stream) == (named or own)
    assert stream.receive_now() == b"GET"


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_header_is_refused(
    data: bytes, reason: str, stream: Stream, proxy: socket.socket
) -> None:
    proxy.sendall(data)

    with pytest.raises(ClientError) as caught:
        read_header(stream)

    assert (caught.value.status, caught.value.reason) == (400, f"the PROXY header {reason}")


def test_garbage_is_refused_with_its_first_byte(stream: Stream, proxy: socket.socket) -> None:
    proxy.sendall(b"G")

    with pytest.raises(ClientError):
        read_header(stream)


@pytest.mark.parametrize(
    "data", [b"", b"PROXY TCP4", LINE[:-1], SIGNATURE, SIGNATURE + b"\x21\x11"]
)
def test_an_end_within_a_header_is_an_end(
    data: bytes, stream: Stream, proxy: socket.socket
) -> None:
    proxy.sendall(data)
    proxy.shutdown(socket.SHUT_WR)

    with pytest.raises(StreamError):
        read_header(stream)


def test_a_length_that_lies_waits_for_what_is_missing(stream: Stream, proxy: socket.socket) -> None:
    proxy.sendall(binary(0x21, 0x11, ADDRESSES, length=4096))

    assert read_header(stream) is None


@pytest.mark.parametrize(
    ("version", "ends", "header"),
    [
        (1, NAMED, LINE),
        (1, NAMED6, LINE6),
        (1, None, b"PROXY UNKNOWN\r\n"),
        (2, NAMED, binary(0x21, 0x11, ADDRESSES)),
        (2, NAMED6, binary(0x21, 0x21, ADDRESSES6)),
        (2, None, binary(0x20, 0x00, b"")),
    ],
)
def test_a_header_is_built(version: int, ends: Ends | None, header: bytes) -> None:
    assert build_header(version, ends) == header


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("ends", [NAMED, NAMED6, NAMED._replace(destination="2001:db8::2")])
def test_what_is_built_is_read(
    version: int, ends: Ends, stream: Stream, proxy: socket.socket
) -> None:
    proxy.sendall(build_header(version, ends))

    assert read_header(stream) == ends
