"""A block of fields, parsed: what a proxy must understand is read out, the rest stays bytes.

Most fields only pass through. So a block is never split into lines on the common road: one
expression validates it whole, a second finds the notable names, and what is kept are the slices
between those that end here.

A `Fields` never changes once it is built, and clients repeat themselves: parsed blocks are
remembered by their bytes, in a memo of bounded size. Whether the values make sense together is
judged where the message is known (`message.py`, `framing.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from atlas_pkg.errors import MalformedMessage
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.framing import NO_BODY

# A memo forgets everything when it is full: at most some 3 MB for each direction. Longer blocks
# are rarely the same twice.
MEMO_ENTRIES = 1024
MEMO_BLOCK_BYTES = 2048

# Fields that framing and routing rest on: a Connection field that names them is not obeyed in that.
_PROTECTED = frozenset((b"content-length", b"transfer-encoding", b"host"))
_OPTIONS = frozenset((b"close", b"keep-alive", b"upgrade"))
_KEPT_NOTABLE = frozenset((b"host",))


class Fields:
    """One block of fields, parsed. Immutable; shared between threads.

    `block` begins with CRLF and ends with CRLF, as `kept`, which leaves out what ends at this hop
    (RFC 9110 §7.6.1), what is framed anew (Content-Length) and what forwarding sets itself.
    """

    __slots__ = (
        "block",
        "connection",
        "framing",
        "host",
        "is_common",
        "keep_alive_timeout",
        "kept",
        "notable",
        "upgrade",
    )

    def __init__(self, block: bytes, limits_fields: int) -> None:
        if not syntax.FIELD_BLOCK.fullmatch(block):
            raise MalformedMessage(_explain_bad_block(block))
        if block.count(b"\r\n") - 1 > limits_fields:
            raise MalformedMessage("too many fields", status=431)
        self.block = block
        self.notable, self.kept = _read_notable(block)
        self.connection = frozenset(syntax.split_list(self.notable.get(b"connection", [])))
        named = self.connection - _PROTECTED - _OPTIONS
        if named:
            self.kept = without(self.kept, named)
            for name in named:
                self.notable.pop(name, None)
        hosts = self.notable.get(b"host")
        self.host = hosts[0] if hosts else None
        self.upgrade = b", ".join(self.notable.get(b"upgrade", []))
        self.keep_alive_timeout = _read_keep_alive_timeout(self.notable.get(b"keep-alive"))
        self.framing = NO_BODY
        self.is_common = False

    def get(self, name: bytes) -> bytes | None:
        """The first value of the field `name` (lower case), looked up slowly; None if absent."""
        for line in self.block.split(b"\r\n"):
            found, _, value = line.partition(b":")
            if found.lower() == name:
                return value.strip(b" \t")
        return None


def without(block: bytes, names: frozenset[bytes]) -> bytes:
    """Build `block` anew without the fields in `names` (lower case)."""
    lines = block.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() not in names)


def _read_notable(block: bytes) -> tuple[dict[bytes, list[bytes]], bytes]:
    """Values of the notable fields by lower-case name, and the block without them (Host stays)."""
    notable: dict[bytes, list[bytes]] = {}
    kept: list[bytes] = []
    at = 0
    for match in syntax.NOTABLE_FIELD.finditer(block):
        name = (match[1] or b"").lower()  # empty: a look-alike, which is dropped
        notable.setdefault(name, []).append(match[2].strip(b" \t"))
        if name not in _KEPT_NOTABLE:
            kept.append(block[at : match.start() + 1])
            at = match.end() + 1
    kept.append(block[at:])
    return notable, b"".join(kept)


def _read_keep_alive_timeout(values: list[bytes] | None) -> int | None:
    """Seconds after which the sender will close an idle connection, if it said so."""
    match = syntax.KEEP_ALIVE_TIMEOUT.search(b",".join(values)) if values else None
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


class FieldsMemo:
    """Remembers parsed blocks by their bytes, up to a bound.

    Shared by all threads without a lock: it does single dictionary operations only, each atomic by
    itself, and a block parsed twice or forgotten early does no harm.
    """

    def __init__(self, build: Callable[[bytes], Fields]) -> None:
        self._build = build
        self._known: dict[bytes, Fields] = {}

    def parse(self, block: bytes) -> Fields:
        """Return the parsed block; raises what the builder raises."""
        fields = self._known.get(block)
        if fields is None:
            fields = self._build(block)
            if len(block) <= MEMO_BLOCK_BYTES:
                if len(self._known) >= MEMO_ENTRIES:
                    self._known.clear()
                self._known[block] = fields
        return fields
