"""The PROXY protocol, both versions: who the client is, said ahead of its first byte.

A proxy that passes on bytes it does not understand cannot say in them for whom it does so. So it
says it before them, once for each connection: in a line of text (version 1) or in a binary header
(version 2), as HAProxy's `proxy-protocol.txt` defines them. Whoever listens has to know that a
header is to come: without one, a client could write its own.

`read_header` takes a header off a connection and not a byte more, since what follows may be TLS,
which reads from the socket itself. The protocol allows for that: version 2 tells its length, and as
long as a line of version 1 is not at its end, two bytes more belong to it.

Not done here: who is believed (`serving/connection.py`). What a header may say beside addresses
(TLV) is passed over, a checksum included.
"""

from __future__ import annotations

import ipaddress
import re
import struct

from atlas_pkg.config.rules import Address
from atlas_pkg.errors import ClientError, Side, StreamError
from atlas_pkg.net.stream import Ends, Stream

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LINE = b"PROXY "

# With addresses, ports and CRLF no line of version 1 is longer.
_LONGEST_LINE = 107

# Addresses take 12 or 36 bytes, and what else is in use a few hundred. nginx takes as much.
_LONGEST_HEADER = 4096

# "PROXY UNKNOWN" and CRLF; a header of version 2 begins with 16 bytes.
_SHORTEST = 15
_BASE = struct.Struct("!12sBBH")

_LOCAL, _PROXY = 0x20, 0x21  # version 2, and the command
_TCP4, _TCP6 = 0x11, 0x21
_FAMILIES, _TRANSPORTS = range(4), range(3)  # unspecified, IPv4, IPv6, Unix; stream, datagram
_ADDRESSES = {_TCP4: struct.Struct("!4s4sHH"), _TCP6: struct.Struct("!16s16sHH")}

_PORT = "(0|[1-9][0-9]{0,4})"
_TCP_LINE = re.compile(rf"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) {_PORT} {_PORT}\r\n")
_UNKNOWN_LINE = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")


def read_header(stream: Stream) -> Ends | None:
    """Take a header off a client's connection; None while it is not whole. Never waits.

    Where it names nobody (UNKNOWN, LOCAL), the ends are those of the connection itself. What has
    come of it is buffered, and stays so where it is refused. Raises `ClientError` as soon as it
    cannot become a header, and `StreamError`.
    """
    while missing := _count_missing(stream.buffered):
        data = stream.receive_ahead(missing)
        if data is None:
            return None
        if not data:
            raise StreamError(Side.CLIENT, "closed its connection")
        stream.buffered += data
    is_line = stream.buffered.startswith(_LINE)
    ends = _parse_line(stream.buffered) if is_line else _parse_binary(stream.buffered)
    stream.buffered = b""
    return ends or stream.ends()


def build_header(version: int, ends: Ends | None) -> bytes:
    """Build the header for a connection from one end to the other; None: on nobody's behalf."""
    if ends is None:
        return b"PROXY UNKNOWN\r\n" if version == 1 else _BASE.pack(_SIGNATURE, _LOCAL, 0, 0)
    source, destination = map(ipaddress.ip_address, (ends.source, ends.destination))
    if source.version != destination.version:
        source, destination = map(_as_ipv6, (source, destination))
    if version == 1:
        ports = f"{ends.source_port} {ends.destination_port}"
        return f"PROXY TCP{source.version} {source} {destination} {ports}\r\n".encode("ascii")
    kind = _TCP4 if source.version == 4 else _TCP6
    ends_in_bytes = _ADDRESSES[kind].pack(
        source.packed, destination.packed, ends.source_port, ends.destination_port
    )
    return _BASE.pack(_SIGNATURE, _PROXY, kind, len(ends_in_bytes)) + ends_in_bytes


def _count_missing(data: bytes) -> int:
    """How many bytes more are certain to belong to the header that begins with `data`; 0: whole.

    Raises `ClientError` where it cannot become one.
    """
    if data.startswith(_LINE):
        if data.endswith(b"\r\n"):
            return 0
        missing = 1 if data.endswith(b"\r") else max(2, _SHORTEST - len(data))
        if len(data) + missing > _LONGEST_LINE:
            raise _refuse("is too long")
        return missing
    if _LINE.startswith(data) or _SIGNATURE.startswith(data):
        return _SHORTEST - len(data)
    if not data.startswith(_SIGNATURE):
        raise _refuse("is missing")
    if len(data) < _BASE.size:
        return _BASE.size - len(data)
    _, command, kind, length = _BASE.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise _refuse("has an unknown version or command")
    if kind >> 4 not in _FAMILIES or kind & 15 not in _TRANSPORTS:
        raise _refuse("has an unknown kind of address")
    if length > _LONGEST_HEADER:
        raise _refuse("is too long")
    whole: int = _BASE.size + length
    return whole - len(data)


def _parse_line(data: bytes) -> Ends | None:
    """Read a whole header of version 1. Raises `ClientError`."""
    if _UNKNOWN_LINE.fullmatch(data):
        return None
    match = _TCP_LINE.fullmatch(data.decode("latin-1"))
    if match is None:
        raise _refuse("is malformed")
    try:
        source, destination = map(ipaddress.ip_address, match.group(2, 3))
    except ValueError:
        raise _refuse("is malformed") from None
    ports = tuple(map(int, match.group(4, 5)))
    if {source.version, destination.version} != {int(match[1])} or max(ports) > 65535:
        raise _refuse("is malformed")
    return _join(source, destination, *ports)


def _parse_binary(data: bytes) -> Ends | None:
    """Read a whole header of version 2. Raises `ClientError`."""
    _, command, kind, length = _BASE.unpack_from(data)
    addresses = _ADDRESSES.get(kind)
    if command == _LOCAL or addresses is None:
        return None
    if length < addresses.size:
        raise _refuse("is too short for its addresses")
    source, destination, *ports = addresses.unpack_from(data, _BASE.size)
    return _join(ipaddress.ip_address(source), ipaddress.ip_address(destination), *ports)


def _join(source: Address, destination: Address, source_port: int, port: int) -> Ends:
    return Ends(str(_unmapped(source)), source_port, str(_unmapped(destination)), port)


def _unmapped(address: Address) -> Address:
    """An IPv4 address written as IPv6 is that IPv4 address."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _as_ipv6(address: Address) -> Address:
    return ipaddress.ip_address(f"::ffff:{address}") if address.version == 4 else address


def _refuse(what: str) -> ClientError:
    return ClientError(400, f"the PROXY header {what}")
