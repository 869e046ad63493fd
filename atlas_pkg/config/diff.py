"""Configurations in words: what changed from one to the next, and what is not at its default.

Like `loader.py` this walks the dataclasses by their description (`schema.py`), so a new table or
key appears here by itself. Values marked `Mark.SECRET` are said to have changed, never shown.

Arrays of tables are told apart by the key marked `Mark.UNIQUE`: the log of a reload says which
upstream came, went or changed, in one phrase, however the file was rearranged around it.

Not done here: deciding what a change means, which is the reload's part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from atlas_pkg.config.model import Config, HealthCheck, UpstreamConfig
from atlas_pkg.config.rules import show_endpoint
from atlas_pkg.config.schema import Key, Mark, join, keys_of, show

# A reload that touches hundreds of upstreams is still one line in the log.
_MOST_PARTS = 10

_PLAIN_WORD = re.compile(r'"[\w.:/-]+"')


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that two configurations do not agree on."""

    place: str
    key: Key
    old: Any
    new: Any
    needs_restart: bool

    @property
    def values(self) -> str:
        """The change without the key's name."""
        if Mark.SECRET in self.key.marks:
            return "changed"
        if self.old is None or self.new is None:
            return "removed" if self.new is None else "added"
        if self.key.element is not None and self.key.element.table is not None:
            return _table_changes(self.old, self.new)
        return f"{show_kept(self.old)} -> {show_kept(self.new)}"

    @property
    def setting(self) -> str:
        """The new value, written as one sets it."""
        if Mark.SECRET in self.key.marks or self.key.table is not None:
            return f"{self.place} is set"
        return f"{self.place} = {show_kept(self.new)}"


def differences(
    old: Any, new: Any, where: str = "", *, restart: bool = False
) -> Iterator[Difference]:
    """Yield what differs between two instances of one dataclass, in the order of its keys.

    `where` is put before the names; `restart` says that the table around it needs a restart.
    """
    for key in keys_of(old):
        before, after = getattr(old, key.name), getattr(new, key.name)
        if before == after:
            continue
        place = join(where, key.name)
        needs_restart = restart or Mark.RESTART in key.marks
        is_table = key.table is not None
        if is_table and before is not None and after is not None:
            yield from differences(before, after, place, restart=needs_restart)
        else:
            yield Difference(place, key, before, after, needs_restart)


def restart_changes(old: Config, new: Config) -> tuple[str, ...]:
    """Return the dotted names of the keys that differ and that a reload cannot take over."""
    changes = differences(old, new)
    return tuple(change.place for change in changes if change.needs_restart)


def live_changes(old: Config, new: Config) -> tuple[str, ...]:
    """Return a short phrase for the log per difference that a reload takes over."""
    changes = differences(old, _without_echoes(old, new))
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
    names = (key.name for key in keys_of(one))
    return {name for name in names if getattr(one, name) == getattr(other, name)}


def summary(config: Config) -> str:
    """Describe a configuration on one screen: who is served, by whom, and what is not default."""
    listen, upstreams = config.listen, config.upstreams
    lines = [
        f"{config.path}: valid",
        f"listen: {show_endpoint(listen.address, listen.port)}, mode {listen.mode}",
        f"upstreams: {len(upstreams) or 'none'}",
    ]
    if upstreams:
        lines[-1] += f", {config.routing.strategy}"
        lines.append("  " + shorten(map(_describe, upstreams), "\n  "))
    told = {"listen.address", "listen.port", "listen.mode", "upstreams", "routing.strategy"}
    changes = differences(Config(config.path), config)
    settings = [change.setting for change in changes if change.place not in told]
    if settings:
        lines += ["not at their defaults:", "  " + shorten(settings, "\n  ")]
    if warnings := warnings_of(config):
        lines += ["warnings:", "  " + shorten(warnings, "\n  ")]
    return "\n".join(lines)


def warnings_of(config: Config) -> list[str]:
    """Say what is allowed and yet hardly meant. For --check, for the start and for every reload."""
    upstreams, strategy = config.upstreams, config.routing.strategy
    if not upstreams:
        return ["no upstreams are configured: every request is answered 503"]
    warnings = []
    if not any(upstream.weight for upstream in upstreams):
        warnings.append("the weight of every upstream is 0: no new client is served")
    names: dict[str, list[str]] = {}
    for upstream in upstreams:
        endpoint = show_endpoint(upstream.address.lower(), upstream.port)
        names.setdefault(endpoint, []).append(upstream.name)
    for endpoint, same in names.items():
        if len(same) > 1:
            warnings.append(f"upstreams {shorten(same)} are the same server, {endpoint}")
    if strategy in {"round_robin", "random"}:
        warnings += [
            f"upstream {upstream.name}: weight {upstream.weight} has no effect with {strategy}"
            for upstream in upstreams
            if upstream.weight not in {0, 1}
        ]
    return warnings


def _describe(upstream: UpstreamConfig) -> str:
    endpoint = show_endpoint(upstream.address, upstream.port)
    return f"{upstream.name}  {endpoint}  weight {upstream.weight}"


def show_kept(value: object) -> str:
    """Write a value of a configuration for the log; plain words go without quotes."""
    if isinstance(value, tuple):
        return f"[{', '.join(show_kept(item) for item in value)}]"
    text = show(value)
    return text[1:-1] if _PLAIN_WORD.fullmatch(text) else text


def shorten(parts: Iterable[str], separator: str = ", ") -> str:
    """Join `parts`, saying how many were left out where they are too many for a person.

    >>> shorten(map(str, range(12)))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more'
    """
    kept = list(parts)
    left_out = len(kept) - _MOST_PARTS
    if left_out > 0:
        kept[_MOST_PARTS:] = [f"and {left_out} more"]
    return separator.join(kept)


def _table_changes(old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
    """Say which tables of an array were added, removed, changed or only moved."""
    name_of = _name_key((*old, *new)[0])
    before = {getattr(table, name_of): table for table in old}
    after = {getattr(table, name_of): table for table in new}
    kept = [name for name in after if name in before]
    parts = [f"added {name}" for name in after if name not in before]
    parts += [f"removed {name}" for name in before if name not in after]
    for name in (name for name in kept if before[name] != after[name]):
        changed = [
            f"{change.place} {change.values}" for change in differences(before[name], after[name])
        ]
        parts.append(f"changed {name} ({', '.join(changed)})")
    if kept != [name for name in before if name in after]:
        parts.append("reordered")
    return shorten(parts)


def _name_key(table: Any) -> str:
    """Return the key by which the tables of this array are told apart."""
    return next(key.name for key in keys_of(table) if Mark.UNIQUE in key.marks)
