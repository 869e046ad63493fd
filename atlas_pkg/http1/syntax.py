"""The grammar of HTTP/1.1 as compiled expressions, each beside its RFC section.

A head is judged as a whole: one expression says whether a block of fields is well formed, a
second finds the dozen names that a proxy must understand. Nothing is split into lines, since
most fields only pass through. Every expression is linear in its input: repetitions are
possessive (`*+`, `++`) or followed by a byte they cannot match, so hostile input costs no more
per byte than ordinary input. Only single bytes are repeated possessively: of a group Python before
3.11.5 keeps what a last, failed turn has matched.

Stricter than the RFCs wherever they let a recipient repair what two parties could read
differently: a bare LF ends no line, a folded line is no field, white space does not pad a name.
"""

from __future__ import annotations

import re

# tchar, RFC 9110 §5.6.2: the bytes of methods, field names and most parameters.
TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"

# method SP request-target SP HTTP-version, RFC 9112 §3: exactly one space between. The target is
# visible ASCII only; anything else must arrive percent-encoded. A fragment is none of it (RFC 3986
# §3.5): some servers cut it off, others do not.
REQUEST_LINE = re.compile(
    rb"([" + TCHAR + rb"]++) ([\x21\x22\x24-\x7e]++) HTTP/1\.([0-9])",
)

# The same in any version and with anything for a target, to tell what is wrong with it.
ANY_REQUEST_LINE = re.compile(rb"([" + TCHAR + rb"]++) [^ ]++ HTTP/([0-9])\.[0-9]")

# Absolute form, RFC 9112 §3.2.2: scheme, authority, and the rest that is sent on.
ABSOLUTE_TARGET = re.compile(rb"(?i:https?)://([^/?#]*+)(.*+)")

# Host, RFC 9110 §7.2: reg-name or bracketed IPv6 literal, then an optional numeric port. An
# http URI without a host is invalid (RFC 9110 §4.2.1), so the name may not be empty.
HOST = re.compile(
    rb"(?:(?:[A-Za-z0-9\-._~!$&'()*+,;=]++|%[0-9A-Fa-f]{2})+|\[([0-9A-Fa-f:.]++)\])(?::[0-9]*+)?"
)

# status-line, RFC 9112 §4: three digits, from 100 on; the phrase and its space may be missing.
# What a status of 600 and more means is for the client to say (RFC 9110 §15).
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*+))?")

# A whole block of fields, RFC 9112 §5, beginning with the CRLF that ends the first line. A name
# stands directly before its colon; a value holds HTAB, SP, visible ASCII and 0x80-0xFF.
FIELD_BLOCK = re.compile(rb"\r\n(?:[" + TCHAR + rb"]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*")

FIELD_NAME = re.compile(rb"[" + TCHAR + rb"]++")

# What stands in a name as one character for CGI, WSGI and Rack: all become `_` there.
SEPARATOR = rb"[\-_.]"

# Fields that end at this hop or are framed anew, whoever sent them.
_HOP_NAMES = (
    b"connection",
    b"content-length",
    b"transfer-encoding",
    b"upgrade",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
)

# And those by which a request is routed, or which say for whom it came.
REQUEST_NAMES = (
    *_HOP_NAMES,
    b"host",
    b"expect",
    b"http2-settings",
    b"x-request-id",
    b"forwarded",
    b"x-real-ip",
)


def _lookalike(letters: bytes) -> bytes:
    """Build an expression for names that spell `letters` with other characters strewn in."""
    gap = rb"[^A-Za-z:\r]*+"
    return gap + gap.join(bytes([letter]) for letter in letters) + gap


def _notable(first_letters: bytes, names: tuple[bytes, ...], more: bytes) -> re.Pattern[bytes]:
    """Build an expression for the lines of the fields `names`, and of those that `more` matches.

    Group 1 is the name, however its parts are joined, or else empty for a look-alike such as
    `-Transfer-Encoding`, which some servers take for the real one. Group 2 is the value with its
    white space. The look-ahead holds the first letters of the names: most fields are passed over
    after one byte.
    """
    others = bytes(
        letter for letter in range(ord("A"), ord("Z") + 1) if letter not in first_letters
    )
    spelt = [name.replace(b"-", SEPARATOR) for name in names]
    return re.compile(
        rb"\n(?=[^"
        + others
        + others.lower()
        + rb"])(?i:("
        + rb"|".join(spelt)
        + more
        + rb")|"
        + _lookalike(b"transferencoding")
        + rb"|"
        + _lookalike(b"contentlength")
        + rb"):([^\r]*+)\r"
    )


NOTABLE_IN_REQUESTS = _notable(
    b"CEFHKPTUX",
    REQUEST_NAMES,
    rb"|x" + SEPARATOR + rb"forwarded" + SEPARATOR + rb"[" + TCHAR + rb"]*+",
)
NOTABLE_IN_ANSWERS = _notable(b"CKPTU", _HOP_NAMES, b"")

# NTLM and Negotiate (RFC 4559) authenticate a connection, not a request: a challenge of theirs,
# alone or among others, or credentials.
IDENTITY = re.compile(
    rb"(?i)\n(?:www-authenticate:(?:[^\r]*,)?|authorization:)[ \t]*+(?:ntlm|negotiate)[ \t,\r]"
)

# Content-Length, RFC 9110 §8.6: ASCII digits and nothing else. `int()` would take `+5` and `0_5`.
DIGITS = re.compile(rb"[0-9]++")

# What whoever speaks TLS answers to a request: an alert (RFC 8446 §5.1).
TLS_ALERT = b"\x15\x03"

# Codings that RFC 9112 §7 knows in front of a final `chunked`: honest, but not ours to decode.
CODINGS_BEFORE_CHUNKED = re.compile(
    rb"(?i:(?:(?:gzip|x-gzip|deflate|compress|x-compress|identity)[ \t]*+,[ \t]*+)+chunked)"
)

# timeout=N in an upstream's Keep-Alive field (RFC 2068 §19.7.1): when it will hang up.
KEEP_ALIVE_TIMEOUT = re.compile(rb"(?i:(?:^|[,;\s])timeout=([0-9]{1,6}))")

# chunk-size with extensions, RFC 9112 §7.1. The size is judged apart, for its leading zeros.
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]++|\\[\t\x20-\x7e\x80-\xff])*"'
CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]++)(?:[ \t]*+;[ \t]*+["
    + TCHAR
    + rb"]++(?:[ \t]*+=[ \t]*+(?:["
    + TCHAR
    + rb"]++|"
    + _QUOTED
    + rb"))?)*"
)

# The line of a chunk as we write it: a size of which nothing needs to be judged.
ONE_CHUNK = re.compile(rb"([1-9a-f][0-9a-f]{0,5})\r\n")

# What an incomplete chunk line may look like so far: digits, then an extension or the CR.
CHUNK_START = re.compile(rb"[0-9A-Fa-f]++(?:[ \t;\r]|\Z)")

# A line end that is not CRLF, or a NUL: refused as soon as it is seen, RFC 9112 §2.2.
BAD_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00")


_JOINED_OTHERWISE = bytes.maketrans(b"_.", b"--")


def fold_name(name: bytes) -> bytes:
    """The same for all names that an application may take for one (`SEPARATOR`)."""
    return name.lower().translate(_JOINED_OTHERWISE)


def split_list(values: list[bytes]) -> list[bytes]:
    """The lower-case members of a comma-separated list spread over `values`, RFC 9110 §5.6.1."""
    members = b",".join(values).lower().split(b",")
    return [stripped for member in members if (stripped := member.strip(b" \t"))]
