"""The rules that values of the configuration obey: ranges, choices, addresses, field names.

Each rule says in words what it allows and turns an accepted value into the one that is kept: an
IPv6 address loses its brackets, a CIDR becomes a network. Rules see one value, already of the
right TOML type; they are pure and know no key by name.

What is refused here cannot surprise a request later. A duration that the kernel would read as
"for ever", a field value that would split a head in two, a host name that no resolver could
take: each is a sentence at start instead of a failure under load.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from atlas_pkg.keys import Mark, Rule

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# RFC 9110 §5.6.2: what a field name is made of.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

# RFC 9110 §5.5 allows more, but only US-ASCII arrives everywhere as it was meant. No control
# character: a line break in a value would begin a field, or a body, of its own.
_FIELD_VALUE = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")

# RFC 1123 §2.1 for the shape of a host name; "_" is no part of it, but container networks use it.
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_LONGEST_HOST = 253

_HASH_ON = re.compile(rf"client_ip|path|(?:header|cookie):{_TOKEN.pattern}")

# Fields that frame a message or belong to one connection (RFC 9110 §7.6.1, RFC 9112 §6).
# Atlas decides them itself; a hand-set one would make two readers disagree about a message.
_OWN_FIELDS = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# A request without Host is no HTTP/1.1 request (RFC 9112 §3.2); setting it is fine.
_KEPT_FIELDS = _OWN_FIELDS | {"host"}


def _rule(allowed: str, accepts: Callable[[Any], bool]) -> Rule:
    """Build a rule that keeps the value as it is."""

    def parse(value: Any) -> Any:
        if not accepts(value):
            raise ValueError
        return value

    return Rule(allowed, parse)


def between(low: float, high: float) -> Rule:
    """Allow numbers from `low` to `high`, both included."""
    return _rule(f"{low} to {high}", lambda value: low <= value <= high)


def one_of(*choices: str) -> Rule:
    """Allow these strings."""
    quoted = [f'"{choice}"' for choice in choices]
    *others, last = quoted
    return _rule(f"{', '.join(others)} or {last}" if others else last, choices.__contains__)


def parse_host(text: str) -> str:
    """Return a host as sockets want it: an IP address without brackets, or a host name.

    Raises `ValueError` for anything that can be neither.
    """
    if text.startswith("[") and text.endswith("]"):
        return str(ipaddress.IPv6Address(text[1:-1]))
    if ":" in text:
        return str(ipaddress.IPv6Address(text))
    labels = text.removesuffix(".").split(".")
    if labels[-1].isdigit():
        # No top-level domain is a number, so "10.0.0.256" is a mistyped address and no name.
        return str(ipaddress.IPv4Address(text))
    is_name = len(text) <= _LONGEST_HOST and all(map(_HOST_LABEL.fullmatch, labels))
    if not is_name:
        raise ValueError(text)
    return text


def _are_distinct(pairs: Iterable[tuple[str, str]]) -> bool:
    names = [name.lower() for name, _ in pairs]
    return len(names) == len(set(names))


HOST = Rule("an IPv4 or IPv6 address or a host name", parse_host)
# "10.0.0.1/8" is refused: did its writer mean one address or sixteen million?
NETWORK = Rule(
    'an IP address or a network like "10.0.0.0/8" with nothing after its prefix',
    ipaddress.ip_network,
)
PRINTABLE = _rule("printable text, not empty", lambda text: text != "" and text.isprintable())
FIELD_NAME = _rule("a field name", lambda text: bool(_TOKEN.fullmatch(text)))
FIELD_VALUE = _rule(
    "printable US-ASCII without spaces at its ends",
    lambda text: bool(_FIELD_VALUE.fullmatch(text)),
)
SETTABLE = _rule(
    "a field that neither frames a message nor belongs to one connection",
    lambda name: name.lower() not in _OWN_FIELDS,
)
REMOVABLE = _rule(
    "a field other than Host and those that frame a message or belong to one connection",
    lambda name: name.lower() not in _KEPT_FIELDS,
)
DISTINCT_NAMES = _rule("a table that names each field once, in whatever case", _are_distinct)
HASH_ON = _rule(
    '"client_ip", "path", "header:NAME" or "cookie:NAME"',
    lambda text: bool(_HASH_ON.fullmatch(text)),
)

# A timeout below a millisecond helps nobody, and the kernel, which counts in microseconds, takes
# 0 for "wait for ever". The upper end, some thirty years, fits every clock that we hand it to.
_LONGEST = 1_000_000_000
Seconds = Annotated[float, between(0.001, _LONGEST)]
SecondsOrZero = Annotated[float, between(0, _LONGEST)]

# Buffers of up to 16 MiB: each connection may fill its own.
Bytes = Annotated[int, between(1, 16 * 1024 * 1024)]

NetworkText = Annotated[Network, NETWORK]
SettableName = Annotated[str, FIELD_NAME, SETTABLE]
RemovableName = Annotated[str, FIELD_NAME, REMOVABLE]
# Values are where tokens and passwords are put, so they are never printed.
SecretValue = Annotated[str, FIELD_VALUE, Mark.SECRET]
FieldPairs = Annotated[tuple[tuple[SettableName, SecretValue], ...], DISTINCT_NAMES, Mark.SECRET]
