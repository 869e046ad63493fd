"""The rules that values of `[[routes]]` obey: which hosts and paths, and where a redirect leads.

A host and a path are kept in the one form in which requests are compared with them: lower case and
without a port, percent-encoded and without anything that servers read in different ways. So what
stands in the file is compared as it stands, and no route can be written that never matches.

A redirect is a template, and what a client sends goes into it. It is refused unless the host that
it leads to ends before anything of the client's path or query begins: else `https://a.example` and
a query would make `https://a.example.evil.example`.
"""

from __future__ import annotations

import re
import urllib.parse

from atlas_pkg.config.rules import parse_host
from atlas_pkg.config.schema import Advice, Rule

# A group's name is part of cookies and labels.
_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}")

# RFC 3986 §3.3, without what has more than one reading: "//", dot segments, "\", ";" and escapes of
# characters that need none or that separate. Escapes of other bytes are letters beyond ASCII.
_PATH = re.compile(
    r"(?:/(?!\.{1,2}(?:/|\Z))(?:[A-Za-z0-9\-._~!$&'()*+,=:@]|%(?:20|[89A-Fa-f][0-9A-Fa-f]))+)+"
)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")

PLACEHOLDER = re.compile(r"\{(uri|path|query|host)\}")

# Where the authority ends: with the template, or where path or query begin.
_URL = r"https?://(?:\{host\}|[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?=[/?]|\{uri\}|\{path\}|\Z)"
# "//host" and "/\host" would be another host's, and so would "/" with a path behind it.
_LOCAL = r"/(?![/\\]|\{(?:uri|path|query)\})"
_REST = r"(?:[!#%-;=?-\[\]_a-z~]|\{(?:uri|path|query|host)\})*"
_REDIRECT = re.compile(rf"(?:{_URL}|{_LOCAL}){_REST}")

_PERMANENT_OR_NOT = (301, 302, 303, 307, 308)


def _parse_group(text: str) -> str:
    if not _GROUP.fullmatch(text):
        raise ValueError(text)
    return text


def _parse_group_or_none(text: str) -> str:
    return text and _parse_group(text)


def _parse_host(text: str) -> str:
    """Return a host as requests are compared with it; a "*." stays in front.

    >>> _parse_host("*.Example.com."), _parse_host("[2001:DB8::0:1]")
    ('*.example.com', '2001:db8::1')
    """
    if text == "":
        return text
    if text == "*":
        raise Advice("leave host out where any is meant")
    is_wild = text.startswith("*.")
    host = text.removeprefix("*.")
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.endswith("]")):
        raise Advice(f'write "{text[: -len(port) - 1]}": ports do not count')
    host = parse_host(host).lower().removesuffix(".")
    if is_wild and (":" in host or host.rpartition(".")[2].isdigit()):
        raise ValueError(text)
    return f"*.{host}" if is_wild else host


def _parse_path(text: str) -> str:
    """Return a path as requests are compared with it; "/" is any, as "" is.

    >>> _parse_path("/v1"), _parse_path("/caf%c3%a9"), _parse_path("/")
    ('/v1', '/caf%C3%A9', '')
    """
    if text in {"", "/"}:
        return ""
    plain = text.removesuffix("*").removesuffix("/")
    if plain != text and _PATH.fullmatch(plain):
        raise Advice(f'write "{plain}", which is for what is beneath it, too')
    if not text.isascii() and _PATH.fullmatch(quoted := urllib.parse.quote(text)):
        raise Advice(f'write "{quoted}"')
    if not _PATH.fullmatch(text):
        raise ValueError(text)
    return _ESCAPE.sub(lambda match: match[0].upper(), text)


def _parse_redirect(text: str) -> str:
    if "$" in text:
        raise Advice("what a request has is written {uri}, {path}, {query} and {host}")
    if text and not _REDIRECT.fullmatch(text):
        raise ValueError(text)
    return text


def _parse_status(status: int) -> int:
    if status not in {0, *_PERMANENT_OR_NOT, *range(400, 600)}:
        raise ValueError(status)
    return status


GROUP = Rule("a name of letters, digits, _ and -", _parse_group)
GROUP_OR_NONE = Rule("empty, or a name of letters, digits, _ and -", _parse_group_or_none)
ROUTE_HOST = Rule('empty, a host without port, or "*." and a host name', _parse_host)
ROUTE_PATH = Rule(
    'empty, or a path like "/v1": percent-encoded, without "//", "/..", ";" and a "/" at its end',
    _parse_path,
)
REDIRECT = Rule(
    "empty, or an http URL or a path, with {uri}, {path}, {query} and {host} in it where the host "
    "has ended",
    _parse_redirect,
)
ROUTE_STATUS = Rule("400 to 599, or with redirect 301, 302, 303, 307 or 308", _parse_status)
