"""The rules that values of the configuration obey: ranges, choices, addresses, field names.

Each rule says in words what it allows and turns an accepted value into the one that is kept: an
IPv6 address loses its brackets, a CIDR becomes a network. Rules see one value, already of the
right TOML type; they are pure and know no key by name.

What is refused here cannot surprise a request later. A duration that the kernel would read as
"for ever", a field value that would split a head in two, a host name that no resolver could
take: each is a sentence at start instead of a failure under load.
"""

from __future__ import annotations

import difflib
import importlib.resources
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

from atlas_pkg.config.schema import Advice, Mark, Rule, Unit, either

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# RFC 9110 §5.6.2: what a field name is made of.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

# RFC 9110 §5.5 allows more, but only US-ASCII arrives everywhere as it was meant. No control
# character: a line break in a value would begin a field, or a body, of its own.
_FIELD_VALUE = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")

# RFC 1123 §2.1 for the shape of a host name; "_" is no part of it, but container networks use it.
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_LONGEST_HOST = 253

# What the address of an upstream begins with that is reached through a socket file.
SOCKET_FILE = "unix:"

# RFC 9112 §3.2.1: path and query as they go on the wire, everything else percent-encoded.
_TARGET = re.compile(r"/[!-\"$-~]*")

# RFC 6265 §4.1.1: what the Path attribute of a cookie may hold, without spaces.
_COOKIE_PATH = re.compile(r"/[!-:<-~]*")

# What people write instead of a host: a URL, or a host with its port.
_HOST_IN_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?(scheme)(?:/.*)?|(?(port)|(?!)))"
)

_HOST_FIELD = re.compile(r"(\[[^]]*\]|[^:]*)(?::([0-9]{1,5}))?")

# How a file in balancing/strategies/ gives what follows the name that a configuration knows.
_STRATEGY = re.compile(r'^@strategy\("(\w+)"\)$', re.MULTILINE)

# RFC 9110 §15: three digits, in five classes.
_STATUS_RANGE = re.compile(r"\s*([1-5][0-9]{2})(?:\s*-\s*([1-5][0-9]{2}))?\s*")

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

    def parse(text: str) -> str:
        if text not in choices:
            raise _advise_nearest(text, choices)
        return text

    return Rule(either([f'"{choice}"' for choice in choices]), parse)


def find_strategies() -> list[str]:
    """Read the names of all strategies out of the files that hold them.

    They are read and not imported, since a lower room imports no higher one. So a strategy is known
    here as soon as its file is there.
    """
    folder = importlib.resources.files("atlas_pkg") / "balancing" / "strategies"
    sources = [file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".py")]
    return sorted(name for source in sources for name in _STRATEGY.findall(source))


def _advise_nearest(text: str, choices: Sequence[str]) -> ValueError:
    """Build the error for `text`, which is none of the `choices`."""
    if text[:1].isdigit():
        return ValueError(text)  # another number is another thing, not a misspelt one
    near = difflib.get_close_matches(text.lower(), choices, n=1)
    # "lax" for "Lax": to difflib a capital is just another letter.
    near = near or [choice for choice in choices if choice.lower() == text.lower()]
    return Advice(f'did you mean "{near[0]}"?') if near else ValueError(text)


def parse_host(text: str) -> str:
    """Return a host as sockets want it: an IP address without brackets, or a host name.

    Raises `ValueError` for anything that can be neither.

    >>> parse_host("[2001:DB8::0:1]"), parse_host("app.example")
    ('2001:db8::1', 'app.example')
    """
    if match := _HOST_IN_URL.fullmatch(text):
        host, port = match["host"], match["port"]
        raise Advice(f'write "{host}" alone' + (f", and port = {port}" if port else ""))
    if ":" in text and "%" in text:
        raise Advice('write an address without a zone like "%eth0": zones are not supported')
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


def parse_upstream_address(text: str) -> str:
    """Return where an upstream is: a host as `parse_host` has it, or "unix:" and a path.

    Raises `ValueError`.

    >>> parse_upstream_address("unix:run/app.sock"), parse_upstream_address("[::1]")
    ('unix:run/app.sock', '::1')
    """
    if text.startswith("/"):
        raise Advice(f'write "{SOCKET_FILE}{text}"')
    if not text.startswith(SOCKET_FILE):
        return parse_host(text)
    if text == SOCKET_FILE or not text.isprintable():
        raise ValueError(text)
    return text


def arrives_at(target: str, bound: str) -> bool:
    """Does a connection from here to the host `target` arrive at a listener bound to `bound`?

    True only where that is certain without asking anybody: what else this machine is called, and
    which other addresses it has, is not known here. Both have been parsed by `parse_host`.

    >>> arrives_at("localhost", "0.0.0.0"), arrives_at("10.0.0.1", "0.0.0.0")
    (True, False)
    >>> arrives_at("app.example", "App.Example"), arrives_at("127.0.0.1", "::1")
    (True, False)
    """
    if target.lower() == bound.lower():
        return True
    return any(
        own == other or (other.is_unspecified and own.is_loopback and other.version >= own.version)
        for own in _addresses(target, is_target=True)
        for other in _addresses(bound)
    )


def _addresses(host: str, *, is_target: bool = False) -> list[Address]:
    """Return the addresses that a host is known to have; a socket on "::" serves IPv4 as well."""
    if host.lower() == "localhost":
        return [ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1")]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    if is_target and address.is_unspecified:
        return _addresses("localhost")  # connecting to "any address" goes to this machine
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return [mapped or address]


def is_ip_address(host: str) -> bool:
    """Is it an IP address rather than a name?"""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def show_endpoint(address: str, port: int) -> str:
    """Write address and port as one word; a socket file has no port.

    >>> show_endpoint("::1", 80), show_endpoint("app.example", 80), show_endpoint("unix:a.sock", 0)
    ('[::1]:80', 'app.example:80', 'unix:a.sock')
    """
    if address.startswith(SOCKET_FILE):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _are_distinct(pairs: Iterable[tuple[str, str]]) -> bool:
    names = [name.lower() for name, _ in pairs]
    return len(names) == len(set(names))


def _fold_name(name: str) -> str:
    """The same for all names that an application may take for one: `X_A` and `X.A` for `X-A`."""
    return name.lower().replace("_", "-").replace(".", "-")


class Statuses:
    """Status codes written as "200-299,304"; equal where they hold the same codes. Immutable."""

    __slots__ = ("_codes", "_text")

    def __init__(self, text: str) -> None:
        codes: set[int] = set()
        for part in text.split(","):
            match = _STATUS_RANGE.fullmatch(part)
            low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if low > high:
                raise ValueError(text)
            codes.update(range(low, high + 1))
        self._codes = frozenset(codes)
        self._text = text

    def __contains__(self, status: int) -> bool:
        return status in self._codes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statuses) and self._codes == other._codes

    def __hash__(self) -> int:
        return hash(self._codes)

    def __str__(self) -> str:
        return f'"{self._text}"'  # as in the file, for the log

    def __repr__(self) -> str:
        return f"Statuses({self})"


_HASHED_ON = ("client_ip", "path", "header:NAME", "cookie:NAME")


def parse_hash_on(text: str) -> tuple[str, str]:
    """Split `routing.hash_on` into its kind and the name that "header" and "cookie" carry.

    Raises `ValueError`. The name is empty for "client_ip" and "path".

    >>> parse_hash_on("header:X-User"), parse_hash_on("path")
    (('header', 'X-User'), ('path', ''))
    """
    kind, colon, name = text.partition(":")
    if kind in {"header", "cookie"}:
        is_right = bool(_TOKEN.fullmatch(name))
    else:
        is_right = kind in {"client_ip", "path"} and not colon
    if not is_right:
        raise _advise_nearest(text, _HASHED_ON)
    return kind, name


def _is_host_field(text: str) -> bool:
    """Is `text` empty, or a host with an optional port?"""
    match = _HOST_FIELD.fullmatch(text)
    if match is None or int(match[2] or 1) not in range(1, 65536):
        return False
    return not text or bool(parse_host(match[1]))


def parse_server_name(text: str) -> str:
    """Return a name that clients may ask for in TLS, in lower case; "*." stands for one label.

    Raises `ValueError`.

    >>> parse_server_name("*.Example.com")
    '*.example.com'
    """
    name = text.lower().removesuffix(".")
    labels = name.removeprefix("*.").split(".")
    if len(name) > _LONGEST_HOST or not all(map(_HOST_LABEL.fullmatch, labels)):
        raise ValueError(text)
    return name


SERVER_NAME = Rule(
    'a host name, or "*." and one, in US-ASCII ("xn--…" for others)', parse_server_name
)
HOST = Rule("an IPv4 or IPv6 address or a host name", parse_host)
HOST_OR_NONE = Rule(
    "empty, an IPv4 or IPv6 address or a host name", lambda text: text and parse_host(text)
)
UPSTREAM_ADDRESS = Rule(
    'an IPv4 or IPv6 address, a host name, or a socket file like "unix:run/app.sock"',
    parse_upstream_address,
)
# "10.0.0.1/8" is refused: did its writer mean one address or sixteen million?
NETWORK = Rule(
    'an IP address or a network like "10.0.0.0/8" with nothing after its prefix',
    ipaddress.ip_network,
)
NOT_EMPTY = _rule("an array of at least one", bool)
PRINTABLE_OR_NONE = _rule("printable text", str.isprintable)
PRINTABLE = _rule("printable text, not empty", lambda text: text != "" and text.isprintable())
FILE_PATH = Rule("a path, absolute or from the folder of this file", PRINTABLE.parse)
FILE_NAME = _rule(
    "the name of a file, without a slash and a dot at its beginning",
    lambda text: text.isprintable() and "/" not in text and text[:1] not in {"", "."},
)
FIELD_NAME = _rule("a field name", lambda text: bool(_TOKEN.fullmatch(text)))
FIELD_VALUE = _rule(
    "printable US-ASCII without spaces at its ends",
    lambda text: bool(_FIELD_VALUE.fullmatch(text)),
)
SETTABLE = _rule(
    "a field that neither frames a message nor belongs to one connection",
    lambda name: _fold_name(name) not in _OWN_FIELDS,
)
REMOVABLE = _rule(
    "a field other than Host and those that frame a message or belong to one connection",
    lambda name: _fold_name(name) not in _KEPT_FIELDS,
)
DISTINCT_NAMES = _rule("a table that names each field once, in whatever case", _are_distinct)
HASH_ON = _rule(
    either([f'"{choice}"' for choice in _HASHED_ON]), lambda text: bool(parse_hash_on(text))
)
STATUSES = Rule('status codes like "200-399" or "200,204,300-302"', Statuses)
TARGET_OR_NONE = _rule(
    'empty, or a path that begins with "/", percent-encoded where needed',
    lambda text: text == "" or bool(_TARGET.fullmatch(text)),
)
# RFC 6265 §4.1.1: a token, like the name of a field.
COOKIE_NAME = _rule("a cookie name", lambda text: bool(_TOKEN.fullmatch(text)))
COOKIE_PATH = _rule(
    'a path that begins with "/", without spaces and ";"',
    lambda text: bool(_COOKIE_PATH.fullmatch(text)),
)
HOST_FIELD = _rule("empty, or a host with an optional port", _is_host_field)

# A timeout below a millisecond helps nobody, and the kernel, which counts in microseconds, takes
# 0 for "wait for ever". The upper end, some thirty years, fits every clock that we hand it to.
_LONGEST = 1_000_000_000
Seconds = Annotated[float, between(0.001, _LONGEST), Unit("seconds")]
SecondsOrZero = Annotated[float, between(0, _LONGEST), Unit("seconds")]

# Buffers of up to 16 MiB: each connection may fill its own.
Bytes = Annotated[int, between(1, 16 * 1024 * 1024), Unit("bytes")]

Status = Annotated[int, between(100, 599)]
NetworkText = Annotated[Network, NETWORK]
SettableName = Annotated[str, FIELD_NAME, SETTABLE]
RemovableName = Annotated[str, FIELD_NAME, REMOVABLE]
# Values are where tokens and passwords are put, so they are never printed.
SecretValue = Annotated[str, FIELD_VALUE, Mark.SECRET]
FieldPairs = Annotated[tuple[tuple[SettableName, SecretValue], ...], DISTINCT_NAMES, Mark.SECRET]
