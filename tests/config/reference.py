"""Every key of the configuration for users, written from the dataclasses.

`python -m tests.config.reference` writes it where users read it: the table in the README. Tests say
when that is to be done again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_pkg.config.model import Config
from atlas_pkg.config.schema import Key, Mark, join, keys_of, show

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"

REFERENCE = re.compile(
    r"(<!-- reference:[^\n]*-->\n)(.*?)(<!-- end of the reference -->\n)", re.DOTALL
)


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
        if inner is not None:
            found += entries(inner, place, is_live=live)
        else:
            found.append(Entry(place, key, live))
    return found


def markdown_table(found: list[Entry]) -> str:
    """Write the reference as a Markdown table."""
    lines = ["| key | default | allowed | change | |", "| --- | --- | --- | --- | --- |"]
    for entry in found:
        change = "live" if entry.is_live else "restart"
        key = entry.key
        cells = (f"`{entry.place}`", f"`{entry.default}`", key.expected, change, key.note)
        escaped = (cell.replace("|", "\\|") for cell in cells)
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


def write_table(readme: str) -> str:
    """Put the present table in place of the one in `readme`."""
    table = markdown_table(entries())
    return REFERENCE.sub(lambda found: f"{found[1]}\n{table}\n{found[3]}", readme)


def main() -> None:
    """Write the reference anew, wherever it stands."""
    README.write_text(write_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
