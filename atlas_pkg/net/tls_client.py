"""TLS towards upstreams: whom they have to prove to be, what we show them, and sessions.

Whoever is not asked to prove who it is can be anybody on the way, so a certificate is verified,
name and chain, unless `verify = false` says otherwise. An upstream that is spoken to again goes on
with its last session, which saves it the proof and both sides the arithmetic; the library knows
one only once the other end has said something.

Upstreams with the same files share a context, since reading the authorities of the system takes
tens of milliseconds.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from atlas_pkg.config.model import Config, UpstreamTls
from atlas_pkg.errors import ConfigError, StreamError, TlsError
from atlas_pkg.net.certificates import load_pair, read_file
from atlas_pkg.net.stream import Stream
from atlas_pkg.net.tls import TlsStream, build_context

_TABLE = "upstreams.tls"


class _Credentials(NamedTuple):
    """All that a context is made of: what is asked for, and what files hold."""

    verify: bool
    ca: bytes
    cert: bytes
    key: bytes


class TlsClient:
    """Speaks TLS to one upstream. Thread-safe."""

    def __init__(
        self,
        settings: UpstreamTls,
        credentials: _Credentials,
        context: ssl.SSLContext,
        server_name: str,
    ) -> None:
        self.settings = settings
        self.credentials = credentials
        self.context = context
        self.server_name = server_name
        # The latest; each connection may replace it.
        self._session: ssl.SSLSession | None = None

    def wrap(self, plain: Stream, timeout: float) -> TlsStream:
        """Shake hands over `plain`, which is taken over. Blocks. Raises `TlsError`."""
        stream = plain
        try:
            stream = tls = TlsStream(
                plain,
                self.context,
                server_name=self.server_name or None,
                session=self._session,
                keep_session=self._keep_session,
            )
            tls.shake_hands(timeout)
        except StreamError as error:
            stream.close()
            raise TlsError(error) from None
        return tls

    def _keep_session(self, session: ssl.SSLSession) -> None:
        self._session = session


NO_CLIENTS: Mapping[str, TlsClient] = MappingProxyType({})


def read_tls_clients(
    config: Config, previous: Mapping[str, TlsClient] = NO_CLIENTS, *, keeps: bool = False
) -> dict[str, TlsClient]:
    """Read what `[upstreams.tls]` names; returns who speaks TLS to which upstream, by its name.

    Those of `previous` for which nothing is different stay, and their sessions with them. With
    `keeps`, what was read before stands in for what cannot be read any more. Raises `ConfigError`.
    Blocks on the disk.
    """
    contexts = {client.credentials: client.context for client in previous.values()}
    kept = {client.settings: client.credentials for client in previous.values()} if keeps else {}
    is_http = config.listen.mode == "http"
    clients: dict[str, TlsClient] = {}
    problems: list[str] = []
    for upstream in config.upstreams:
        settings = upstream.tls
        if settings is None:
            continue
        try:
            credentials = _read_credentials(settings)
            if credentials not in contexts:
                contexts[credentials] = _build_context(settings, credentials, is_http=is_http)
        except ConfigError as error:
            if settings not in kept:
                problems += [f'{problem} (name = "{upstream.name}")' for problem in error.problems]
                continue
            credentials = kept[settings]
        context, name = contexts[credentials], upstream.server_name
        known = previous.get(upstream.name)
        if known is not None and known.context is context and known.server_name == name:
            clients[upstream.name] = known
        else:
            clients[upstream.name] = TlsClient(settings, credentials, context, name)
    if problems:
        raise ConfigError(f"{config.path}: {problem}" for problem in problems)
    return clients


def tls_changes(old: Mapping[str, TlsClient], new: Mapping[str, TlsClient]) -> tuple[str, ...]:
    """Say for the log that files hold something else, which the configuration does not tell."""
    before = {client.settings: client.credentials for client in old.values()}
    changed = sorted(
        name
        for name, client in new.items()
        if before.get(client.settings, client.credentials) != client.credentials
    )
    return (f"upstreams.tls: other files for {', '.join(changed)}",) if changed else ()


def _read_credentials(settings: UpstreamTls) -> _Credentials:
    named = (("ca", settings.ca), ("cert", settings.cert), ("key", settings.key))
    ca, cert, key = (
        read_file(f"{_TABLE}.{what}", Path(name)) if name else b"" for what, name in named
    )
    return _Credentials(settings.verify, ca, cert, key)


def _build_context(
    settings: UpstreamTls, credentials: _Credentials, *, is_http: bool
) -> ssl.SSLContext:
    context = build_context(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if is_http:
        context.set_alpn_protocols(["http/1.1"])
    if not credentials.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif not credentials.ca:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cadata=credentials.ca.decode("latin-1"))
        except (OSError, ValueError):
            problem = f"{_TABLE}.ca: {settings.ca}: holds no certificates (PEM)"
            raise ConfigError([problem]) from None
    if credentials.cert:
        load_pair(context, f"{_TABLE}.cert", Path(settings.cert), Path(settings.key))
    return context
