"""What a dataclass says about a TOML table: its keys, their types, rules, marks and notes.

A dataclass is the description of one TOML table: a field is a key, its default the key's
default, its annotation what is allowed. `Annotated` carries what a type cannot say:

    port: Annotated[int, between(0, 65535), Mark.RESTART, "0 = any free port"] = 8080

One description serves three readers: `loader.py` checks a file against it, `diff.py` compares
two configurations by it, and `reference` turns it into the table of the README, so none of
them can drift away from the code.

Types map as one expects; beyond them: a dataclass is a table, `Table | None` a table that may be
absent, `tuple[X, ...]` an array (of tables where X is a dataclass), `tuple[tuple[str, X], ...]`
a table with free names, and any other type a string that the key's rule turns into that type.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

_TYPE_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_SHOWN = 60


class Mark(enum.Enum):
    """What else is true of a key."""

    RESTART = "a change needs a restart; every unmarked key is live"
    SECRET = "the value is never printed"
    UNIQUE = "no two tables of the array have it in common"
    GIVEN = "not a key of the file: the caller hands the value in"


@dataclass(frozen=True, slots=True)
class Rule:
    """Which values a key may have; several rules of one key hold in turn.

    `allowed` completes the sentence "must be ...". `parse` gets a value of the right TOML type
    and returns what to keep, or raises `ValueError`, whose own text nobody sees.
    """

    allowed: str
    parse: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Alias:
    """A second spelling of a key, for files that were written with it."""

    name: str


@dataclass(frozen=True, slots=True)
class Hint:
    """An annotation taken apart."""

    type: Any
    rules: tuple[Rule, ...]
    marks: frozenset[Mark]
    aliases: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table: its name, its annotation and its default."""

    name: str
    hint: Hint
    default: Any

    @property
    def is_required(self) -> bool:
        """Has the key no default?"""
        return self.default is dataclasses.MISSING


@dataclass(frozen=True, slots=True)
class KeyDoc:
    """One line of the reference: texts for people, `default` written as in TOML."""

    name: str
    default: str
    allowed: str
    is_live: bool
    note: str


@runtime_checkable
class Clashing(Protocol):
    """A table whose keys can forbid each other something, each being right by itself."""

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each key that does not go with another one, and why."""


def hint_of(annotation: Any) -> Hint:
    """Take an annotation apart into its plain type and what `Annotated` adds."""
    extras: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        extras = tuple(rest)
    return Hint(
        type=annotation,
        rules=tuple(extra for extra in extras if isinstance(extra, Rule)),
        marks=frozenset(extra for extra in extras if isinstance(extra, Mark)),
        aliases=tuple(extra.name for extra in extras if isinstance(extra, Alias)),
        note=" ".join(extra for extra in extras if isinstance(extra, str)),
    )


def keys_of(table: Any) -> tuple[Key, ...]:
    """Return the keys of the table that the dataclass `table` (or an instance) describes."""
    cls = table if isinstance(table, type) else type(table)
    annotations = get_type_hints(cls, include_extras=True)
    keys = (
        Key(field.name, hint_of(annotations[field.name]), field.default)
        for field in dataclasses.fields(cls)
    )
    return tuple(key for key in keys if Mark.GIVEN not in key.hint.marks)


def named_in(table: Any, names: Iterable[str]) -> set[str]:
    """Return the keys of `table` that are among `names`, which may be second spellings."""
    spellings = set(names)
    return {key.name for key in keys_of(table) if spellings & {key.name, *key.hint.aliases}}


def table_in(hint: Hint) -> Any:
    """Return the dataclass of a key that holds a table (`Table` or `Table | None`), else None."""
    options = get_args(hint.type) if isinstance(hint.type, types.UnionType) else (hint.type,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def element_of(hint: Hint) -> Hint | None:
    """Return the annotation of an array's elements, or None where the key is no array."""
    return hint_of(get_args(hint.type)[0]) if get_origin(hint.type) is tuple else None


def join(where: str, name: str) -> str:
    """Extend the dotted place `where` by one key, quoted where TOML would quote it."""
    name = name if _BARE_KEY.fullmatch(name) else show(name)
    return f"{where}.{name}" if where else name


def show(value: object) -> str:
    """Write a value as a person would in TOML, cut short where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not value.isprintable())
    else:
        try:
            text = str(value)
        except ValueError:  # Python refuses to write integers of thousands of digits.
            text = "a very large number"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _show_default(key: Key) -> str:
    element = element_of(key.hint)
    if element is None:
        return show(key.default)
    return "{}" if get_origin(element.type) is tuple else "[]"


def expected(hint: Hint) -> str:
    """Say which values a key takes, to complete "must be ..."."""
    rules = " and ".join(rule.allowed for rule in hint.rules)
    element = element_of(hint)
    if table_in(hint) is not None:
        return "a table"
    if element is not None and table_in(element) is not None:
        return "an array of tables"
    if element is not None and get_origin(element.type) is tuple:
        name, value = get_args(element.type)
        return f"a table: {expected(hint_of(name))} = {expected(hint_of(value))}"
    if element is not None:
        return f"an array, each {expected(element)}"
    if hint.type in (int, float) and rules:
        return f"{_TYPE_WORDS[hint.type]} ({rules})"
    return rules or _TYPE_WORDS[hint.type]


def reference(table: Any, where: str = "", *, restart: bool = False) -> list[KeyDoc]:
    """List every key of the dataclass `table` and of the tables in it, in their order.

    `where` is put before the names; `restart` says that the table around it needs a restart.
    """
    docs: list[KeyDoc] = []
    for key in keys_of(table):
        place = join(where, key.name)
        needs_restart = restart or Mark.RESTART in key.hint.marks
        inner = table_in(key.hint) or table_in(element_of(key.hint) or key.hint)
        if inner is not None:
            docs += reference(inner, place, restart=needs_restart)
            continue
        default = "required" if key.is_required else _show_default(key)
        docs.append(KeyDoc(place, default, expected(key.hint), not needs_restart, key.hint.note))
    return docs
