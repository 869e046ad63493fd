"""A configuration on one screen, for `--check`, and what is hardly meant in it.

Warnings are for what is allowed and does no harm by itself: a weight without effect, a route that
an earlier one leaves nothing to, a group that nobody reaches. They are told by `--check`, at the
start and at every reload.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atlas_pkg.config.diff import Difference, differences, shorten, show_kept
from atlas_pkg.config.model import DEFAULT_GROUP, Config, RouteConfig
from atlas_pkg.config.rules import show_endpoint
from atlas_pkg.config.schema import Mark

# What has lines of its own.
_TOLD = {"listen.address", "listen.port", "listen.mode", "upstreams", "routing.strategy", "routes"}

# What an answer with this status has to say (RFC 9110 §15.5), and a fixed one does not by itself.
_REQUIRED = {401: "WWW-Authenticate", 405: "Allow", 407: "Proxy-Authenticate", 426: "Upgrade"}

# Where nginx, HAProxy and Caddy would put something else in its place.
_VARIABLE = re.compile(r"\$\w+|%\[|\{[\w.]+\}")


def summary(config: Config) -> str:
    """Describe a configuration: who is served, by whom, and what is not at its default."""
    listen = config.listen
    lines = [
        f"{config.path}: valid",
        f"listen: {show_endpoint(listen.address, listen.port)}, mode {listen.mode}",
        *_show_upstreams(config),
        *_show_routes(config),
    ]
    changes = differences(Config(config.path), config)
    settings = [
        _show_setting(change)
        for change in changes
        if change.place not in _TOLD and not change.place.startswith("groups.")
    ]
    if settings:
        lines += ["not at their defaults:", "  " + shorten(settings, "\n  ")]
    if warnings := warnings_of(config):
        lines += ["warnings:", "  " + shorten(warnings, "\n  ")]
    return "\n".join(lines)


def _show_upstreams(config: Config) -> Iterator[str]:
    if config.listen.mode == "static":
        yield f"files: {os.fsdecode(config.root)}"
        return
    number, names = len(config.upstreams), config.group_names
    if len(names) == 1:
        yield f"upstreams: {number}, {config.routing.strategy}" if number else "upstreams: none"
        yield from _show_servers(config, DEFAULT_GROUP, "  ")
        return
    yield f"upstreams: {number} in {len(names)} groups"
    for name in names:
        servers = list(_show_servers(config, name, "    "))
        yield f"  group {name}, {config.routing_of(name).strategy}{'' if servers else ': none'}"
        yield from servers


def _show_servers(config: Config, group: str, indent: str) -> Iterator[str]:
    servers = [
        f"{upstream.name}  {upstream.endpoint}  weight {upstream.weight}"
        for upstream in config.upstreams
        if upstream.group == group
    ]
    if servers:
        yield indent + shorten(servers, f"\n{indent}")


def _show_routes(config: Config) -> Iterator[str]:
    if not config.routes:
        return
    yield "routes:"
    for number, route in enumerate(config.routes, 1):
        yield f"  {number:2}  {route}"
    if not any(_is_for_all(route) for route in config.routes):
        yield f"   -  all others → group {DEFAULT_GROUP}"


def _show_setting(change: Difference) -> str:
    """Write the new value as one sets it."""
    if Mark.SECRET in change.key.marks or change.key.table is not None:
        return f"{change.place} is set"
    return f"{change.place} = {show_kept(change.new)}"


def warnings_of(config: Config) -> list[str]:
    """Say what is allowed and yet hardly meant."""
    if config.listen.mode == "static":
        return list(_judge_files(config))
    warnings = [warning for name in config.group_names for warning in _judge_group(config, name)]
    for upstream in config.upstreams:
        strategy = config.routing_of(upstream.group).strategy
        if strategy in {"round_robin", "random"} and upstream.weight not in {0, 1}:
            weight = f"weight {upstream.weight} has no effect with {strategy}"
            warnings.append(f"upstream {upstream.name}: {weight}, but with weighted_round_robin")
        if upstream.tls is not None and not upstream.tls.verify:
            warnings.append(f"upstream {upstream.name}: its certificate is not verified")
    warnings += config.error_pages.complaints
    warnings += [  # without the value, which may be a secret from the environment
        f"forwarding.{table}: {name} is sent as it stands: there are no variables"
        for table in ("set_request_fields", "set_response_fields")
        for name, value in getattr(config.forwarding, table)
        if _VARIABLE.search(value)
    ]
    said = {name.lower() for name, _ in config.forwarding.set_response_fields}
    routes = list(enumerate(config.routes, 1))
    for index, (number, route) in enumerate(routes):
        field = _REQUIRED.get(route.status)
        if field is not None and field.lower() not in said:
            warnings.append(f"route {number} ({route.pattern}): {route.status} lacks {field}")
        earlier = (other for other, one in routes[:index] if _leaves_nothing_to(one, route))
        if (first := next(earlier, None)) is not None:
            warnings.append(
                f"route {number} ({route.pattern}) is never taken: route {first} comes before it"
            )
    return warnings


def _judge_files(config: Config) -> Iterator[str]:
    root = os.fsdecode(config.root)
    if not Path(root).is_dir():
        yield f"listen.root: {root} is no folder: every request is answered 404"
    if config.upstreams:
        yield 'no requests are sent to the upstreams with listen.mode = "static"'


def _judge_group(config: Config, name: str) -> Iterator[str]:
    upstreams = [upstream for upstream in config.upstreams if upstream.group == name]
    is_alone = len(config.group_names) == 1 and not config.routes
    is_reached = any(route.group == name for route in config.routes) or (
        name == DEFAULT_GROUP and not any(_is_for_all(route) for route in config.routes)
    )
    if is_alone and not upstreams:
        yield "no upstreams are configured: every request is answered 503"
    elif is_reached and not upstreams:
        yield f"group {name} has no upstreams: its requests are answered 503"
    elif not is_reached and (upstreams or name != DEFAULT_GROUP):
        yield f"group {name}: no route leads to it"
    if upstreams and not any(upstream.weight for upstream in upstreams):
        of = "" if is_alone else f"group {name}: "
        yield f"{of}the weight of every upstream is 0: no new client is served"
    names: dict[str, list[str]] = {}
    for upstream in upstreams:
        endpoint = upstream.endpoint if upstream.socket_file else upstream.endpoint.lower()
        names.setdefault(endpoint, []).append(upstream.name)
    for endpoint, same in names.items():
        if len(same) > 1:
            yield f"upstreams {shorten(same)} are the same server, {endpoint}"


def _is_for_all(route: RouteConfig) -> bool:
    return not (route.host or route.path or route.from_)


def _leaves_nothing_to(earlier: RouteConfig, route: RouteConfig) -> bool:
    """Does every request that is for `route` take the earlier one?"""
    host, path = earlier.host, earlier.path
    takes_host = host in {"", route.host} or (
        host.startswith("*.") and route.host.endswith(host[1:])
    )
    takes_path = f"{route.path}/".startswith(f"{path}/") if path else True
    takes_clients = not earlier.from_ or (
        bool(route.from_)
        and all(any(_is_within(one, other) for other in earlier.from_) for one in route.from_)
    )
    return takes_host and takes_path and takes_clients


def _is_within(network: Any, other: Any) -> bool:
    return bool(network.version == other.version and network.subnet_of(other))
