"""Requests to begin with: good ones, made up by hypothesis, and ways to spoil them a little."""

from __future__ import annotations

from hypothesis import strategies as st

TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
VISIBLE = bytes(range(0x21, 0x7F))
VALUE = VISIBLE + b" \t" + bytes(range(0x80, 0x100))

# A whole request as a body: whoever loses count takes it for the next one.
INNER = b"GET /inner HTTP/1.1\r\nHost: a\r\n\r\n"

# Texts that decide where a message ends, and texts that look as if they did.
HOT = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b"\x0b",
    b":",
    b",",
    b"0",
    b"+",
    b"_",
    b"chunked",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b"Connection: Content-Length\r\n",
    b"Connection: close\r\n",
    b"Host: b\r\n",
    b"HTTP/1.0",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b";",
    b'"',
    b"\xff",
]

BASES = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a?b HTTP/1.1\r\nHost: a\r\nX: y\r\nConnection: close\r\n\r\n" + INNER,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(INNER) + INNER,
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(INNER)
    + INNER
    + b"\r\n0\r\n\r\n",
    b"PUT http://b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: y\r\n\r\nhello" + INNER,
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n" + INNER,
    b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n" + INNER,
]


def _text(alphabet: bytes, **sizes: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(list(alphabet)), **sizes).map(bytes)


names = _text(TOKEN, min_size=1, max_size=12) | st.sampled_from(
    b"Accept Cookie Keep-Alive TE Upgrade Proxy-Connection Trailer Content_Length"
    b" Transfer-Encoding- X-Forwarded-For Expect".split()
)
values = _text(VALUE, max_size=20)
connections = st.lists(names | st.sampled_from([b"close", b"keep-alive", b"Host"]), max_size=3).map(
    b" ,".join
)
methods = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"PROPFIND"])
targets = (
    _text(VISIBLE, max_size=20).map(lambda text: b"/" + text)
    | _text(VISIBLE, max_size=10).map(lambda text: b"http://b.example/" + text)
    | st.sampled_from([b"*", b"http://b", b"https://[::1]:8?x", b"HTTP://b?"])
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Draw a request that is well formed, or nearly."""
    method = draw(methods | _text(TOKEN, min_size=1, max_size=8))
    lines = [b"%b %b HTTP/1.%d" % (method, draw(targets), draw(st.integers(0, 2)))]
    lines.append(b"Host: " + draw(st.sampled_from([b"a", b"a.example:80", b"[::1]", b"a%20"])))
    for name, value in draw(st.lists(st.tuples(names, values), max_size=5)):
        lines.append(name + b":" + value)
    if draw(st.booleans()):
        lines.append(b"Connection: " + draw(connections))
    body = draw(st.binary(max_size=30))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "length":
        lines.append(b"content-length:\t0%d " % len(body))
    elif framing == "chunked":
        lines.append(b"Transfer-encoding: Chunked")
        body = (b"%X;x=y\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\nA: b\r\n\r\n"
    else:
        body = b""
    first, *fields = lines
    return b"\r\n".join([first, *draw(st.permutations(fields)), b"", body])


@st.composite
def spoiled(draw: st.DrawFn, bases: st.SearchStrategy[bytes] | None = None) -> bytes:
    """Draw a good request with one to three small changes anywhere in it."""
    data = draw(st.sampled_from(BASES) if bases is None else bases)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 4))
        piece = draw(st.sampled_from(HOT) | st.binary(max_size=2))
        data = data[:at] + piece + data[at + length :]
    return data
