"""The text of a configuration file: read, decoded, parsed as TOML, and which line says what.

A person who starts Atlas with the wrong path, on a directory, or on a file saved in another
encoding shall read what happened and not a traceback: each has its own sentence. tomli tells the
line of a mistake in the syntax and no others, so `find_lines` works out what stands where.

Not done here: what the keys are and may be (`loader.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli

from atlas_pkg.config.model import Config
from atlas_pkg.config.schema import join, keys_of
from atlas_pkg.errors import ConfigError

# tomli tells the place in its message; only its newer versions have it as an attribute too.
_TOML_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_TOML_TUPLE = re.compile(r"\(((?:'[^']*',? ?)+)\)")
_CLOSING = re.compile(r"[]}]|\"\"\"|'''")
_HEADER = re.compile(r"\s*\[+\s*([A-Za-z0-9_-]+)\s*\]")


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


def decode(data: bytes, path: Path) -> str:
    """Return the text in a file's bytes, which have to be UTF-8. Raises `ConfigError`."""
    try:
        # "-sig": some editors begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise ConfigError([f"{path}:{line}: not UTF-8 (byte 0x{byte:02x})"]) from None


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Return what a file's text says, as a dictionary. Raises `ConfigError`."""
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError([f"{path}:{_explain_syntax(str(error), text)}"]) from None
    except (ValueError, RecursionError) as error:
        # Beyond TOML: Python takes no integer of thousands of digits and no endless nesting.
        raise ConfigError([f"{path}: not readable as TOML: {error}"]) from None
    if not document:
        raise ConfigError([f"{path}: is empty (blanks and comments do not count)"])
    return document


def _explain_syntax(message: str, text: str) -> str:
    """Say in our words what tomli found: line, mistake, and what to write where we know it."""
    message = _TOML_TUPLE.sub(lambda names: ".".join(re.findall("'(.*?)'", names[1])), message)
    match = _TOML_PLACE.fullmatch(message)
    if match is None:
        return f" not TOML: {message}"
    what, line, column = match.groups()
    if line is None:
        last_line = text.rstrip().count("\n") + 1
        return f"{last_line}: not TOML: {what} at the end of the file"
    lines = text.split("\n")
    header = _HEADER.match(lines[int(line) - 1])
    arrays = {key.name for key in keys_of(Config) if key.element and key.element.table}
    if header and header[1] in arrays:
        begins = re.compile(rf"\s*\[+\s*{header[1]}\s*([].])")
        number, first = next(
            (number, match) for number, match in enumerate(map(begins.match, lines), 1) if match
        )
        if first[1] == ".":
            return f"{number}: not TOML: stands before the [[{header[1]}]] that it is part of"
        # Nearly always this: [upstreams] was written, and nothing may be added to a plain table.
        return f"{line}: not TOML: {what}; {begin_each(header[1])}"
    return f"{line}: not TOML: {what} at column {column}"


def begin_each(name: str) -> str:
    """Say how the tables of an array are written."""
    return f"begin each of them with [[{name}]], in double brackets"


def find_lines(text: str) -> dict[str, int]:
    """Map every place of a valid TOML document to the line that says it.

    tomli does not tell. But a statement of TOML ends with a line, and no beginning of one that
    goes over several lines is valid by itself: so lines are gathered until they are valid alone.

    >>> find_lines('[[a]]\\nb = [\\n 1,\\n]\\n[a.c]\\nd.e = 2')
    {'a': 1, 'a[0]': 1, 'a[0].b': 2, 'a[0].b[0]': 2, 'a[0].c': 5, 'a[0].c.d': 6, 'a[0].c.d.e': 6}
    """
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}  # how many tables an array of them has so far
    table, statement, first = "", "", 1
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        if number > first and not _CLOSING.search(line):
            continue  # only looked at, since parsing a long array once per line takes its time
        try:
            parsed = tomli.loads(statement)
        except tomli.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            table = ""
            for table in _enter(parsed, counts):
                lines.setdefault(table, first)
        else:
            for place in _places_in(parsed, table):
                lines.setdefault(place, first)
        statement, first = "", number + 1
    return lines


def _enter(header: Any, counts: dict[str, int]) -> Iterator[str]:
    """Yield the place of each table that a header alone, like `[a.b]`, leads through."""
    place = ""
    while isinstance(header, dict) and header:
        ((name, header),) = header.items()
        place = join(place, name)
        if isinstance(header, list):
            counts[place] = counts.get(place, 0) + 1
            yield place
        if place in counts:
            place = f"{place}[{counts[place] - 1}]"
        yield place


def _places_in(value: Any, where: str) -> Iterator[str]:
    """Yield the place of everything inside `value`, which is at `where`."""
    inner = value.items() if isinstance(value, dict) else ()
    named = [(join(where, name), item) for name, item in inner]
    if isinstance(value, list):
        named = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    for place, item in named:
        yield place
        yield from _places_in(item, place)


def line_of(place: str, lines: Mapping[str, int]) -> str:
    """Return the line of `place`, or of what it is missing from, with a colon behind it."""
    while place and place not in lines:
        place = place[: max(place.rfind("."), place.rfind("["), 0)]
    return f"{lines[place]}:" if place else ""
