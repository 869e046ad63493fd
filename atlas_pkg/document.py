"""A TOML file read from disk: bytes, then a dictionary, or one sentence that says what is wrong.

A person who starts Atlas with the wrong path, on a directory, or on a file saved in another
encoding shall read what happened and not a traceback. So each way in which a file fails has its
own sentence here, beginning with the file's name as it was given, and with the line where there
is one.

Not done here: what the keys mean (`schema.py`, `config.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomli

from atlas_pkg.errors import ConfigError

# tomli tells the place in its message; only its newer versions have it as an attribute too.
_TOML_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


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
