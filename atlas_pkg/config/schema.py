"""What a dataclass says about a TOML table: its keys, their types, rules, marks and notes.

A dataclass is the description of one TOML table: a field is a key, its default the key's
default, its annotation what is allowed. `Annotated` carries what a type cannot say:

    port: Annotated[int, between(0, 65535), Mark.RESTART, "0 = any free port"] = 8080

One description serves three readers: `loader.py` checks a file against it, `diff.py` compares
two configurations by it, and the tests write the reference for users from it, so none of them can
drift away from the code.

Types map as one expects; beyond them: a dataclass is a table, `Table | None` a table that may be
absent, `tuple[X, ...]` an array (of tables where X is a dataclass), `tuple[tuple[str, X], ...]`
a table with free names (of tables where X is one), and any other type a string that the key's rule
turns into that type. A key that is a word of Python, like `from`, is a field with a _ behind it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import keyword
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

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
    and returns what to keep, or raises `ValueError`, whose own text nobody sees; or `Advice`.
    """

    allowed: str
    parse: Callable[[Any], Any]


class Advice(ValueError):
    """A value is refused, and it can be guessed what was meant: the text says what to write."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A second spelling of a key, for files that were written with it."""

    name: str


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts, where its name does not say it."""

    name: str


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table; or, without a name, what an array or a table with free names holds."""

    name: str
    type: Any
    rules: tuple[Rule, ...]
    marks: frozenset[Mark]
    aliases: tuple[str, ...]
    unit: str
    note: str
    default: Any

    @property
    def attribute(self) -> str:
        """What the dataclass calls it: with a _ behind it where Python has the word for itself."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name

    @property
    def is_required(self) -> bool:
        """Has the key no default?"""
        return self.default is dataclasses.MISSING

    @property
    def spellings(self) -> frozenset[str]:
        """Under which names the file may have it."""
        return frozenset({self.name, *self.aliases})

    @property
    def table(self) -> Any:
        """The dataclass of a key that holds a table (`Table` or `Table | None`), else None."""
        options = get_args(self.type) if isinstance(self.type, types.UnionType) else (self.type,)
        return next((option for option in options if dataclasses.is_dataclass(option)), None)

    @property
    def element(self) -> Key | None:
        """What an array holds, each time; None where the key is no array."""
        is_array = get_origin(self.type) is tuple and not self.pair
        return build_key(get_args(self.type)[0]) if is_array else None

    @property
    def pair(self) -> tuple[Key, Key] | None:
        """Name and value in a table with free names; None where the key is none."""
        inner = get_args(self.type)[0] if get_origin(self.type) is tuple else None
        if get_origin(inner) is not tuple:
            return None
        name, value = get_args(inner)
        return build_key(name), build_key(value)

    @property
    def expected(self) -> str:
        """Which values the key takes, to complete "must be ..."."""
        if self.table is not None:
            return "a table"
        if self.pair is not None:
            name, value = self.pair
            return f"a table: {name.expected} = {value.expected}"
        if self.element is not None:
            of_tables = self.element.table is not None
            return "an array of tables" if of_tables else f"an array, each {self.element.expected}"
        rules = " and ".join(rule.allowed for rule in self.rules)
        if self.type not in (int, float):
            return rules or _TYPE_WORDS[self.type]
        number = f"a number of {self.unit}" if self.unit else _TYPE_WORDS[self.type]
        return f"{number} ({rules})" if rules else number


def build_key(annotation: Any, name: str = "", default: Any = dataclasses.MISSING) -> Key:
    """Take an annotation apart into its plain type and what `Annotated` adds."""
    extras: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        extras = tuple(rest)
    return Key(
        name,
        annotation,
        rules=tuple(extra for extra in extras if isinstance(extra, Rule)),
        marks=frozenset(extra for extra in extras if isinstance(extra, Mark)),
        aliases=tuple(extra.name for extra in extras if isinstance(extra, Alias)),
        unit=" ".join(extra.name for extra in extras if isinstance(extra, Unit)),
        note=" ".join(extra for extra in extras if isinstance(extra, str)),
        default=default,
    )


def keys_of(table: Any) -> tuple[Key, ...]:
    """Return the keys of the table that the dataclass `table` (or an instance) describes."""
    return _keys_of(table if isinstance(table, type) else type(table))


@functools.cache
def _keys_of(cls: Any) -> tuple[Key, ...]:
    annotations = get_type_hints(cls, include_extras=True)
    keys = (
        build_key(annotations[field.name], field.name.removesuffix("_"), field.default)
        for field in dataclasses.fields(cls)
    )
    return tuple(key for key in keys if Mark.GIVEN not in key.marks)


def join(where: str, name: str) -> str:
    """Extend the dotted place `where` by one key, quoted where TOML would quote it.

    >>> join("forwarding.set_request_fields", "X-Env")
    'forwarding.set_request_fields.X-Env'
    >>> join("forwarding", "a b")
    'forwarding."a b"'
    """
    name = name if _BARE_KEY.fullmatch(name) else show(name)
    return f"{where}.{name}" if where else name


def either(words: Sequence[str]) -> str:
    """List words of which one is enough.

    >>> either(["a", "b", "c"]), either(["a"])
    ('a, b or c', 'a')
    """
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def show(value: object) -> str:
    """Write a value as a person would in TOML, cut short where it is long.

    >>> show("text"), show(True), show([1, 2]), show([])
    ('"text"', 'true', 'an array', 'an empty array')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not value.isprintable())
    else:
        try:
            text = str(value)
        except ValueError:  # Python refuses to write integers of thousands of digits.
            text = "a very large number"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
