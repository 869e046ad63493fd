"""Sticky sessions: a cookie that brings a client back to the upstream it came to first.

The cookie holds an HMAC of the upstream's name, so the name cannot be read in it and nobody can
make up a value that selects an upstream. The values of all upstreams are worked out once per
configuration; a request then costs a look into a dictionary. The value depends on the name and
the key alone: a reload, another order in the file or another machine with the same
`sticky.secret` changes nothing.

A cookie with a `max_age` also holds when it was set, and is set anew once half its time has gone:
else a client that comes every day would lose its upstream nevertheless. That time is not signed,
since whoever changes it only loses or keeps a cookie of his own.

The cookie is between Atlas and the client, so it is taken out of what upstreams receive, and the
other cookies stay as they are, byte for byte. Cookies end at ";" even inside quotes: RFC 6265
§4.1.1 has no way to write one into a value.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from atlas_pkg.config.model import Sticky

# 144 of the 256 bits: still far beyond guessing, and base64 needs no padding.
_TOKEN_BYTES = 18

# Keeps these HMACs apart from whatever else the same secret is used for.
_PURPOSE = b"atlas sticky upstream\x00"

_BLANKS = b" \t"

# Between what stands for the upstream and the time at which the cookie was set, in seconds.
_BEFORE_TIME = b"."
_TIME = re.compile(rb"[0-9]{1,12}")


class StickySessions:
    """The cookies of one configuration. Immutable, shared between threads.

    `secret` is the key of the HMAC: that of the settings or, where they have none, one made at
    start. `names` are those of all upstreams, whatever their state.
    """

    def __init__(
        self,
        settings: Sticky,
        secret: bytes,
        names: Iterable[str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._clock = clock
        self.cookie = settings.cookie.encode("ascii")  # its name
        self._names = {self.token_for(name): name for name in names}
        self._attributes = _build_attributes(settings)

    def token_for(self, name: str) -> bytes:
        """Build what stands for the upstream `name` in the cookie's value."""
        digest = hmac.digest(self._secret, _PURPOSE + name.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:_TOKEN_BYTES])

    def find(self, cookie_values: Sequence[bytes]) -> bytes | None:
        """Find our cookie's value in the values of a request's Cookie fields, or None.

        A client may hold several, of other paths for instance: one that names an upstream of
        this configuration comes first.
        """
        found = [token for value in cookie_values for token in read_cookie(value, self.cookie)]
        ours = (value for value in found if self.match(value) is not None)
        return next(ours, found[0] if found else None)

    def match(self, value: bytes) -> str | None:
        """Return the name of the upstream that `value` stands for; None for a forged or old one."""
        return self._names.get(value.partition(_BEFORE_TIME)[0])

    def is_due(self, value: bytes) -> bool:
        """Is a cookie with this value to be set anew, since half its time has gone?"""
        if not self._settings.max_age:
            return False
        set_at = value.partition(_BEFORE_TIME)[2]
        if not _TIME.fullmatch(set_at):
            return True  # it was set by a configuration without `max_age`
        return not 0 <= self._clock() - int(set_at) < self._settings.max_age / 2

    def set_cookie(self, name: str) -> bytes:
        """Build the value of the Set-Cookie field that keeps a client with the upstream `name`."""
        value = self.token_for(name)
        if self._settings.max_age:
            value += _BEFORE_TIME + b"%d" % self._clock()
        return self.cookie + b"=" + value + self._attributes


def without_cookies(names: frozenset[bytes], value: bytes) -> bytes:
    """Take the cookies `names` out of the value of a Cookie field; b"" when nothing is left."""
    if not any(name in value for name in names):
        return value
    pairs = value.split(b";")
    kept = [pair for pair in pairs if _name_of(pair) not in names]
    if len(kept) == len(pairs):
        return value
    rest = b";".join(kept)
    return rest.strip(_BLANKS) if rest.strip(_BLANKS + b";") else b""


def read_cookie(value: bytes, name: bytes) -> Iterator[bytes]:
    """Yield the value of each cookie `name` in the value of a Cookie field (RFC 6265 §4.2.1)."""
    if name not in value:
        return
    for pair in value.split(b";"):
        if _name_of(pair) == name:
            yield pair.partition(b"=")[2].strip(_BLANKS)


def _name_of(pair: bytes) -> bytes | None:
    """The name of a cookie, whose case matters; None for a pair without "=", which has none."""
    found, equals, _ = pair.partition(b"=")
    return found.strip(_BLANKS) if equals else None


def _build_attributes(settings: Sticky) -> bytes:
    """Build what follows the cookie itself in a Set-Cookie field (RFC 6265 §4.1.2)."""
    attributes = [f"Path={settings.path}", "HttpOnly", f"SameSite={settings.same_site}"]
    if settings.max_age:
        attributes.append(f"Max-Age={settings.max_age}")
    if settings.secure:
        attributes.append("Secure")
    return "".join(f"; {attribute}" for attribute in attributes).encode("ascii")
