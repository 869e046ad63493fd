"""The pages of `[error_pages]`, which are read with the file that names their folder.

They are in memory before anybody needs one, so that an answer to an error never waits for a disk. A
file that cannot be used is told, and the next less exact one is used in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 64 * 1024

_NAME = re.compile(r"[45](?:[0-9]{2}|xx)\.html")


def list_pages(folder: Path) -> list[Path]:
    """The files of a folder that are named as pages are. Raises `OSError`."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def read_pages(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Read the pages of a folder, by their names; and say what is wrong with it. Blocks."""
    try:
        paths = list_pages(folder)
    except OSError as error:
        return {}, [f"error_pages.folder: {folder}: {error.strerror}"]
    pages, complaints = {}, []
    for path in paths:
        try:
            pages[path.name] = _read_page(path)
        except ValueError as error:
            complaints.append(f"error page {path}: not used, {error}")
    if not paths:
        complaints.append(f"error_pages.folder: {folder}: no page such as 503.html or 5xx.html")
    return pages, complaints


def _read_page(path: Path) -> bytes:
    """Read one page; raises `ValueError` with the reason why it cannot be used."""
    try:
        with path.open("rb") as file:
            page = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror) from None
    if len(page) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    try:
        page.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    return page


def names_for(status: int) -> Iterator[str]:
    """The names of the pages for a status, the most exact one first."""
    yield f"{status}.html"
    yield f"{status // 100}xx.html"
