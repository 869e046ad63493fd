"""The ladder of rooms and the learner's hour, worked out from the code: `python -m tests.ladder`.

A room's rank is one more than the highest rank of those that it imports, so the ladder is what the
imports say and not what somebody wishes (what is allowed stands in `test_architecture.py`). With
`--write` it is put between the markers in `atlas_pkg/README.md`; a test says when that is due.

The hour is the table of that page: which parts of which files are read. What it comes to in lines
and words is printed too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "atlas_pkg"
README = PACKAGE / "README.md"

LADDER = re.compile(r"(<!-- ladder:[^\n]*-->\n)(.*?)(<!-- end of the ladder -->\n)", re.DOTALL)
SUM = re.compile(r"[\d,]+ lines and [\d,]+ words")

_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_NAME = re.compile(r"`([\w.]+)`")


def rooms() -> dict[str, set[str]]:
    """Every room (a folder, or a module beside the folders) and the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if not room.startswith("__"):
            found.setdefault(room, set()).update(set(_imported(path)) - {room})
    return found


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            is_room = (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()
            if package == PACKAGE.name and room and is_room:
                yield room


def rank_rooms(imports: dict[str, set[str]]) -> dict[str, int]:
    """Rank the rooms: 0 for one that imports no other."""
    ranks: dict[str, int] = {}
    while len(ranks) < len(imports):
        ready = [
            room for room, others in imports.items() if room not in ranks and others <= ranks.keys()
        ]
        if not ready:
            raise ValueError(f"these import each other: {sorted(imports.keys() - ranks.keys())}")
        for room in ready:
            ranks[room] = max((ranks[other] + 1 for other in imports[room]), default=0)
    return ranks


def draw_ladder() -> str:
    """Draw the ladder, the highest rank first, each room with what it imports."""
    imports = rooms()
    ranks = rank_rooms(imports)
    ordered = sorted(imports, key=lambda room: (-ranks[room], room))
    lines = []
    for room in ordered:
        below = sorted(imports[room], key=lambda other: (-ranks[other], other))
        lines.append(f"{ranks[room]:2}  {room:<10}  {' '.join(below)}".rstrip())
    return "\n".join(lines) + "\n"


class Stop(NamedTuple):
    """One row of the learner's hour."""

    minutes: int
    files: list[Path]
    parts: list[str]  # names of definitions; empty: the whole of it
    question: str


def read_hour(page: str) -> list[Stop]:
    """Read the table of the hour from `atlas_pkg/README.md`."""
    section = page.partition("\n## The learner's hour\n")[2].partition("\n## ")[0]
    stops = []
    for row in (line for line in section.splitlines() if line.startswith("|")):
        minutes, place, parts, question = (cell.strip() for cell in row.strip("|").split("|"))
        if minutes.isdigit():
            files = [(PACKAGE / link).resolve() for link in _LINK.findall(place)]
            stops.append(Stop(int(minutes), files, _NAME.findall(parts), question))
    return stops


def measure_stop(stop: Stop) -> tuple[int, int]:
    """Count the lines and words that are to be read at a stop."""
    texts = []
    wanted = set(stop.parts)
    for path in stop.files:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".py" or not stop.parts:
            # Of the first page it is what stands above the picture's end.
            texts.append(text.partition("\n## What it can do")[0])
            continue
        lines = text.splitlines()
        tree = ast.parse(text)
        texts.append(ast.get_docstring(tree, clean=False) or "")
        for name, node in _definitions(tree):
            if name in wanted or name.rpartition(".")[2] in wanted:
                wanted -= {name, name.rpartition(".")[2]}
                texts.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    if wanted:
        raise ValueError(f"{stop.files}: there is no {', '.join(sorted(wanted))}")
    whole = "\n".join(texts)
    return len(whole.splitlines()), len(whole.split())


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name, node
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node


def measure_hour(page: str) -> tuple[int, int]:
    """Count what the whole hour has to read."""
    counts = [measure_stop(stop) for stop in read_hour(page)]
    return sum(lines for lines, _ in counts), sum(words for _, words in counts)


def write_page(page: str) -> str:
    """Put the present ladder, and the present size of the hour, into the page."""
    lines, words = measure_hour(page)
    page = LADDER.sub(lambda found: f"{found[1]}\n```text\n{draw_ladder()}```\n\n{found[3]}", page)
    return SUM.sub(f"{round(lines, -2):,} lines and {round(words, -2):,} words", page, count=1)


def main(arguments: list[str]) -> None:
    """Print the ladder, or write it where it is read."""
    page = README.read_text(encoding="utf-8")
    if arguments == ["--write"]:
        README.write_text(write_page(page), encoding="utf-8")
        return
    print(draw_ladder())
    for stop in read_hour(page):
        lines, words = measure_stop(stop)
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in stop.files)
        print(f"{stop.minutes:3} minutes, {lines:4} lines, {words:5} words: {names}")
    lines, words = measure_hour(page)
    print(f"the hour: {lines:,} lines and {words:,} words")


if __name__ == "__main__":
    main(sys.argv[1:])
