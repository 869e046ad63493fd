"""The tables of the configuration for fine-tuning: behaviour, availability, administration.

As in `config.py`, which also says what a class and its fields mean here: a class is a table, a
field is a key. A table under "behaviour" is always in force, with these defaults; one under
"availability" or "administration" only where the file has it: a feature to be asked for.

Not done here: who is served by whom, and loading a file (`config.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from atlas_pkg.keys import Alias, Mark
from atlas_pkg.rules import (
    COOKIE_NAME,
    COOKIE_PATH,
    HOST,
    HOST_FIELD,
    PRINTABLE,
    STATUSES,
    TARGET_OR_NONE,
    Bytes,
    FieldPairs,
    NetworkText,
    RemovableName,
    Seconds,
    SecondsOrZero,
    SecretValue,
    Status,
    Statuses,
    between,
    one_of,
)

_SUCCESS = Statuses("200-399")

# Behaviour


@dataclass(frozen=True, slots=True)
class Timeouts:
    """`[timeouts]`: how long each party may take, stage by stage."""

    tls_handshake: Annotated[Seconds, "the client's TLS handshake"] = 10.0
    client_head: Annotated[Seconds, "a whole request head; then 408"] = 10.0
    client_body: Annotated[Seconds, "between two reads of a request body; then 408"] = 30.0
    client_write: Annotated[Seconds, "until the client takes more of an answer"] = 60.0
    # Cloud balancers keep connections for 60 s. Who closes first must be the one in front.
    client_idle: Annotated[Seconds, "keep-alive between two requests"] = 75.0
    connect: Annotated[Seconds, "connecting to an upstream; then 504"] = 5.0
    upstream_head: Annotated[Seconds, "the upstream's response head; then 504"] = 60.0
    upstream_body: Annotated[Seconds, "between two reads of a response body; then cut"] = 60.0
    upstream_idle: Annotated[Seconds, "a pooled connection's rest; then closed"] = 60.0
    client_gone: Annotated[
        Seconds, "after its end of input, while an answer is awaited; then it counts as gone"
    ] = 3.0
    tunnel_idle: Annotated[Seconds, "silence in a tunnel (WebSocket)"] = 3600.0
    queue: Annotated[Seconds, "waiting for a slot under upstreams.max_connections; then 503"] = 5.0
    drain: Annotated[
        SecondsOrZero, "finishing requests under way at shutdown; 0 = cut them at once"
    ] = 30.0
    pre_drain: Annotated[
        SecondsOrZero, "accepting after SIGTERM while readiness fails; 0 = stop at once"
    ] = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`: how much of anything Atlas takes."""

    request_line: Annotated[Bytes, "then 414"] = 8192
    head: Annotated[Bytes, "request head; then 431"] = 32768
    fields: Annotated[int, between(1, 10_000), "fields in a request head; then 431"] = 100
    body: Annotated[int, between(0, 2**63 - 1), "request body, then 413; 0 = unlimited"] = 0
    requests_per_connection: Annotated[
        int, between(1, 1_000_000_000), "1 = no keep-alive for clients"
    ] = 1000
    upstream_head: Annotated[Bytes, "response head; then 502"] = 65536


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """`[pool]`: connections kept open to upstreams, counted per thread and upstream."""

    idle: Annotated[
        int, between(0, 1000), "kept at rest, beside those used within a second; 0 = none"
    ] = 1
    max_age: Annotated[Seconds, "since it was opened; then closed"] = 3600.0
    max_requests: Annotated[
        int, between(1, 1_000_000_000), "sent over one connection; 1 = no reuse"
    ] = 1000


@dataclass(frozen=True, slots=True)
class Forwarding:
    """`[forwarding]`: what changes in a head on its way through."""

    x_forwarded: Annotated[bool, "set X-Forwarded-For, -Proto and -Host"] = True
    via: Annotated[bool, "add Via"] = True
    trusted_proxies: Annotated[
        tuple[NetworkText, ...],
        "whose own X-Forwarded-* are believed and appended to; everyone else's are dropped",
    ] = ()
    request_id: Annotated[bool, "X-Request-Id: kept from trusted proxies, else made"] = False
    set_request_fields: Annotated[FieldPairs, "put in place of the client's"] = ()
    remove_request_fields: tuple[RemovableName, ...] = ()
    set_response_fields: Annotated[FieldPairs, "put in place of the upstream's"] = ()
    remove_response_fields: tuple[RemovableName, ...] = ()


@dataclass(frozen=True, slots=True)
class LogConfig:
    """`[log]`: what Atlas tells."""

    level: Annotated[str, one_of("debug", "info", "warning", "error")] = "info"
    access: Annotated[str, PRINTABLE, 'access log: "off", a path, or "-" for standard output'] = (
        "off"
    )
    format: Annotated[str, one_of("combined", "json"), "of the access log"] = "combined"


# Availability


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """`[health_check]`: how upstreams are probed; also `[upstreams.health_check]`, for one."""

    path: Annotated[str, TARGET_OR_NONE, "asked for with GET; empty = only a TCP connect"] = ""
    interval: Annotated[Seconds, Alias("interval_secs"), "from one probe to the next"] = 10.0
    timeout: Annotated[Seconds, Alias("timeout_secs"), "for a whole probe"] = 5.0
    rise: Annotated[int, between(1, 1000), "probes passed in a row until it is up"] = 2
    fall: Annotated[int, between(1, 1000), "probes failed in a row until it is down"] = 3
    expect: Annotated[Statuses, STATUSES, "of an answer that passes"] = _SUCCESS
    host: Annotated[str, HOST_FIELD, "the Host field; empty = address and port"] = ""


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """`[circuit_breaker]`: stop sending to an upstream that fails, try again after a while."""

    failures: Annotated[int, between(1, 1_000_000), "in a row until it opens"] = 5
    open_for: Annotated[Seconds, "doubles each time that a trial fails"] = 10.0
    max_open_for: Annotated[Seconds, "where doubling ends"] = 300.0
    half_open_requests: Annotated[int, between(1, 1000), "trials at once after that time"] = 1
    statuses: Annotated[tuple[Status, ...], "that count as failures, too"] = ()

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why."""
        if self.max_open_for < self.open_for:
            yield (
                "max_open_for",
                f"must be at least open_for ({self.open_for:g}), got {self.max_open_for:g}",
            )


@dataclass(frozen=True, slots=True)
class Sticky:
    """`[sticky]`: a cookie that brings a client back to the upstream it came to first."""

    cookie: Annotated[str, COOKIE_NAME, "its name"] = "atlas"
    # Not in the repr either, which may end up in a traceback.
    secret: Annotated[
        str, Mark.SECRET, "key of its HMAC, to share cookies between machines and restarts"
    ] = field(default="", repr=False)
    max_age: Annotated[int, between(0, 2**31 - 1), "0 = until the browser is closed"] = 0
    secure: Annotated[bool, "sent over TLS only"] = False
    same_site: Annotated[str, one_of("Strict", "Lax", "None")] = "Lax"
    path: Annotated[str, COOKIE_PATH] = "/"

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why: browsers drop such a cookie."""
        # RFC 6265bis §4.1.2.7 and §4.1.3.
        if self.same_site == "None" and not self.secure:
            yield "same_site", '"None" needs secure = true'
        prefix = self.cookie[:9].lower()
        if prefix.startswith(("__host-", "__secure-")) and not self.secure:
            yield "cookie", f'"{self.cookie}" needs secure = true'
        if prefix.startswith("__host-") and self.path != "/":
            yield "cookie", f'"{self.cookie}" needs path = "/"'


@dataclass(frozen=True, slots=True)
class SlowStart:
    """`[slow_start]`: a recovered upstream ramps from a trickle to its weight."""

    duration: Annotated[Seconds, "from the first request to the full weight"] = 30.0


# Administration


@dataclass(frozen=True, slots=True)
class Admin:
    """`[admin]`: a port of its own for metrics, the status page and steering."""

    address: Annotated[str, HOST, "whoever reaches it can read all of it"] = "127.0.0.1"
    port: Annotated[int, between(0, 65535), "0 = any free port; the log says which"] = 9090
    token: Annotated[SecretValue, "what steering asks for; empty = read only"] = field(
        default="", repr=False
    )
