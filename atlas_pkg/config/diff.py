"""What changed from one configuration to the next, in words.

Like `loader.py` this walks the dataclasses by their description (`schema.py`), so a new table or
key appears here by itself. Values marked `Mark.SECRET` are said to have changed, never shown.

Tables of an array are told apart by the key marked `Mark.UNIQUE`: the log of a reload says which
upstream came, went or changed, in one phrase, however the file was rearranged around it. Without
such a key what a table says as a whole, its `str`, tells it apart.

Not done here: deciding what a change means, which is the reload's part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from atlas_pkg.config.model import Config
from atlas_pkg.config.schema import Key, Mark, join, keys_of, show

# A reload that touches hundreds of upstreams is still one line in the log.
_MOST_PARTS = 10

_PLAIN_WORD = re.compile(r'"[\w.:/-]+"')


class Difference(NamedTuple):
    """One key that two configurations do not agree on."""

    place: str
    key: Key
    old: Any
    new: Any
    needs_restart: bool


def differences(
    old: Any, new: Any, where: str = "", *, restart: bool = False
) -> Iterator[Difference]:
    """Yield what differs between two instances of one dataclass, in the order of its keys.

    `where` is put before the names; `restart` says that the table around it needs a restart.
    """
    for key in keys_of(old):
        before, after = getattr(old, key.attribute), getattr(new, key.attribute)
        if before == after:
            continue
        place = join(where, key.name)
        needs_restart = restart or Mark.RESTART in key.marks
        if key.table is not None and before is not None and after is not None:
            yield from differences(before, after, place, restart=needs_restart)
        elif key.pair is not None and key.pair[1].table is not None:
            yield from _named_differences(key, dict(before), dict(after), place)
        else:
            yield Difference(place, key, before, after, needs_restart)


def _named_differences(
    key: Key, old: dict[str, Any], new: dict[str, Any], place: str
) -> Iterator[Difference]:
    """Yield what differs between tables of free names; one that is missing is None."""
    for name in {**old, **new}:
        inner, before, after = join(place, name), old.get(name), new.get(name)
        if before is not None and after is not None:
            yield from differences(before, after, inner)
        else:
            yield Difference(inner, key, before, after, needs_restart=False)


def restart_changes(old: Config, new: Config) -> tuple[str, ...]:
    """Return the dotted names of the keys that differ and that a reload cannot take over."""
    changes = differences(old, new)
    return tuple(change.place for change in changes if change.needs_restart)


def live_changes(old: Config, new: Config) -> tuple[str, ...]:
    """Return a short phrase for the log per difference that a reload takes over."""
    changes = list(differences(old, new))
    phrases = ((change, describe(change, changes)) for change in changes)
    told = [
        f"{change.place}: {phrase}"
        for change, phrase in phrases
        if phrase and not change.needs_restart
    ]
    before, after = dict(old.error_pages.pages), dict(new.error_pages.pages)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return (*told, f"error pages: {shorten(names)}") if names else tuple(told)


def describe(change: Difference, told: Sequence[Difference] = ()) -> str:
    """Say what has changed, without the key's name.

    `told` are all changes of the configuration. One in `[health_check]` shows once more in every
    upstream whose own check rests on it: such an echo is left out, and "" returned where nothing
    else is left.
    """
    key, old, new = change.key, change.old, change.new
    if Mark.SECRET in key.marks:
        return "changed"
    if old is None or new is None:
        return "removed" if new is None else "added"
    if key.element is None or key.element.table is None:
        return f"{show_kept(old)} -> {show_kept(new)}"
    keys = keys_of(key.element.table)
    unique = next((inner.attribute for inner in keys if Mark.UNIQUE in inner.marks), "")
    before, after = (
        {getattr(table, unique) if unique else str(table): table for table in tables}
        for tables in (old, new)
    )
    kept = [name for name in after if name in before]
    parts = [f"added {name}" for name in after if name not in before]
    parts += [f"removed {name}" for name in before if name not in after]
    if not unique and not parts and len(old) != len(new):
        parts.append("changed")  # one is there twice now, or no more
    common = [(other.place, other.old, other.new) for other in told]
    for name in kept:
        changes = [
            f"{inner.place} {describe(inner)}"
            for inner in differences(before[name], after[name])
            if (inner.place, inner.old, inner.new) not in common
        ]
        parts += [f"changed {name} ({', '.join(changes)})"] if changes else []
    if kept != [name for name in before if name in after]:
        parts.append("reordered")
    return shorten(parts)


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
