"""A block of fields, parsed: what a proxy must understand is read out, the rest stays bytes.

Most fields only pass through. So a block is never split into lines on the common road: one
expression validates it whole, a second finds the notable names, and what is kept are the slices
between those that end here.

Applications that are told of fields as variables (CGI, WSGI, Rack) cannot tell `X_Forwarded_For`
from `X-Forwarded-For`. So a notable name counts only as it is spelt here, and whatever differs from
it in nothing but `-`, `_` and `.` is dropped.

A `Fields` never changes once it is built, and clients repeat themselves: parsed blocks are
remembered by their bytes, in a memo of bounded size. Whether the values make sense together is
judged where the message is known (`message.py`, `framing.py`).
"""

from __future__ import annotations

import re

from atlas_pkg.errors import MalformedMessage
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.framing import NO_BODY

# Fields that framing and routing rest on, or that the client waits for an answer to: a Connection
# field that names them is not obeyed in that.
_PROTECTED = frozenset((b"content-length", b"transfer-encoding", b"host", b"expect"))
_OPTIONS = frozenset((b"close", b"keep-alive", b"upgrade"))

# What forwarding sets. What says the same in other words is a claim, every other X-Forwarded-* too.
_SET_ANEW = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"))
_CLAIMS = frozenset((b"forwarded", b"x-real-ip"))
_READ = frozenset(syntax.REQUEST_NAMES) - _CLAIMS | _SET_ANEW


class Fields:
    """One block of fields, parsed. Immutable; shared between threads.

    `block` begins with CRLF and ends with CRLF, as `kept`, which leaves out what ends at this hop
    (RFC 9110 §7.6.1), what is framed anew (Content-Length) and what forwarding sets itself.
    `claims` are the lines that say for whom a request came, in other words than forwarding sets:
    to be believed of a trusted proxy only.
    """

    # What most blocks do not say stands in the class: it costs nothing to begin with.
    host: bytes | None = None
    connection: frozenset[bytes] = frozenset()
    upgrade = b""
    keep_alive_timeout: int | None = None
    framing = NO_BODY
    is_common = False
    carries_identity = False  # the connection, from here on, speaks for one client (RFC 4559 §6)
    lacks_date = False  # an answer that Atlas has to date (RFC 9110 §6.6.1)
    _origin: tuple[bytes, bytes] | None = None

    def __init__(
        self,
        block: bytes,
        limits_fields: int,
        notable_lines: re.Pattern[bytes] = syntax.NOTABLE_IN_REQUESTS,
    ) -> None:
        if not syntax.FIELD_BLOCK.fullmatch(block):
            raise MalformedMessage(_explain_bad_block(block))
        if block.count(b"\r\n") - 1 > limits_fields:
            raise MalformedMessage("too many fields", status=431)
        self.block = block
        notable, self.kept, self.claims = _read_notable(block, notable_lines)
        self.notable = notable
        if b"connection" in notable:
            self.connection = frozenset(syntax.split_list(notable[b"connection"]))
            named = frozenset(map(syntax.fold_name, self.connection)) - _PROTECTED - _OPTIONS
            if named:
                self.kept = without(self.kept, named)
                self.claims = without(self.claims, named)
                for name in named:
                    notable.pop(name, None)
        if b"host" in notable:
            self.host = notable[b"host"][0]
        if b"upgrade" in notable:
            self.upgrade = b", ".join(notable[b"upgrade"])
        if b"keep-alive" in notable:
            self.keep_alive_timeout = _read_keep_alive_timeout(notable[b"keep-alive"])
        if syntax.IDENTITY.search(block):
            self.carries_identity = True

    def origin(self) -> tuple[bytes, bytes]:
        """Referer and User-Agent, empty where absent. Looked up when somebody watches, and once."""
        if self._origin is None:
            self._origin = (self.get(b"referer") or b"", self.get(b"user-agent") or b"")
        return self._origin

    def get(self, name: bytes) -> bytes | None:
        """The first value of the field `name` (lower case); None if absent."""
        # No line end stands within a value, and nothing between a name and its colon.
        start = b"\n%b:" % name
        at = self.block.lower().find(start)
        if at < 0:
            return None
        at += len(start)
        return self.block[at : self.block.index(b"\r\n", at)].strip(b" \t")

    def values(self, name: bytes) -> list[bytes]:
        """All values of the field `name` (lower case), looked up slowly."""
        lines = (line.partition(b":") for line in self.block.split(b"\r\n"))
        return [value.strip(b" \t") for found, _, value in lines if found.lower() == name]


def without(block: bytes, names: frozenset[bytes]) -> bytes:
    """Build `block` anew without the fields in `names` (folded), however they are spelt."""
    lines = block.split(b"\r\n")
    return b"\r\n".join(
        line for line in lines if syntax.fold_name(line.partition(b":")[0]) not in names
    )


def _read_notable(
    block: bytes, notable_lines: re.Pattern[bytes]
) -> tuple[dict[bytes, list[bytes]], bytes, bytes]:
    """Values of the notable fields by lower-case name, the block without them (Host stays), claims.

    A look-alike is nobody's field, and is only left out.
    """
    notable: dict[bytes, list[bytes]] = {}
    kept: list[bytes] = []
    claims = b""
    at = 0
    for match in notable_lines.finditer(block):
        found, value = match.groups(b"")
        name = found.lower()
        if name in _READ:
            notable.setdefault(name, []).append(value.strip(b" \t"))
            if name == b"host":
                continue
        elif name == syntax.fold_name(name) and (name in _CLAIMS or name[:12] == b"x-forwarded-"):
            claims += block[match.start() + 1 : match.end() + 1]
        kept.append(block[at : match.start() + 1])
        at = match.end() + 1
    if not kept:
        return notable, block, claims
    kept.append(block[at:])
    return notable, b"".join(kept), claims


def _read_keep_alive_timeout(values: list[bytes]) -> int | None:
    """Seconds after which the sender will close an idle connection, if it said so."""
    match = syntax.KEEP_ALIVE_TIMEOUT.search(b",".join(values))
    return int(match[1]) if match else None


def _explain_bad_block(block: bytes) -> str:
    """Say in a few words what is wrong with a block that the grammar refused."""
    if b"\x00" in block:
        return "a NUL byte in the fields"
    if syntax.BAD_LINE_END.search(block):
        return "a line does not end with CRLF"
    for line in block.split(b"\r\n")[1:-1]:
        name, colon, _ = line.partition(b":")
        if line[:1] in (b" ", b"\t"):
            return "a folded field line"
        if not colon:
            return "a field line without a colon"
        if name != name.rstrip(b" \t"):
            return "white space between a field name and its colon"
        if not syntax.FIELD_NAME.fullmatch(name):
            return "a field name has a character that is not allowed"
    return "a control character in a field value"
