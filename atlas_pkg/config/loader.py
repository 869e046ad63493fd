"""From a file to a `Config`, or to a `ConfigError` with every mistake and its line.

`document.py` makes a dictionary of the file. Here the dictionary is compared, in the order of the
file, with the description that the dataclasses give (`schema.py`). A refused value is noted with
its place and its value, and the walk goes on, so that one run shows all mistakes of a file. The
walk knows nothing about load balancing: a new table is a new dataclass, and no line here changes.

`${NAME}` in a string is taken from the environment before the rules see the string; messages
show what the file says, not what the environment does, since that is where secrets are.

Not done here: what the keys mean (`model.py`), the rules themselves (`rules.py`). Whatever concerns
two keys at once the dataclass says itself, in a method `clashes`.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from atlas_pkg.config.document import (
    begin_each,
    decode,
    find_lines,
    line_of,
    parse_toml,
    read_document,
)
from atlas_pkg.config.model import Config
from atlas_pkg.config.pages import read_pages
from atlas_pkg.config.rules import SOCKET_FILE
from atlas_pkg.config.schema import Advice, Key, Mark, either, join, keys_of, show
from atlas_pkg.errors import ConfigError

T = TypeVar("T")

# What stands for a value that was refused: its problem is noted, nothing is built from it.
_REFUSED: Any = object()

_ENVIRONMENT = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")


class Problem(NamedTuple):
    """One mistake: the dotted place of the key, and what is wrong with it."""

    place: str
    sentence: str


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check the file `path`.

    `environ` is what `${NAME}` is taken from, by default the process's own environment. Raises
    `ConfigError` with all problems, each beginning with the file's name. Blocks on the disk.
    """
    return parse_config(read_document(path), path, environ)


def parse_config(data: bytes, path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Check a file's bytes, read already; otherwise like `load_config`."""
    text = decode(data, path)
    document = parse_toml(text, path)
    reader = Reader(Config, os.environ if environ is None else environ)
    config = reader.read(document, given={"path": path})
    if config is None:
        lines = find_lines(text)
        raise ConfigError(
            f"{path}:{line_of(place, lines)} {place}: {sentence}"
            for place, sentence in reader.problems
        )
    return _complete(config, document)


def _complete(config: Config, tables: Mapping[str, Any]) -> Config:
    """Give every upstream and every group what is in force for it, and make paths whole.

    `tables` is the file, which tells the keys that stand in their own tables. The pages for errors
    are read, too. Blocks on the disk.
    """
    upstreams = []
    for upstream, table in zip(config.upstreams, tables.get("upstreams", ()), strict=True):
        own, common = upstream.health_check, config.health_check
        if own is None:
            own = common
        elif common is not None:
            own = _lay(own, common, table["health_check"])
        address, tls, folder = upstream.address, upstream.tls, config.path.parent
        if upstream.socket_file:
            address = f"{SOCKET_FILE}{folder / upstream.socket_file}"
        if tls is not None:
            ca, cert, key = (name and str(folder.absolute() / name) for name in tls.files)
            tls = replace(tls, ca=ca, cert=cert, key=key)
        upstreams.append(replace(upstream, address=address, tls=tls, health_check=own))
    groups = [
        (name, _lay(own, config.routing, tables["groups"][name])) for name, own in config.groups
    ]
    config = replace(config, upstreams=tuple(upstreams), groups=tuple(groups))
    if config.page_folder is None:
        return config
    pages, complaints = read_pages(config.page_folder)
    error_pages = replace(
        config.error_pages, pages=tuple(pages.items()), complaints=tuple(complaints)
    )
    return replace(config, error_pages=error_pages)


def _lay(own: Any, common: Any, table: Mapping[str, Any]) -> Any:
    """Return `common` with the keys that `table` has; `own` is what was read from `table`."""
    said = [key.attribute for key in keys_of(own) if key.spellings & table.keys()]
    return replace(common, **{name: getattr(own, name) for name in said})


class Reader(Generic[T]):
    """Walks one dictionary and notes each problem with its place."""

    def __init__(self, table: type[T], environ: Mapping[str, str]) -> None:
        """`table` is the dataclass that describes the dictionary.

        `environ` is what `${NAME}` is taken from.
        """
        self.problems: list[Problem] = []
        self._table = table
        self._environ = environ

    def read(
        self, data: Mapping[str, object], given: Mapping[str, object] | None = None
    ) -> T | None:
        """Build the dataclass from `data`, which has the shapes that TOML can have.

        `given` fills the fields marked `Mark.GIVEN`. Returns None where there are `problems`.
        """
        keys = keys_of(self._table)
        values = self._read_keys(keys, data, "")
        built = None
        if all(key.name in values for key in keys if key.is_required):
            # A refused key counts as left out here: what clashes without it is told as well.
            built = self._build(self._table, {**values, **(given or {})}, "")
        return None if self.problems else built

    def _read_keys(
        self, keys: tuple[Key, ...], data: Mapping[str, object], where: str
    ) -> dict[str, Any]:
        """Return the accepted values by attribute; what was refused is missing from it."""
        by_spelling = {name: key for key in keys for name in key.spellings}
        values: dict[str, Any] = {}
        for name, raw in data.items():
            place = join(where, name)
            key = by_spelling.get(name)
            if key is None:
                self._refuse_unknown(place, name, raw, set(by_spelling))
            elif name != key.name and key.name in data:
                self._note(place, f'is another name for "{key.name}", which is there too')
            elif (value := self._read_value(key, raw, place)) is not _REFUSED:
                values[key.attribute] = value
        for key in keys:
            if key.is_required and not key.spellings & data.keys():
                self._note(join(where, key.name), f"missing, must be {key.expected}")
        return values

    def _build(self, table: type[Any], values: Mapping[str, Any], where: str) -> Any:
        """Build the dataclass `table`, noting which of its keys do not go together."""
        built = table(**values)
        if hasattr(built, "clashes"):
            for place, sentence in built.clashes():
                self._note(f"{where}.{place}" if where else place, sentence)
        return built

    def _note(self, place: str, sentence: str) -> Any:
        """Note a problem; returns what stands for the refused value."""
        self.problems.append(Problem(place, sentence))
        return _REFUSED

    def _refuse_unknown(self, place: str, name: str, raw: object, spellings: set[str]) -> None:
        first = raw[0] if isinstance(raw, list) and raw else raw
        is_table = isinstance(first, dict)
        homes = list(_headers_with(name, self._table, is_table=is_table))
        known = sorted(spellings)
        near = difflib.get_close_matches(name, known, n=1)
        if homes:
            meant = f"did you mean {either(homes)}?"
            belongs = f"it belongs to {either(homes)}"
            self._note(place, f"unknown key, {meant if is_table else belongs}")
        elif near:
            self._note(place, f'unknown key, did you mean "{near[0]}"?')
        else:
            self._note(place, f"unknown key, known here: {', '.join(known)}")

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
            value = self._refuse(key, "an array", raw, place)
        return self._apply_rules(key, value, raw, place)

    def _apply_rules(self, key: Key, value: Any, raw: object, place: str) -> Any:
        for rule in key.rules:
            if value is _REFUSED:
                break
            try:
                value = rule.parse(value)
            except Advice as advice:
                # It repeats the value, so not where the environment had a part in that.
                value = self._refuse(key, rule.allowed, raw, place, advice if raw == value else "")
            except ValueError:
                value = self._refuse(key, rule.allowed, raw, place)
        return value

    def _refuse(self, key: Key, allowed: str, raw: object, place: str, advice: object = "") -> Any:
        if Mark.SECRET in key.marks:
            return self._note(place, f"must be {allowed}")
        instead = f"; {advice}" if str(advice) else ""
        return self._note(place, f"must be {allowed}, got {show(raw)}{instead}")

    def _read_scalar(self, key: Key, raw: object, place: str) -> Any:
        wanted = key.type if key.type in (bool, int, float) else str
        # To Python a bool is an int; to the writer of the file it is not.
        is_right = isinstance(raw, wanted) and (wanted is bool or not isinstance(raw, bool))
        if wanted is float and isinstance(raw, int | float) and not isinstance(raw, bool):
            is_right = abs(raw) <= sys.float_info.max  # Neither inf and nan nor longer integers.
        if not is_right:
            return self._refuse(key, key.expected, raw, place)
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
        if isinstance(raw, list):
            return self._note(place, f"must be a table: write [{place}], in single brackets")
        if not isinstance(raw, dict):
            return self._note(place, f"must be a table, [{place}], got {show(raw)}")
        problems_before = len(self.problems)
        values = self._read_keys(keys_of(table), raw, place)
        if len(self.problems) > problems_before:
            return _REFUSED
        return self._build(table, values, place)

    def _read_tables(self, table: Any, raw: object, place: str) -> Any:
        if not isinstance(raw, list):
            return self._note(place, f"must be an array of tables: {begin_each(place)}")
        unique = next((key.name for key in keys_of(table) if Mark.UNIQUE in key.marks), "")
        first_places: dict[object, str] = {}
        built = [
            self._read_one_of(table, item, f"{place}[{index}]", unique, first_places)
            for index, item in enumerate(raw)
        ]
        is_refused = any(one is _REFUSED for one in built)
        return _REFUSED if is_refused else tuple(built)

    def _read_one_of(
        self, table: Any, raw: object, place: str, unique: str, first_places: dict[object, str]
    ) -> Any:
        """Read one table of an array. `first_places` says who had which value of `unique` first."""
        if not isinstance(raw, dict):
            return self._note(place, f"must be a table, got {show(raw)}")
        problems_before = len(self.problems)
        values = self._read_keys(keys_of(table), raw, place)
        built = _REFUSED
        if len(self.problems) == problems_before:
            built = self._build(table, values, place)
        if unique in values:
            # People know a server by its name and not by its number.
            suffix = f" ({unique} = {show(raw[unique])})"
            for index, problem in enumerate(self.problems[problems_before:], problems_before):
                self.problems[index] = problem._replace(sentence=problem.sentence + suffix)
            first = first_places.setdefault(values[unique], place)
            if first != place:
                got = show(values[unique])
                self._note(join(place, unique), f"must be unique, got {got} as in {first}")
        return built

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


def _headers_with(
    name: str, table: Any, header: str = "the top", place: str = "", *, is_table: bool
) -> Iterator[str]:
    """Yield the header of each table that has a key `name`; `is_table`: of each one called so.

    The search begins with the dataclass `table`, whose header and place are given.
    """
    for key in keys_of(table):
        inner = key.table or (key.element and key.element.table)
        inner_place = join(place, key.name)
        if key.pair and key.pair[1].table:
            inner, inner_place = key.pair[1].table, join(inner_place, "NAME")
        inner_header = f"[[{inner_place}]]" if key.element else f"[{inner_place}]"
        if name in key.spellings and is_table == bool(inner or key.pair):
            yield inner_header if is_table else header
        if inner:
            yield from _headers_with(name, inner, inner_header, inner_place, is_table=is_table)
