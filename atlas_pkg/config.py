"""The configuration: TOML -> frozen dataclasses, or a `ConfigError` with every mistake.

Read the classes from top to bottom as the reference of the file: a class is a table, a field is
a key with its type, its range, a note and its default. Every key is live (taken over by a hot
reload) unless it carries `Mark.RESTART`. Durations are float seconds, sizes are bytes. Below
them are the few functions that load a file and tell two configurations apart.

Everything is frozen: threads share a configuration without a lock, and a reload swaps it whole.

Checklist for a new key: the field here, its line in the README's table (a test compares them),
and the code that obeys it. A key that nothing obeys yet stands in `NOT_YET`.

Not done here: watching the file (`control/reload.py`) and resolving host names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from atlas_pkg import document, keys, schema, wording
from atlas_pkg.errors import ConfigError
from atlas_pkg.keys import Mark
from atlas_pkg.rules import (
    HASH_ON,
    HOST,
    PRINTABLE,
    Bytes,
    FieldPairs,
    NetworkText,
    RemovableName,
    Seconds,
    SecondsOrZero,
    between,
    one_of,
)

# Documented, but not built yet: refused with a sentence that says so, save for its default. Who
# builds one deletes its line (and adds the class, the field or the choice that it needs).
NOT_YET = frozenset(
    {
        "listen.mode = static",
        "listen.mode = tcp",
        "listen.proxy_protocol",
        "listen.root",
        "listen.tls",
        "listen.workers",
        "upstreams.backup",
        "upstreams.health_check",
        "upstreams.max_connections",
        "upstreams.proxy_protocol",
        "upstreams.resolve",
        "upstreams.tls",
        "routing.hash_on",
        "routing.retries",
        "routing.strategy = consistent_hash",
        "routing.strategy = ip_hash",
        "routing.strategy = least_connections",
        "routing.strategy = power_of_two",
        "timeouts.queue",
        "timeouts.tls_handshake",
        "log.access",
        "log.format = json",
        "admin",
        "circuit_breaker",
        "health_check",
        "slow_start",
        "static",
        "sticky",
    }
)


@dataclass(frozen=True, slots=True)
class Listen:
    """`[listen]`: where clients come in, and how many."""

    address: Annotated[str, HOST, Mark.RESTART, "IPv6 with or without brackets"] = "0.0.0.0"
    port: Annotated[
        int, between(0, 65535), Mark.RESTART, "0 = any free port; the log says which"
    ] = 8080
    mode: Annotated[str, one_of("http"), Mark.RESTART] = "http"
    workers: Annotated[
        int, between(0, 1024), Mark.RESTART, "processes sharing the port; 0 = one per CPU"
    ] = 1
    pin: Annotated[bool, Mark.RESTART, "hold each process to one of the CPUs allowed to it"] = True
    max_connections: Annotated[
        int, between(1, 1_000_000), "clients at once, per process; beyond it the backlog waits"
    ] = 4096
    max_threads: Annotated[
        int, between(1, 10_000), Mark.RESTART, "requests being served at once, per process"
    ] = 256
    root: Annotated[str, PRINTABLE, 'mode "static": what is served'] = "/var/www/html"


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """`[[upstreams]]`: one server that answers. None at all is legal: every answer is 503."""

    name: Annotated[str, PRINTABLE, Mark.UNIQUE, "appears in logs, metrics, sticky cookies"]
    address: Annotated[str, HOST, "IPv6 with or without brackets"]
    port: Annotated[int, between(1, 65535)]
    weight: Annotated[
        int, between(0, 1000), "0 = no new clients (sticky ones are still served)"
    ] = 1
    max_connections: Annotated[
        int, between(0, 1_000_000), "requests in flight to it, per process; 0 = no limit"
    ] = 0
    backup: Annotated[bool, "used only when no ordinary upstream is available"] = False
    proxy_protocol: Annotated[
        int, between(0, 2), "version of the PROXY header sent to it; 0 = none"
    ] = 0
    resolve: Annotated[
        SecondsOrZero, "how often its host name is resolved again; 0 = once, at load"
    ] = 0.0


@dataclass(frozen=True, slots=True)
class Routing:
    """`[routing]`: which upstream gets the next request."""

    strategy: Annotated[str, one_of("round_robin", "weighted_round_robin", "random")] = (
        "round_robin"
    )
    hash_on: Annotated[str, HASH_ON, "consistent_hash: what a client is known by"] = "client_ip"
    retries: Annotated[int, between(0, 100), "further upstreams tried when one fails; 0 = none"] = 0


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

    idle: Annotated[int, between(0, 1000), "kept at rest; 0 = a new connection each time"] = 1
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
    format: Annotated[str, one_of("combined"), "of the access log"] = "combined"


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; `path` is the file it came from."""

    path: Annotated[Path, Mark.GIVEN]
    listen: Listen = Listen()
    upstreams: tuple[UpstreamConfig, ...] = ()
    routing: Routing = Routing()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    pool: PoolConfig = PoolConfig()
    forwarding: Forwarding = Forwarding()
    log: LogConfig = LogConfig()


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check the file `path`.

    `environ` is what `${NAME}` is taken from, by default the process's own environment. Raises
    `ConfigError` with all problems, each beginning with the file's name. Blocks on the disk.
    """
    return parse_config(document.read_document(path), path, environ)


def parse_config(data: bytes, path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Check a file's bytes, read already; otherwise like `load_config`."""
    return build_config(document.parse_document(data, path), path, environ)


def build_config(
    tables: Mapping[str, object], path: Path, environ: Mapping[str, str] | None = None
) -> Config:
    """Check a parsed TOML document; otherwise like `load_config`."""
    try:
        return schema.read_table(
            Config,
            tables,
            environ=os.environ if environ is None else environ,
            not_yet=NOT_YET,
            given={"path": path},
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {problem}" for problem in error.problems) from None


def restart_changes(old: Config, new: Config) -> tuple[str, ...]:
    """Return the dotted names of the keys that differ and that a reload cannot take over."""
    changes = wording.differences(old, new)
    return tuple(change.place for change in changes if change.needs_restart)


def live_changes(old: Config, new: Config) -> tuple[str, ...]:
    """Return a short phrase for the log per difference that a reload takes over."""
    changes = wording.differences(old, new)
    return tuple(
        f"{change.place}: {change.values}" for change in changes if not change.needs_restart
    )


def reference() -> list[keys.KeyDoc]:
    """List every key of the file with its default, what it allows and whether it is live."""
    return keys.reference(Config)


def summary(config: Config) -> str:
    """Describe a configuration on one screen: who is served, by whom, and what is not default."""
    listen, upstreams = config.listen, config.upstreams
    lines = [
        f"{config.path}: valid",
        f"listen: {wording.show_endpoint(listen.address, listen.port)}, mode {listen.mode}",
        f"upstreams: {len(upstreams) or 'none, so every answer is 503'}",
    ]
    if upstreams:
        lines[-1] += f", {config.routing.strategy}"
        lines.append("  " + wording.shorten(map(_describe, upstreams), "\n  "))
    told = {"listen.address", "listen.port", "listen.mode", "upstreams", "routing.strategy"}
    changes = wording.differences(Config(config.path), config)
    settings = [change.setting for change in changes if change.place not in told]
    if settings:
        lines += ["not at their defaults:", "  " + wording.shorten(settings, "\n  ")]
    return "\n".join(lines)


def _describe(upstream: UpstreamConfig) -> str:
    endpoint = wording.show_endpoint(upstream.address, upstream.port)
    return f"{upstream.name}  {endpoint}  weight {upstream.weight}"
