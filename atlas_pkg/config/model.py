"""The configuration: every table a frozen dataclass. Read this file as its reference.

A class is a table, a field is a key with its type, its range, a note and its default, in the order
of the file. Every key is live (taken over by a hot reload) unless it carries `Mark.RESTART`.
Durations are float seconds, sizes are bytes. A table under "behaviour" is always in force, with
these defaults; one under "availability" or "administration" only where the file has it: a feature
to be asked for.

Everything is frozen: threads share a configuration without a lock, and a reload swaps it whole.

Checklist for a new key: the field here, the reference for users (`python -m tests.config.reference`
writes it, a test compares), and the code that obeys it.

Not done here: reading a file (`document.py`, `loader.py`), comparing two of them (`diff.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Annotated

from atlas_pkg.config.route_rules import (
    GROUP,
    GROUP_OR_NONE,
    REDIRECT,
    ROUTE_HOST,
    ROUTE_PATH,
    ROUTE_STATUS,
)
from atlas_pkg.config.rules import (
    COOKIE_NAME,
    COOKIE_PATH,
    FILE_NAME,
    FILE_PATH,
    HASH_ON,
    HOST,
    HOST_FIELD,
    HOST_OR_NONE,
    NOT_EMPTY,
    PRINTABLE,
    PRINTABLE_OR_NONE,
    SERVER_NAME,
    SOCKET_FILE,
    STATUSES,
    TARGET_OR_NONE,
    UPSTREAM_ADDRESS,
    Bytes,
    FieldPairs,
    NetworkText,
    RemovableName,
    Seconds,
    SecondsOrZero,
    SecretValue,
    Status,
    Statuses,
    arrives_at,
    between,
    find_strategies,
    is_ip_address,
    one_of,
    show_endpoint,
)
from atlas_pkg.config.schema import Alias, Mark, Unit, either

# The group of all upstreams that name none, and of all requests for which no route is meant.
DEFAULT_GROUP = "default"

# An administrator may give an upstream no other weights than the file may.
MOST_WEIGHT = 1000

# What the kernel takes for the path of a socket file (`sockaddr_un`), and a NUL behind it.
_LONGEST_SOCKET_FILE = 107 if sys.platform == "linux" else 103

# What has no meaning in a mode: refused, save for its default.
_MEANINGLESS = {
    "http": (),
    "tcp": (
        "listen.http_redirect",
        "error_pages",
        "routing.hash_on",
        "routes",
        "groups",
        *(f"timeouts.client_{stage}" for stage in ("body", "write", "idle")),
        *(f"timeouts.upstream_{stage}" for stage in ("head", "body", "idle")),
        "limits",
        "pool",
        "forwarding",
        "sticky",
    ),
    "static": ("routes", "groups", "pool", "circuit_breaker", "sticky", "slow_start"),
}

# The strategies that hash a key of the client's: all requests with that key go to one upstream.
HASHES = frozenset({"ip_hash", "consistent_hash"})

_SUCCESS = Statuses("200-399")

# Core


@dataclass(frozen=True, slots=True)
class ProxyProtocol:
    """`[listen.proxy_protocol]`: a proxy in front says who the client is (PROXY protocol 1, 2)."""

    from_: Annotated[
        tuple[NetworkText, ...], NOT_EMPTY, "who has to say so; anyone else is refused"
    ]


@dataclass(frozen=True, slots=True)
class TlsHost:
    """`[[listen.tls.hosts]]`: another certificate, for clients that ask for one of its names."""

    names: Annotated[
        tuple[Annotated[str, SERVER_NAME], ...], NOT_EMPTY, '"*.example.com" stands for one label'
    ]
    cert: Annotated[str, FILE_PATH, "the chain, leaf first"]
    key: Annotated[str, FILE_PATH, "the key that belongs to it"]

    def __str__(self) -> str:
        return ", ".join(self.names)


@dataclass(frozen=True, slots=True)
class ListenTls:
    """`[listen.tls]`: clients speak TLS. Its files are read again when they change."""

    cert: Annotated[str, FILE_PATH, "the chain, leaf first"]
    key: Annotated[str, FILE_PATH, "the key that belongs to it"]
    min_version: Annotated[str, one_of("1.2", "1.3")] = "1.2"
    client_ca: Annotated[
        str, "clients must show a certificate signed by one in this file; empty = none is asked for"
    ] = ""
    hosts: tuple[TlsHost, ...] = ()

    @property
    def files(self) -> Iterator[str]:
        """All files that are read for it."""
        yield from (self.cert, self.key)
        for host in self.hosts:
            yield from (host.cert, host.key)
        if self.client_ca:
            yield self.client_ca

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why."""
        seen: set[str] = set()
        for index, host in enumerate(self.hosts):
            for name in host.names:
                if name in seen:
                    yield f"hosts[{index}].names", f'"{name}" is there twice'
                seen.add(name)


@dataclass(frozen=True, slots=True)
class Listen:
    """`[listen]`: where clients come in, and how many."""

    address: Annotated[str, HOST, Mark.RESTART, "IPv6 with or without brackets"] = "0.0.0.0"
    port: Annotated[
        int, between(0, 65535), Mark.RESTART, "0 = any free port; the log says which"
    ] = 8080
    mode: Annotated[str, one_of("http", "tcp", "static"), Mark.RESTART] = "http"
    workers: Annotated[
        int, between(0, 1024), Mark.RESTART, "processes sharing the port; 0 = one per CPU"
    ] = 1
    lanes: Annotated[
        int,
        between(0, 64),
        Mark.RESTART,
        "threads that serve what needs no waiting (Linux); 0 = a thread for each client, as "
        "everywhere else",
    ] = 1
    pin: Annotated[bool, Mark.RESTART, "hold each process to one of the CPUs allowed to it"] = True
    max_connections: Annotated[
        int, between(1, 1_000_000), "clients at once, per process; beyond it the backlog waits"
    ] = 4096
    max_threads: Annotated[
        int,
        between(1, 10_000),
        Mark.RESTART,
        "threads that wait for somebody (bodies, uploads, connects), per process; with lanes = 0 "
        "clients at once",
    ] = 1024
    root: Annotated[str, FILE_PATH, 'mode "static": what is served'] = "/var/www/html"
    http_redirect: Annotated[
        int,
        between(0, 65535),
        Mark.RESTART,
        "with [listen.tls]: another port, which sends clients on to https; 0 = none",
    ] = 0
    acme_folder: Annotated[
        str, "what certbot --webroot is given: that port serves its challenges from there"
    ] = ""
    tls: ListenTls | None = None
    proxy_protocol: ProxyProtocol | None = None

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why."""
        if self.http_redirect and self.tls is None:
            yield "http_redirect", "needs [listen.tls]: there is nowhere to send clients to"
        if self.http_redirect and self.http_redirect == self.port:
            yield "http_redirect", f"must not be listen.port, got {self.port}"
        if self.acme_folder and not self.http_redirect:
            yield "acme_folder", "needs http_redirect, the port that serves it"


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """`[upstreams.tls]`: it is spoken to over TLS, and has to prove who it is."""

    verify: Annotated[bool, "false = it may be anybody"] = True
    ca: Annotated[str, "a file of certificates to trust instead of the system's"] = ""
    server_name: Annotated[
        str, HOST_OR_NONE, "whom it has to prove to be, and is asked for (SNI); empty = address"
    ] = ""
    cert: Annotated[str, "a certificate of ours, for upstreams that want to see one"] = ""
    key: Annotated[str, "the key that belongs to it"] = ""

    @property
    def files(self) -> tuple[str, str, str]:
        """All files that are read for it; empty where none is named."""
        return (self.ca, self.cert, self.key)

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why."""
        if bool(self.cert) != bool(self.key):
            yield ("key", "needs cert") if self.key else ("cert", "needs key")
        if self.ca and not self.verify:
            yield "ca", "has no effect with verify = false"


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """`[[upstreams]]`: one server that answers. None at all is legal: every answer is 503."""

    name: Annotated[str, PRINTABLE, Mark.UNIQUE, "appears in logs, metrics, sticky cookies"]
    address: Annotated[
        str,
        UPSTREAM_ADDRESS,
        'IPv6 with or without brackets; or a socket file, "unix:run/app.sock"',
    ]
    port: Annotated[int, between(1, 65535), "absent with a socket file"] = 0
    weight: Annotated[
        int, between(0, MOST_WEIGHT), "0 = no new clients (sticky ones are still served)"
    ] = 1
    max_connections: Annotated[
        int, between(0, 1_000_000), "requests in flight to it, per process; 0 = no limit"
    ] = 0
    backup: Annotated[bool, "used only when no ordinary upstream is available"] = False
    group: Annotated[str, GROUP, "which group it belongs to; see [[routes]]"] = DEFAULT_GROUP
    proxy_protocol: Annotated[
        int, between(0, 2), "version of the PROXY header that it is sent ahead of all; 0 = none"
    ] = 0
    resolve: Annotated[
        SecondsOrZero,
        "how often its host name is looked up; then each address is a server of its own, "
        "NAME@ADDRESS; 0 = all its addresses are one server",
    ] = 0.0
    # Under which name its address was found, where it is one of several (`resolve`).
    host: Annotated[str, Mark.GIVEN] = ""
    tls: UpstreamTls | None = None
    # What is in force for this upstream: its own keys laid over those of `[health_check]`.
    health_check: HealthCheck | None = None

    @property
    def socket_file(self) -> str:
        """The path of the socket file through which it is reached; empty where it has a port."""
        is_file = self.address.startswith(SOCKET_FILE)
        return self.address.removeprefix(SOCKET_FILE) if is_file else ""

    @property
    def server_name(self) -> str:
        """Whom it has to prove to be over TLS; empty where nobody knows."""
        named = self.tls.server_name if self.tls is not None else ""
        return (named or self.host or ("" if self.socket_file else self.address)).removesuffix(".")

    @property
    def label(self) -> str:
        """What it is called in the log: its name, and its group if it has named one."""
        return self.name if self.group == DEFAULT_GROUP else f"{self.name} of group {self.group}"

    @property
    def endpoint(self) -> str:
        """Where it is, in one word."""
        return show_endpoint(self.address, self.port)

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why."""
        if self.socket_file and self.port:
            yield "port", f"must be absent, since a socket file has none, got {self.port}"
        if not (self.socket_file or self.port):
            yield "port", "missing, must be an integer (1 to 65535)"
        if self.tls is not None and self.tls.verify and not self.server_name:
            yield "tls.server_name", "missing: a socket file has no name that could be verified"
        if self.resolve and (self.socket_file or is_ip_address(self.address)):
            yield "resolve", f'needs a host name, got address "{self.address}"'


@dataclass(frozen=True, slots=True)
class Routing:
    """`[routing]`: which upstream gets the next request."""

    strategy: Annotated[str, one_of(*find_strategies())] = "round_robin"
    hash_on: Annotated[str, HASH_ON, "consistent_hash: what a client is known by"] = "client_ip"
    retries: Annotated[int, between(0, 100), "further upstreams tried when one fails; 0 = none"] = 0


# Routes and groups


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """`[[routes]]`: what becomes of a request; the first that matches decides."""

    host: Annotated[str, ROUTE_HOST, 'empty = any; "*.example.com" = one label or more'] = ""
    path: Annotated[
        str, ROUTE_PATH, 'empty = any; "/v1" is for /v1, /v1?x and /v1/x, and not for /v10'
    ] = ""
    from_: Annotated[
        tuple[NetworkText, ...], "networks; for clients elsewhere the route does not match"
    ] = ()
    group: Annotated[str, GROUP_OR_NONE, "who answers; or redirect, or status"] = ""
    redirect: Annotated[
        str,
        REDIRECT,
        '"https://new.example.com{uri}": {uri} path and query, {path}, {query}, {host} as sent',
    ] = ""
    status: Annotated[
        int, ROUTE_STATUS, "a fixed answer; with redirect which kind it is, 0 = 308"
    ] = 0
    strip: Annotated[bool, "with group: take path off; the upstream is told X-Forwarded-Prefix"] = (
        False
    )

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why."""
        chosen = [bool(self.group), bool(self.redirect), bool(self.status and not self.redirect)]
        if sum(chosen) != 1:
            yield "group", "exactly one of group, redirect and status is needed"
        if self.redirect and self.status >= 400:
            yield "status", f"must be 301, 302, 303, 307 or 308 with redirect, got {self.status}"
        if not self.redirect and 0 < self.status < 400:
            yield "status", f"must be 400 to 599 without redirect, got {self.status}"
        if self.strip and not (self.group and self.path):
            yield "strip", "needs group and path"

    @property
    def pattern(self) -> str:
        """Which requests it is for, in words."""
        networks = f"from {', '.join(map(str, self.from_))}" if self.from_ else ""
        return " ".join(filter(None, (self.host, self.path, networks))) or "all"

    @property
    def target(self) -> str:
        """What becomes of them, in words."""
        if self.group:
            return f"group {self.group}" + (f", without {self.path}" if self.strip else "")
        if self.redirect:
            return f"{self.status or 308} {self.redirect}"
        return f"{self.status}"

    def __str__(self) -> str:
        return f"{self.pattern} → {self.target}"


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
    client_gone: Annotated[Seconds, "after its end of input, while an answer is awaited"] = 3.0
    connect: Annotated[Seconds, "connecting to an upstream; then 504"] = 5.0
    upstream_head: Annotated[Seconds, "the upstream's response head; then 504"] = 60.0
    upstream_body: Annotated[Seconds, "between two reads of a response body; then cut"] = 60.0
    upstream_idle: Annotated[Seconds, "a pooled connection's rest; then closed"] = 60.0
    tunnel_idle: Annotated[
        Seconds, 'silence in a tunnel (WebSocket), or on a connection of mode "tcp"'
    ] = 3600.0
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
    body: Annotated[
        int, between(0, 2**63 - 1), Unit("bytes"), "request body, then 413; 0 = unlimited"
    ] = 0
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


@dataclass(frozen=True, slots=True)
class ErrorPages:
    """`[error_pages]`: HTML for the errors that Atlas answers itself, to clients that accept it."""

    folder: Annotated[
        str,
        PRINTABLE_OR_NONE,
        "holds 503.html, 5xx.html, 4xx.html and so on: the most exact name wins; at most 64 KiB "
        "each; empty = none",
    ] = ""
    # What was found in it, by name, and what was not as it should be.
    pages: Annotated[tuple[tuple[str, bytes], ...], Mark.GIVEN] = field(default=(), repr=False)
    complaints: Annotated[tuple[str, ...], Mark.GIVEN] = ()


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
    max_age: Annotated[
        int, between(0, 2**31 - 1), Unit("seconds"), "0 = until the browser is closed"
    ] = 0
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


# Files


@dataclass(frozen=True, slots=True)
class Static:
    """`[static]`: with `listen.mode = "static"`, how the files of `listen.root` are served."""

    index: Annotated[str, FILE_NAME, "what a folder is answered with"] = "index.html"


# Administration


@dataclass(frozen=True, slots=True)
class Admin:
    """`[admin]`: a port of its own for metrics, the status page and steering."""

    address: Annotated[str, HOST, "whoever reaches it can read all of it"] = "127.0.0.1"
    port: Annotated[int, between(0, 65535), "0 = any free port; the log says which"] = 9090
    token: Annotated[SecretValue, "what steering asks for; empty = read only"] = field(
        default="", repr=False
    )
    hosts: Annotated[
        tuple[Annotated[str, HOST], ...], "further names under which it may be asked"
    ] = ()


# The whole


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; `path` is the file it came from."""

    path: Annotated[Path, Mark.GIVEN]
    listen: Listen = Listen()
    upstreams: tuple[UpstreamConfig, ...] = ()
    routing: Routing = Routing()
    routes: tuple[RouteConfig, ...] = ()
    # What is in force for each group: its own keys laid over those of `[routing]`.
    groups: tuple[tuple[Annotated[str, GROUP], Routing], ...] = ()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    pool: PoolConfig = PoolConfig()
    forwarding: Forwarding = Forwarding()
    log: LogConfig = LogConfig()
    error_pages: ErrorPages = ErrorPages()
    health_check: HealthCheck | None = None
    circuit_breaker: CircuitBreaker | None = None
    sticky: Sticky | None = None
    slow_start: SlowStart | None = None
    static: Static = Static()
    admin: Annotated[Admin | None, Mark.RESTART] = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Further files that belong to it: when one of them changes, all is read again."""
        names = list(self.listen.tls.files) if self.listen.tls else []
        for upstream in self.upstreams:
            names += filter(None, upstream.tls.files if upstream.tls else ())
        return tuple(self.path.parent.absolute() / name for name in names)

    @property
    def access_log(self) -> str | None:
        """Where the access log goes: a path, "-" for standard output, or None."""
        path = self.log.access
        if path in {"off", "-"}:
            return None if path == "off" else path
        return str(self.path.parent / path)

    @property
    def root(self) -> bytes:
        """The folder that mode "static" serves, as the system knows it."""
        return os.fsencode(self.path.parent / self.listen.root)

    @property
    def page_folder(self) -> Path | None:
        """Where the pages for errors are."""
        folder = self.error_pages.folder
        return (self.path.parent / folder).absolute() if folder else None

    @property
    def group_names(self) -> tuple[str, ...]:
        """All groups that there are, that of those who name none included."""
        named = (*(upstream.group for upstream in self.upstreams), *dict(self.groups))
        return tuple(dict.fromkeys((*named, DEFAULT_GROUP)))

    def routing_of(self, group: str) -> Routing:
        """What `[routing]` and `[groups]` say of a group."""
        return dict(self.groups).get(group, self.routing)

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why."""
        plain = Config(self.path)
        meaningless = [
            place
            for place in _MEANINGLESS[self.listen.mode]
            if attrgetter(place)(self) != attrgetter(place)(plain)
        ]
        if self.listen.mode == "tcp" and self.circuit_breaker and self.circuit_breaker.statuses:
            meaningless.append("circuit_breaker.statuses")
        for place in meaningless:
            yield place, f'has no meaning with listen.mode = "{self.listen.mode}"'
        if self.slow_start is not None:
            tables = [("routing", self.routing)]
            tables += [(f"groups.{name}", routing) for name, routing in self.groups]
            for table, routing in tables:
                if routing.strategy in HASHES:
                    strategy = f'{table}.strategy = "{routing.strategy}"'
                    reason = "a hash cannot spare an upstream in part"
                    yield "slow_start", f"cannot be used with {strategy}: {reason}"
        for index, route in enumerate(self.routes):
            if route.group and route.group not in self.group_names:
                known = either([f'"{name}"' for name in self.group_names])
                yield f"routes[{index}].group", f'must be {known}, got "{route.group}"'
        for index, upstream in enumerate(self.upstreams):
            length = len(os.fsencode(self.path.parent / upstream.socket_file))
            if upstream.socket_file and length > _LONGEST_SOCKET_FILE:
                allowed = f"at most {_LONGEST_SOCKET_FILE} bytes long with its folder"
                yield f"upstreams[{index}].address", f"must be {allowed}, got {length}"
        for resolved in filter(attrgetter("resolve"), self.upstreams):
            for index, upstream in enumerate(self.upstreams):
                if upstream.name.startswith(f"{resolved.name}@"):
                    kept = f'"{resolved.name}@…" are the names of the servers of "{resolved.name}"'
                    yield f"upstreams[{index}].name", f'{kept}, got "{upstream.name}"'
        listen, admin = self.listen, self.admin
        ports = {listen.port, listen.http_redirect} - {0}  # any free port is nobody else's
        for index, upstream in enumerate(self.upstreams):
            if upstream.port in ports and arrives_at(upstream.address, listen.address):
                where = show_endpoint(listen.address, upstream.port)
                yield (
                    f"upstreams[{index}]",
                    f'is Atlas itself, which listens on {where} (name = "{upstream.name}")',
                )
        if admin is not None and admin.port in ports and _share(admin, listen):
            yield "admin.port", f"must not be one of [listen], got {admin.port}"


def _share(admin: Admin, listen: Listen) -> bool:
    """Do the two listen on one address? One that listens on all of them leaves none."""
    addresses = {admin.address, listen.address}
    return bool(addresses & {"0.0.0.0", "::"}) or arrives_at(admin.address, listen.address)
