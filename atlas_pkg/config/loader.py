"""From a file to a `Config`, or to a `ConfigError` with every mistake in it.

First bytes become a dictionary (TOML), then the dictionary is compared, in the order of the file,
with the description that the dataclasses give (`schema.py`). A refused value is noted with its
place and its value, and the walk goes on, so that one run shows all mistakes of a file. The walk
knows nothing about load balancing: a new table is a new dataclass, and no line here changes.

`${NAME}` in a string is taken from the environment before the rules see the string; messages
show what the file says, not what the environment does, since that is where secrets are.

Not done here: what the keys mean (`model.py`), the rules themselves (`rules.py`). Whatever concerns
two keys at once the dataclass says itself (`clashes`).
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import tomli

from atlas_pkg.config.model import NOT_YET, Config, HealthCheck
from atlas_pkg.config.schema import Key, Mark, join, keys_of, show
from atlas_pkg.errors import ConfigError

T = TypeVar("T")

# What stands for a value that was refused: its problem is noted, nothing is built from it.
_REFUSED: Any = object()

_ENVIRONMENT = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_INDEX = re.compile(r"\[\d+\]")

# tomli tells the place in its message; only its newer versions have it as an attribute too.
_TOML_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check the file `path`.

    `environ` is what `${NAME}` is taken from, by default the process's own environment. Raises
    `ConfigError` with all problems, each beginning with the file's name. Blocks on the disk.
    """
    return parse_config(read_document(path), path, environ)


def parse_config(data: bytes, path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Check a file's bytes, read already; otherwise like `load_config`."""
    return build_config(parse_document(data, path), path, environ)


def build_config(
    tables: Mapping[str, object], path: Path, environ: Mapping[str, str] | None = None
) -> Config:
    """Check a parsed TOML document; otherwise like `load_config`."""
    try:
        config = read_table(
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
            named = table["health_check"].keys()
            said = [key.name for key in keys_of(HealthCheck) if key.spellings & named]
            own = replace(common, **{name: getattr(own, name) for name in said})
        upstreams.append(replace(upstream, health_check=own))
    return replace(config, upstreams=tuple(upstreams))


def read_document(path: Path) -> bytes:
    """Return the bytes of the file. Raises `ConfigError`. Blocks on the disk."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        problem = "no such file"
    except IsADirectoryError:
        problem = "is a directory, not a file"
    except PermissionError:
        problem = "no permission to read it"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    raise ConfigError([f"{path}: {problem}"])


def parse_document(data: bytes, path: Path) -> dict[str, Any]:
    """Return the TOML document in `data`; `path` is only its name. Raises `ConfigError`."""
    try:
        # "-sig": some editors begin a file with a byte order mark.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise ConfigError([f"{path}:{line}: not UTF-8 (byte 0x{byte:02x})"]) from None
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(str(error), text, path)]) from None
    except (ValueError, RecursionError) as error:
        # Beyond TOML: Python takes no integer of thousands of digits and no endless nesting.
        raise ConfigError([f"{path}: not readable as TOML: {error}"]) from None
    if not document:
        raise ConfigError([f"{path}: is empty (blanks and comments do not count)"])
    return document


def _syntax_problem(message: str, text: str, path: Path) -> str:
    match = _TOML_PLACE.fullmatch(message)
    if match is None:
        return f"{path}: not TOML: {message}"
    what, line, column = match.groups()
    if line is None:
        last_line = text.rstrip().count("\n") + 1
        return f"{path}:{last_line}: not TOML: {what} at the end of the file"
    return f"{path}:{line}: not TOML: {what} at column {column}"


def read_table(
    table: type[T],
    data: Mapping[str, object],
    *,
    environ: Mapping[str, str],
    not_yet: frozenset[str] = frozenset(),
    given: Mapping[str, object] | None = None,
) -> T:
    """Build the dataclass `table` from `data`, which has the shapes that TOML can have.

    `environ` is what `${NAME}` is taken from. `not_yet` names what is refused for now: a key
    (`listen.tls`, only its default is accepted) or one value of it (`routing.strategy = x`).
    `given` fills the fields marked `Mark.GIVEN`. Raises `ConfigError` with all problems.
    """
    reader = _Reader(environ, not_yet)
    keys = keys_of(table)
    values = reader.read_keys(keys, data, "")
    built = None
    if all(key.name in values for key in keys if key.is_required):
        # A refused key counts as left out here: what clashes without it is told as well.
        built = reader.build(table, {**values, **(given or {})}, "")
    if built is None or reader.problems:
        raise ConfigError(reader.problems)
    return built


class _Reader:
    """Walks one dictionary and notes each problem with its place."""

    def __init__(self, environ: Mapping[str, str], not_yet: frozenset[str]) -> None:
        self.problems: list[str] = []
        self._environ = environ
        self._not_yet = not_yet

    def read_keys(
        self, keys: tuple[Key, ...], data: Mapping[str, object], where: str
    ) -> dict[str, Any]:
        """Return the accepted values by key; what was refused is missing from it."""
        by_spelling = {name: key for key in keys for name in key.spellings}
        values: dict[str, Any] = {}
        for name, raw in data.items():
            place = join(where, name)
            key = by_spelling.get(name)
            if key is None:
                self._refuse_unknown(place, name, tuple(by_spelling))
            elif name != key.name and key.name in data:
                self._note(place, f'is another name for "{key.name}", which is there too')
            elif (value := self._read_available(key, raw, place)) is not _REFUSED:
                values[key.name] = value
        for key in keys:
            if key.is_required and not key.spellings & data.keys():
                self._note(join(where, key.name), f"missing, must be {key.expected}")
        return values

    def build(self, table: type[T], values: Mapping[str, Any], where: str) -> T:
        """Build the dataclass `table`, noting which of its keys do not go together."""
        built = table(**values)
        if hasattr(built, "clashes"):
            for name, sentence in built.clashes():
                self._note(join(where, name), sentence)
        return built

    def _note(self, place: str, sentence: str) -> Any:
        """Note a problem; returns what stands for the refused value."""
        self.problems.append(f"{place}: {sentence}")
        return _REFUSED

    def _refuse(self, place: str, allowed: str, raw: object, key: Key) -> Any:
        got = "" if Mark.SECRET in key.marks else f", got {show(raw)}"
        return self._note(place, f"must be {allowed}{got}")

    def _refuse_unknown(self, place: str, name: str, spellings: tuple[str, ...]) -> None:
        plain = _INDEX.sub("", place)
        if plain in self._not_yet:
            self._note(place, "not yet available")
            return
        parent = plain.rpartition(".")[0]
        later = [dotted.rpartition(".") for dotted in self._not_yet if "=" not in dotted]
        known = sorted({*spellings, *(last for head, _, last in later if head == parent)})
        near = difflib.get_close_matches(name, known, n=1)
        if near:
            self._note(place, f'unknown key, did you mean "{near[0]}"?')
        else:
            self._note(place, f"unknown key, known here: {', '.join(known)}")

    def _read_available(self, key: Key, raw: object, place: str) -> Any:
        """Read one key's value, unless it belongs to what is not built yet."""
        plain = _INDEX.sub("", place)
        if isinstance(raw, str) and f"{plain} = {raw}" in self._not_yet:
            return self._note(place, f"{show(raw)} is not yet available")
        value = self._read_value(key, raw, place)
        if value is _REFUSED or plain not in self._not_yet or value == key.default:
            return value
        instead = "" if key.default is None else f", leave it at {show(key.default)}"
        return self._note(place, f"{show(raw)} is not yet available{instead}")

    def _read_value(self, key: Key, raw: object, place: str) -> Any:
        element = key.element
        if key.table is not None:
            value = self._read_table(key.table, raw, place)
        elif key.pair is not None:
            value = self._read_pairs(key.pair, raw, place)
        elif element is None:
            value = self._read_scalar(key, raw, place)
        elif element.table is not None:
            value = self._read_tables(element.table, raw, place)
        elif isinstance(raw, list):
            items = [
                self._read_value(element, item, f"{place}[{index}]")
                for index, item in enumerate(raw)
            ]
            is_refused = any(item is _REFUSED for item in items)
            value = _REFUSED if is_refused else tuple(items)
        else:
            value = self._refuse(place, "an array", raw, key)
        return self._apply_rules(key, value, raw, place)

    def _apply_rules(self, key: Key, value: Any, raw: object, place: str) -> Any:
        for rule in key.rules:
            if value is _REFUSED:
                break
            try:
                value = rule.parse(value)
            except ValueError:
                value = self._refuse(place, rule.allowed, raw, key)
        return value

    def _read_scalar(self, key: Key, raw: object, place: str) -> Any:
        wanted = key.type if key.type in (bool, int, float) else str
        # To Python a bool is an int; to the writer of the file it is not.
        is_right = isinstance(raw, wanted) and (wanted is bool or not isinstance(raw, bool))
        if wanted is float and isinstance(raw, int | float) and not isinstance(raw, bool):
            is_right = abs(raw) <= sys.float_info.max  # Neither inf and nan nor longer integers.
        if not is_right:
            return self._refuse(place, key.expected, raw, key)
        if wanted is str:
            return self._expand(str(raw), place)
        return wanted(raw)

    def _expand(self, text: str, place: str) -> Any:
        """Replace every `${NAME}` by the environment's value, once: values are not expanded."""
        names = _ENVIRONMENT.findall(text)
        if "" in names:
            return self._note(place, "must name a variable as in ${NAME} after each ${")
        unset = sorted({name for name in names if name not in self._environ})
        if unset:
            return self._note(place, f"not set in the environment: {', '.join(unset)}")
        return _ENVIRONMENT.sub(lambda match: self._environ[match[1]], text)

    def _read_table(self, table: Any, raw: object, place: str) -> Any:
        if not isinstance(raw, dict):
            return self._note(place, f"must be a table, [{place}], got {show(raw)}")
        problems_before = len(self.problems)
        values = self.read_keys(keys_of(table), raw, place)
        if len(self.problems) > problems_before:
            return _REFUSED
        return self.build(table, values, place)

    def _read_tables(self, table: Any, raw: object, place: str) -> Any:
        if not isinstance(raw, list):
            return self._note(place, f"must be an array of tables, [[{place}]], got {show(raw)}")
        keys = keys_of(table)
        first_places: dict[tuple[str, object], str] = {}
        problems_before = len(self.problems)
        entries: list[tuple[dict[str, Any], str]] = []
        for index, item in enumerate(raw):
            item_place = f"{place}[{index}]"
            if not isinstance(item, dict):
                self._note(item_place, f"must be a table, got {show(item)}")
                continue
            values = self.read_keys(keys, item, item_place)
            self._check_unique(keys, values, item_place, first_places)
            entries.append((values, item_place))
        if len(self.problems) > problems_before:
            return _REFUSED
        return tuple(self.build(table, values, item_place) for values, item_place in entries)

    def _check_unique(
        self,
        keys: tuple[Key, ...],
        values: dict[str, Any],
        place: str,
        first_places: dict[tuple[str, object], str],
    ) -> None:
        """Note what an earlier table of the array has taken already (`Mark.UNIQUE`)."""
        for key in keys:
            if Mark.UNIQUE in key.marks and key.name in values:
                value = values[key.name]
                first = first_places.setdefault((key.name, value), place)
                if first != place:
                    self._note(
                        join(place, key.name), f"must be unique, got {show(value)} as in {first}"
                    )

    def _read_pairs(self, pair: tuple[Key, Key], raw: object, place: str) -> Any:
        """Read a table with free names into pairs, in the order of the file."""
        if not isinstance(raw, dict):
            return self._note(place, f"must be a table, got {show(raw)}")
        name_key, value_key = pair
        pairs = []
        for name, raw_value in raw.items():
            pair_place = join(place, name)
            pairs.append(
                (
                    self._apply_rules(name_key, name, name, pair_place),
                    self._read_value(value_key, raw_value, pair_place),
                )
            )
        is_refused = any(part is _REFUSED for pair in pairs for part in pair)
        return _REFUSED if is_refused else tuple(pairs)
