"""The configuration: TOML -> frozen dataclasses, or a `ConfigError` with every mistake.

Read the classes from top to bottom as the reference of the file: a class is a table, a field is
a key with its type, its range, a note and its default. Every key is live (taken over by a hot
reload) unless it carries `Mark.RESTART`. Durations are float seconds, sizes are bytes. Here are
the tables that say who is served by whom; those for fine-tuning are in `tables.py`. Below them
are the few functions that load a file and tell two configurations apart.

Everything is frozen: threads share a configuration without a lock, and a reload swaps it whole.

Checklist for a new key: the field here, its line in the README's table (a test compares them),
and the code that obeys it. A key that nothing obeys yet stands in `NOT_YET`.

Not done here: watching the file (`control/reload.py`) and resolving host names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from atlas_pkg import document, keys, schema, wording
from atlas_pkg.errors import ConfigError
from atlas_pkg.keys import Mark
from atlas_pkg.rules import HASH_ON, HOST, PRINTABLE, SecondsOrZero, between, one_of
from atlas_pkg.tables import (
    Admin,
    CircuitBreaker,
    Forwarding,
    HealthCheck,
    Limits,
    LogConfig,
    PoolConfig,
    SlowStart,
    Sticky,
    Timeouts,
)

# Who needs a table looks for it here, wherever it is written down.
__all__ = [
    "NOT_YET",
    "Admin",
    "CircuitBreaker",
    "Config",
    "Forwarding",
    "HealthCheck",
    "Limits",
    "Listen",
    "LogConfig",
    "PoolConfig",
    "Routing",
    "SlowStart",
    "Sticky",
    "Timeouts",
    "UpstreamConfig",
    "build_config",
    "live_changes",
    "load_config",
    "parse_config",
    "reference",
    "restart_changes",
    "summary",
]

# They send each client to an upstream of its own, so none can be given only some requests.
_HASHES = frozenset({"ip_hash", "consistent_hash"})

# Documented, but not built yet: refused with a sentence that says so, save for its default. Who
# builds one deletes its line (and adds the class, the field or the choice that it needs).
NOT_YET = frozenset(
    {
        "listen.mode = static",
        "listen.mode = tcp",
        "listen.proxy_protocol",
        "listen.root",
        "listen.tls",
        "upstreams.proxy_protocol",
        "upstreams.resolve",
        "upstreams.tls",
        "timeouts.tls_handshake",
        "static",
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
    lanes: Annotated[
        int,
        between(0, 64),
        Mark.RESTART,
        "threads that serve what needs no waiting (Linux); 0 = a thread for each client",
    ] = 1
    pin: Annotated[bool, Mark.RESTART, "hold each process to one of the CPUs allowed to it"] = True
    max_connections: Annotated[
        int, between(1, 1_000_000), "clients at once, per process; beyond it the backlog waits"
    ] = 4096
    max_threads: Annotated[
        int,
        between(1, 10_000),
        Mark.RESTART,
        "threads that wait for somebody, per process; with lanes = 0 clients at once",
    ] = 1024
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
    # What is in force for this upstream: its own keys laid over those of `[health_check]`.
    health_check: HealthCheck | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """`[routing]`: which upstream gets the next request."""

    strategy: Annotated[
        str,
        one_of(
            "round_robin",
            "weighted_round_robin",
            "random",
            "least_connections",
            "power_of_two",
            "ip_hash",
            "consistent_hash",
        ),
    ] = "round_robin"
    hash_on: Annotated[str, HASH_ON, "consistent_hash: what a client is known by"] = "client_ip"
    retries: Annotated[int, between(0, 100), "further upstreams tried when one fails; 0 = none"] = 0


# ruff: noqa: RUF009 - tables as defaults are fine, being frozen; ruff does not look into `tables`
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
    health_check: HealthCheck | None = None
    circuit_breaker: CircuitBreaker | None = None
    sticky: Sticky | None = None
    slow_start: SlowStart | None = None
    admin: Annotated[Admin | None, Mark.RESTART] = None

    @property
    def access_log(self) -> str | None:
        """Where the access log goes: a path, "-" for standard output, or None."""
        path = self.log.access
        if path in {"off", "-"}:
            return None if path == "off" else path
        return str(self.path.parent / path)

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield which key does not go with another one, and why."""
        strategy = self.routing.strategy
        if self.slow_start is not None and strategy in _HASHES:
            reason = "a hash cannot spare an upstream in part"
            yield "slow_start", f'cannot be used with routing.strategy = "{strategy}": {reason}'


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
        config = schema.read_table(
            Config,
            tables,
            environ=os.environ if environ is None else environ,
            not_yet=NOT_YET,
            given={"path": path},
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {problem}" for problem in error.problems) from None
    return _lay_health_checks(config, tables)


def _lay_health_checks(config: Config, tables: Mapping[str, Any]) -> Config:
    """Give every upstream the checks in force for it; `tables` tells what its own table names."""
    upstreams = []
    for upstream, table in zip(config.upstreams, tables.get("upstreams", ()), strict=True):
        own, common = upstream.health_check, config.health_check
        if own is None:
            own = common
        elif common is not None:
            named = keys.named_in(HealthCheck, table["health_check"])
            own = replace(common, **{name: getattr(own, name) for name in named})
        upstreams.append(replace(upstream, health_check=own))
    return replace(config, upstreams=tuple(upstreams))


def restart_changes(old: Config, new: Config) -> tuple[str, ...]:
    """Return the dotted names of the keys that differ and that a reload cannot take over."""
    changes = wording.differences(old, new)
    return tuple(change.place for change in changes if change.needs_restart)


def live_changes(old: Config, new: Config) -> tuple[str, ...]:
    """Return a short phrase for the log per difference that a reload takes over."""
    changes = wording.differences(old, _without_echoes(old, new))
    return tuple(
        f"{change.place}: {change.values}" for change in changes if not change.needs_restart
    )


def _without_echoes(old: Config, new: Config) -> Config:
    """Undo in the upstreams of `new` what is different only because `[health_check]` is."""
    before = {upstream.name: upstream.health_check for upstream in old.upstreams}
    upstreams = list(new.upstreams)
    was, becomes = old.health_check, new.health_check
    for index, upstream in enumerate(upstreams):
        now = upstream.health_check
        own = before.get(upstream.name, now)
        if own == was and now == becomes:
            now = own
        elif own is not None and now is not None and was is not None and becomes is not None:
            same_before, same_now = _agreeing(own, was), _agreeing(now, becomes)
            echoes = {name: getattr(own, name) for name in same_before & same_now}
            now = replace(now, **echoes)
        upstreams[index] = replace(upstream, health_check=now)
    return replace(new, upstreams=tuple(upstreams))


def _agreeing(one: HealthCheck, other: HealthCheck) -> set[str]:
    """Name the keys on which two agree."""
    names = (key.name for key in keys.keys_of(one))
    return {name for name in names if getattr(one, name) == getattr(other, name)}


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
