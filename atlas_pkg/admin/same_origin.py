"""Is a request to the admin address meant for it, or is a browser being used against it?

A page from anywhere can make its visitor's browser send requests to addresses that only the
visitor can reach. Two signs give such requests away, and no page can forge them:

* `Host` is the name that the browser believes it speaks to. In *DNS rebinding* the attacker's own
  name suddenly resolves to 127.0.0.1, so answers would count as the attacker's. That needs a name:
  an address cannot be rebound, so addresses, `localhost` and our own names are let through.
* `Origin` is where the page came from. Ours says the same as `Host`; any other is foreign.

Programs such as curl send no `Origin` and could send any `Host`; nothing here keeps them out. That
is what the token is for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?")
_ORIGIN = re.compile(r"(https?)://([^/?#@]+)")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_foreign_host(host: bytes | None, names: Sequence[str]) -> bool:
    """Is `host`, a request's Host, a name other than `localhost` and our own `names`?

    Only an HTTP/1.0 request comes without one, and browsers send none of those.
    """
    if host is None:
        return False
    name, _ = _split(host.decode("latin-1"), 0)
    if name in {"localhost", *map(_unwrap, names)}:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False


def is_foreign_origin(origins: list[bytes], host: bytes | None) -> bool:
    """Does any of `origins`, a request's Origin values, differ from its Host?"""
    return any(not _is_same(origin.decode("latin-1"), host) for origin in origins)


def _is_same(origin: str, host: bytes | None) -> bool:
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None or host is None:  # "null" is an origin, too
        return False
    # Host leaves out the port that the scheme implies, and so does Origin.
    port = _DEFAULT_PORTS[match[1]]
    return _split(match[2], port) == _split(host.decode("latin-1"), port)


def _split(text: str, default_port: int) -> tuple[str, int]:
    """Name and port in a form that can be compared; -1 for a port that is none."""
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        return text.lower(), -1
    port = match[2] or ""
    if len(port) > 5:
        return _unwrap(match[1]), -1
    return _unwrap(match[1]), int(port) if port else default_port


def _unwrap(name: str) -> str:
    """A host without brackets, in lower case, an IPv6 address in its one canonical form."""
    name = name.removeprefix("[").removesuffix("]").lower()
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name
