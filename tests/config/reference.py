"""Every key of the configuration for users, written from the dataclasses.

`python -m tests.config.reference` writes it where users read it: `examples/reference/atlas.toml`. A
test says when that is to be done again.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_pkg.config.model import Config
from atlas_pkg.config.schema import Key, Mark, join, keys_of, show

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "reference" / "atlas.toml"

EXAMPLE_HEAD = """\
# Every key of Atlas's configuration with its default.
# Written by `python -m tests.config.reference`, do not edit by hand.
#
# live: taken over while Atlas runs; restart: needs one. What has a # directly before it is off, or
# empty, until it is there: take the # away from the table's name and from the keys to change.
"""

# Where it names the strategies.
STRATEGIES_LINE = re.compile(r"(?:^# .*\n)+(?=strategy = )", re.MULTILINE)

# What stands in the example for a key that has no default, or none that may be written: the port of
# an upstream that is reached through a socket file.
REQUIRED = {
    "name": '"backend1"',
    "address": '"10.0.0.1"',
    "port": "3000",
    "cert": '"cert.pem"',
    "key": '"key.pem"',
    "names": '["example.com"]',
    "from": '["10.0.0.0/8"]',
}

# What stands there instead of a default with which the table would be none, by table and key.
INSTEAD = {("routes", "group"): '"default"'}


@dataclass(frozen=True)
class Entry:
    """One key of the reference: its dotted place, and whether a reload takes it over."""

    place: str
    key: Key
    is_live: bool

    @property
    def default(self) -> str:
        """The default as it is written in TOML."""
        if self.key.is_required:
            return "required"
        if self.key.pair is not None:
            return "{}"
        return "[]" if self.key.element is not None else show(self.key.default)


def entries(table: Any = Config, where: str = "", *, is_live: bool = True) -> list[Entry]:
    """List every key of the dataclass `table` and of the tables in it, in their order.

    `where` is put before the names; `is_live` says whether the table around it is.
    """
    found: list[Entry] = []
    for key in keys_of(table):
        place, live = join(where, key.name), is_live and Mark.RESTART not in key.marks
        inner = key.table or (key.element and key.element.table)
        if key.pair and key.pair[1].table:
            inner, place = key.pair[1].table, join(place, "NAME")
        if inner is not None:
            found += entries(inner, place, is_live=live)
        else:
            found.append(Entry(place, key, live))
    return found


def read_strategies() -> set[str]:
    """Read which strategies the example offers."""
    found = STRATEGIES_LINE.search(EXAMPLE.read_text(encoding="utf-8"))
    assert found is not None
    return set(re.findall(r'"(\w+)"', found[0]))


def example_file() -> str:
    """Write the reference as a configuration that is all defaults."""
    tables = (_example_table(key) for key in keys_of(Config))
    return "\n".join([EXAMPLE_HEAD, *tables])


def _example_table(key: Key, around: str = "") -> str:
    """Write one table; with a # before each line where it is off, or empty, by default.

    `around` is the name of the table that it belongs to.
    """
    place = join(around, key.name)
    element = key.element
    if key.pair:
        # As the only table of free names it has the keys of another one.
        inner = next(other.name for other in keys_of(Config) if other.table is key.pair[1].table)
        return f"# [{key.name}.NAME] has the keys of [{inner}] and is laid over it.\n"
    table = key.table or (element and element.table)
    purpose = (inspect.getdoc(table) or "").splitlines()[0].partition(": ")[2]
    mark = "" if isinstance(key.default, table) else "#"
    lines = [f"# {purpose[:1].upper()}{purpose[1:]}"]
    lines.append(f"{mark}[[{place}]]" if element else f"{mark}[{place}]")
    for entry in entries(table, is_live=Mark.RESTART not in key.marks):
        if "." not in entry.place:
            lines += _example_key(entry, mark, INSTEAD.get((place, entry.place), ""))
    own = {inner.table for inner in keys_of(Config) if inner.table}
    within = {
        inner: inner.table or (inner.element and inner.element.table) for inner in keys_of(table)
    }
    lines += [
        f"# [{place}.{inner.name}] has the keys of [{inner.name}] and is laid over it."
        for inner, inner_table in within.items()
        if inner_table in own
    ]
    others = [
        _example_table(inner, place)
        for inner, inner_table in within.items()
        if inner_table and inner_table not in own
    ]
    return "\n".join(["\n".join(lines) + "\n", *others])


def _example_key(entry: Entry, mark: str, instead: str) -> list[str]:
    """Write one key, with what is to be said of it behind it or, where that is long, above."""
    key = entry.key
    is_choice = key.expected.startswith('"')
    notes = [key.note] if key.note else []
    if is_choice or not (notes or key.unit or key.type is bool):
        notes.append(key.expected)
    facts = [key.unit] if key.unit else []
    facts += [f"or {alias}" for alias in key.aliases]
    facts.append("live" if entry.is_live else "restart")
    comment = f"{'; '.join(notes)} ({', '.join(facts)})".lstrip()
    is_absent = key.is_required or (entry.place == "port" and not key.default)
    default = instead or (REQUIRED[entry.place] if is_absent else entry.default)
    line = f"{mark}{entry.place} = {default}"
    if len(line) <= 27 and len(comment) <= 70:
        return [f"{line:27} # {comment}"]
    return [*textwrap.wrap(comment, 98, initial_indent="# ", subsequent_indent="# "), line]


def main() -> None:
    """Write the reference anew."""
    EXAMPLE.parent.mkdir(exist_ok=True)
    EXAMPLE.write_text(example_file(), encoding="utf-8")


if __name__ == "__main__":
    main()
