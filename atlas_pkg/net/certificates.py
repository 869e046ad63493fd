"""What clients are shown: the certificates of `[listen.tls]`, chosen by the name they ask for.

A client says in its first message which host it wants (SNI, RFC 6066 §3). An exact name goes before
a wildcard, which stands for one label; whoever names nothing, or something unknown, gets the
certificate of `[listen.tls]` itself.

Every pair of files has a context of its own, read whole or not at all. In front of them stands one
context without a certificate, `front`, with which every handshake begins. It lives longer than the
pairs, since in it are the keys of session tickets: a client goes on with its session after a
certificate was replaced, and in another worker process, because it is made before they are forked.
Only where what is asked of clients changes (`client_ca`, `min_version`) is there a new one, and no
session goes on.

Not done here: when files are read again (`control/reload.py`).
"""

from __future__ import annotations

import calendar
import ssl
import time
from pathlib import Path
from typing import NamedTuple

from atlas_pkg.config.model import Config, ListenTls, TlsHost
from atlas_pkg.errors import ConfigError
from atlas_pkg.net.tls import build_context

# All that has no known weakness and hides what was said from whoever gets the key later. TLS 1.3
# has no others (RFC 9325 §4.2).
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

# So long before it expires a certificate is worth a warning. Those that are renewed by a program
# have been by then.
SOON = 14 * 86_400.0

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Validity(NamedTuple):
    """From when until when a certificate is valid, in seconds since 1970."""

    begins: float
    ends: float


class _Pair:
    """A certificate with its key, read and found to match."""

    def __init__(self, place: str, names: tuple[str, ...], cert: Path, key: Path) -> None:
        self.place = place
        self.names = names
        self.name = (names or ("default",))[0]
        self.cert = read_file(f"{place}.cert", cert)
        self.key = read_file(f"{place}.key", key)
        try:
            self.validity = read_validity(self.cert)
        except (ValueError, IndexError):
            raise ConfigError([f"{place}.cert: {cert} holds no certificate (PEM)"]) from None
        self._paths = cert, key

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have `context` show it; raises `ConfigError`."""
        load_pair(context, self.place, *self._paths)


class Certificates:
    """All certificates of one `[listen.tls]`. Thread-safe."""

    def __init__(
        self, settings: ListenTls, folder: Path, previous: Certificates | None = None
    ) -> None:
        """Read all files; relative paths begin at `folder`. Raises `ConfigError`.

        Where `previous` are in force, these are shown from `show` on. Then one that is new and has
        expired is refused, since the one before it can be kept.
        """
        ca = settings.client_ca and folder / settings.client_ca
        # What is asked of clients.
        self.demands = (
            _VERSIONS[settings.min_version],
            read_file("listen.tls.client_ca", ca).decode("latin-1") if ca else "",
        )
        first = TlsHost((), settings.cert, settings.key)
        self.pairs = [
            _Pair(
                f"listen.tls.hosts[{index}]" if index >= 0 else "listen.tls",
                host.names,
                folder / host.cert,
                folder / host.key,
            )
            for index, host in enumerate((first, *settings.hosts), -1)
        ]
        if previous is not None:
            self._refuse_expired(previous)
        self._contexts: dict[str, ssl.SSLContext] = {}
        for pair in self.pairs:
            context = self._build_context()
            pair.load_into(context)
            for name in pair.names or ("",):
                self._contexts[name] = context
        self.front: ssl.SSLContext
        if previous is not None and previous.demands == self.demands:
            self.front = previous.front
        else:
            self.front = self._build_context()
            self.show()

    def show(self) -> None:
        """They are in force: show them from now on, also to those who have begun with others."""
        self.front.sni_callback = self._choose

    @property
    def expiries(self) -> dict[str, float]:
        """When each certificate expires, by the first of its names; the first is `default`."""
        return {pair.name: pair.validity.ends for pair in self.pairs}

    def describe(self) -> list[str]:
        """Say of each certificate for which names it is shown, and how long it is good."""
        return [
            f"  {', '.join(pair.names) or 'any other name'}: until {show_day(pair.validity.ends)}"
            for pair in self.pairs
        ] + [f"  warning: {warning}" for warning in self.warnings(time.time())]

    def warnings(self, now: float) -> list[str]:
        """Say of each certificate that clients do not accept it, or will not soon."""
        found = []
        for pair in self.pairs:
            begins, ends = pair.validity
            if begins > now:
                what = f"is not valid before {show_day(begins)}"
            elif ends - now < SOON:
                what = f"{'has expired' if ends <= now else 'expires'} on {show_day(ends)}"
            else:
                continue
            found.append(f"the certificate of {pair.name} {what}")
        return found

    def _refuse_expired(self, previous: Certificates) -> None:
        now = time.time()
        known = {(pair.cert, pair.key) for pair in previous.pairs}
        problems = [
            f"{pair.place}.cert: has expired, on {show_day(pair.validity.ends)}"
            for pair in self.pairs
            if pair.validity.ends <= now and (pair.cert, pair.key) not in known
        ]
        if problems:
            raise ConfigError(problems)

    def _build_context(self) -> ssl.SSLContext:
        """Build a context that shows nothing yet; raises `ConfigError`."""
        context = build_context(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version, client_ca = self.demands
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(cadata=client_ca)
            except (OSError, ValueError):
                raise ConfigError(["listen.tls.client_ca: holds no certificates (PEM)"]) from None
        return context

    def _choose(self, sock: ssl.SSLObject, name: str | None, _front: ssl.SSLContext) -> None:
        """A client has said which name it wants, or None: what it is shown."""
        name = (name or "").lower().removesuffix(".")
        context = self._contexts.get(name) or self._contexts.get(f"*.{name.partition('.')[2]}")
        sock.context = context or self._contexts[""]


def read_certificates(config: Config, previous: Certificates | None = None) -> Certificates | None:
    """Read the certificates of a configuration, if it has any; otherwise as `Certificates`."""
    settings = config.listen.tls
    if settings is None:
        return None
    try:
        return Certificates(settings, config.path.parent, previous)
    except ConfigError as error:
        raise ConfigError(f"{config.path}: {problem}" for problem in error.problems) from None


def certificate_changes(old: Certificates | None, new: Certificates | None) -> tuple[str, ...]:
    """Say for the log what is shown from now on, where only files have changed."""
    if old is None or new is None:
        return ()
    known = {(pair.cert, pair.key) for pair in old.pairs}
    changes = [
        f"{pair.place}: another certificate, until {show_day(pair.validity.ends)}"
        for pair in new.pairs
        if (pair.cert, pair.key) not in known
    ]
    if new.front is not old.front:
        changes.append("listen.tls: sessions begin anew")
    return tuple(changes)


def show_day(instant: float) -> str:
    """Write the day of an instant."""
    return time.strftime("%Y-%m-%d", time.gmtime(instant))


def read_validity(pem: bytes) -> Validity:
    """Read from when until when the first certificate in `pem` is valid.

    The library tells that only of certificates of others, so these few lines of DER are read here
    (RFC 5280 §4.1): certificate → what is signed → version, number, algorithm, issuer, validity.
    Raises `ValueError` or `IndexError`.
    """
    text = pem.decode("latin-1")
    begin = text.index(ssl.PEM_HEADER)
    end = text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)
    signed = _DerReader(_DerReader(ssl.PEM_cert_to_DER_cert(text[begin:end])).read()[1]).read()[1]
    reader = _DerReader(signed)
    tag, _ = reader.read()
    for _ in range(3 if tag == 0xA0 else 2):  # certificates of version 1 do not say so
        reader.read()
    times = _DerReader(reader.read()[1])
    return Validity(_read_time(*times.read()), _read_time(*times.read()))


class _DerReader:
    """Takes one value after the other off a sequence in DER."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> tuple[int, bytes]:
        """Take the next: its tag and its content."""
        tag, length, start = self._data[0], self._data[1], 2
        if length & 0x80:  # so many bytes hold the length
            start += length & 0x7F
            length = int.from_bytes(self._data[2:start], "big")
        content, self._data = self._data[start : start + length], self._data[start + length :]
        return tag, content


def _read_time(tag: int, content: bytes) -> float:
    """Read UTCTime (two digits for the year, of 1950 to 2049) or GeneralizedTime."""
    text = content.decode("ascii")
    if tag == 0x17:
        text = ("20" if text < "50" else "19") + text
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def read_file(place: str, path: Path) -> bytes:
    """Read a file that a key names; raises `ConfigError`. Blocks on the disk."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{place}: {path}: {(error.strerror or str(error)).lower()}"]) from None


def load_pair(context: ssl.SSLContext, place: str, cert: Path, key: Path) -> None:
    """Have `context` show a certificate; raises `ConfigError` where its key does not match."""
    try:
        # A key with a password is refused: there is nobody to ask.
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ValueError) as error:
        if b"PRIVATE KEY-----" not in read_file(place, key):
            raise ConfigError([f"{place}: {key} holds no private key (PEM)"]) from None
        known = error.reason if isinstance(error, ssl.SSLError) else str(error)
        reason = f": {known.replace('_', ' ').lower()}" if known else ""
        raise ConfigError([f"{place}: {cert} and {key} are no pair{reason}"]) from None


def _no_password() -> str:
    raise ValueError("the key has a password")
