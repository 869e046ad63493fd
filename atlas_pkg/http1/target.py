"""What a target's path and a host are compared by, and what servers in use make of a path.

Two spellings that RFC 3986 §6.2.2 calls equal are made one: escapes of characters that need none
are decoded, the letters of other escapes are capitals, a host has no capitals.

Servers go further, and not all of them equally far: they decode what separates, once or twice,
leave out `;parameters`, take `\\` for `/` and `//` for one, and follow `..`. Which of these an
upstream does, in which order, nobody in front of it knows. `find_readings` does all of it in every
order, and so finds every path that a server may come to. Where it cannot find all, it says so.

Not done here: what is concluded from that (`serving/router.py`).
"""

from __future__ import annotations

import ipaddress
import re

_UNRESERVED = re.compile(rb"[A-Za-z0-9\-._~]")
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
_HEX = "0123456789ABCDEFabcdef"

# What each escape is written as, since a hostile path may hold thousands of them.
_BYTES = {f"%{a}{b}".encode(): bytes.fromhex(a + b) for a in _HEX for b in _HEX}
_NORMAL = {
    escape: byte if _UNRESERVED.fullmatch(byte) else escape.upper()
    for escape, byte in _BYTES.items()
}

# Whatever of a path is read in more than one way.
_ODD = re.compile(rb"%|//|/\.{1,2}(?:/|\Z)|[\\;]")

# An escape that is none: some servers leave it, some drop it, some make a letter of it (`%u002e`).
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

# Control characters, which some cut off and some leave out, and letters of UTF-8 that are longer
# than need be, which some take for the shorter ones: %C0%AE was a dot once (RFC 3629 §10).
_DOUBTFUL = re.compile(rb"%(?:[01]|7F|C[01]|E0%[89]|F0%8)")

# Letters beyond ASCII and spaces stay as they are: they separate nothing.
_DECODABLE = re.compile(rb"%(?:2[1-9A-F]|[3-6][0-9A-F]|7[0-9A-E])")

_DOTS = re.compile(rb"/(\.{1,2})(?=/|\Z)")
_PARAMETERS = re.compile(rb";[^/]*+")
_SLASHES = re.compile(rb"//+")
_AFTER_PATH = re.compile(rb"[?#].*+", re.DOTALL)

# Nobody but an attacker writes a path with more readings than these, or with more bytes in them.
MOST_READINGS = 64
MOST_BYTES = 16384

_PORT = re.compile(rb":[0-9]*\Z")


def normalize_path(path: bytes) -> bytes:
    """Write a path in the one way of all that RFC 3986 calls equal (§6.2.2.1 and §6.2.2.2).

    >>> normalize_path(b"/%7euser/%2fa%c3")
    b'/~user/%2Fa%C3'
    """
    return _ESCAPE.sub(lambda match: _NORMAL[match[0]], path) if b"%" in path else path


def normalize_host(host: bytes) -> str:
    """A checked Host without port, capitals and the root's dot; an IPv6 address in its usual form.

    >>> normalize_host(b"WWW.Example.com.:8080"), normalize_host(b"[::0:1]:80")
    ('www.example.com', '::1')
    """
    name = normalize_path(_PORT.sub(b"", host)).decode("ascii").lower()
    if name.startswith("["):
        return str(ipaddress.IPv6Address(name[1:-1]))
    return name.rstrip(".")


def without_prefix(target: bytes, prefix: bytes) -> bytes:
    """Take `prefix` off the path of a target; it is there, in one spelling or another.

    >>> without_prefix(b"/%76%31?x", b"/v1"), without_prefix(b"/v1/%7e", b"/v1")
    (b'/?x', b'/~')
    """
    path, mark, query = target.partition(b"?")
    return (normalize_path(path).removeprefix(prefix) or b"/") + mark + query


def is_odd(path: bytes) -> bool:
    """May a server come to another path than the one that is written there?"""
    return _ODD.search(path) is not None


def find_readings(path: bytes) -> set[bytes] | None:
    """All paths that servers in use may make of a path, itself included; None: not all are known.

    >>> sorted(find_readings(b"/a/..;/b"))
    [b'/a/../b', b'/a/..;/b', b'/b']
    """
    path = normalize_path(path)
    if _BROKEN_ESCAPE.search(path) or _DOUBTFUL.search(path):
        return None
    found, following = {path}, [path]
    while following:
        reading = following.pop()
        for read in _STEPS:
            made = read(reading)
            if made in found:
                continue
            if len(found) >= MOST_READINGS or len(found) * len(path) > MOST_BYTES:
                return None
            if _DOUBTFUL.search(made):
                return None
            found.add(made)
            following.append(made)
    return found


def _decode(path: bytes) -> bytes:
    decoded = _DECODABLE.sub(lambda match: _BYTES[match[0]], path)
    return decoded if decoded == path else normalize_path(decoded)


def _cut(path: bytes) -> bytes:
    """An escaped ? or # that was decoded before the path was taken out of the target."""
    return _AFTER_PATH.sub(b"", path)


def _turn_slashes(path: bytes) -> bytes:
    return path.replace(b"\\", b"/")


def _drop_parameters(path: bytes) -> bytes:
    return _PARAMETERS.sub(b"", path)


def _merge_slashes(path: bytes) -> bytes:
    return _SLASHES.sub(b"/", path)


def _follow_dots(path: bytes) -> bytes:
    """Remove the first dot segment (RFC 3986 §5.2.4), and what it leads back from.

    One at a time, since some servers follow those that are written as dots and no others, as
    `java.net.URI` does: /./admin/%2e%2e is below /admin there.
    """
    match = _DOTS.search(path)
    if match is None:
        return path
    before = path[: match.start()]
    if match[1] == b"..":
        before = before[: max(before.rfind(b"/"), 0)]
    return before + (path[match.end() :] or b"/")


_STEPS = (
    _decode,
    _cut,
    _turn_slashes,
    _drop_parameters,
    _merge_slashes,
    _follow_dots,
)
