"""Watch the names that decide where a path leads and what is found there.

A watched *file* goes silent: editors rename a new file over it, and a Kubernetes volume swaps a
symlink beside it without touching the name at all. So directories are watched: those that hold a
link on the way from the path to the file, and the one that holds the file. Only events on these
links and on the file are heeded: others live beside them, such as an access log that is written
with every request. An event says only that something may have changed; `control/reload.py` looks
whether it has. Directories come and go too, so the names are given anew with every look, and a
watch on a directory that has been replaced is made anew. Where the system grants no watch, that is
logged once and nobody fails: the poll in `control/reload.py` does without.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

log = logging.getLogger("atlas.reload")

# What the kernel is asked for. Not that a file was opened or read: our own reading would keep us
# reading for ever, and where a busy server's files live beside the configuration, hearing of each
# takes more CPU time than serving it.
_CHANGES: list[type[FileSystemEvent]] = [
    *(FileCreatedEvent, FileModifiedEvent, FileClosedEvent, FileMovedEvent, FileDeletedEvent),
    *(DirCreatedEvent, DirMovedEvent, DirDeletedEvent),
]

_LEAVING = frozenset({"deleted", "moved"})

# More links than that on one path are a loop; Linux gives up at the same number.
_MOST_LINKS = 40

# How the system refuses: out of inotify instances or watches, out of threads.
_REFUSALS = (OSError, RuntimeError)


def trace_path(path: Path) -> tuple[Path, set[Path]]:
    """Follow absolute `path` through its links, and name all on the way that could redirect it.

    Returns where it ends, whether or not anything is there, and the names to watch: each link on
    the way, and the end itself. Their own paths lead through no link. Where the directory of one is
    missing, the name is that of the first directory on its path that is: that would appear first.
    """
    todo = list(reversed(path.parts[1:]))
    here = Path(path.anchor)
    names = set()
    links = 0
    while todo and links <= _MOST_LINKS:
        name = todo.pop()
        if name == "..":
            here = here.parent  # exact, since `here` never contains a link
            continue
        try:
            target = Path((here / name).readlink())
        except OSError:  # not a link, or not there at all
            here = here / name
            continue
        links += 1
        names.add(here / name)
        if target.is_absolute():
            here = Path(target.anchor)
        todo.extend(part for part in reversed(target.parts) if part != target.anchor)
    names.add(here)
    return here, {_uppermost_missing(path) for path in names}


def _uppermost_missing(path: Path) -> Path:
    """Find what would have to appear first for `path` to appear; itself if its directory exists."""
    while path.parent != path and not path.parent.is_dir():
        path = path.parent
    return path


class _Ear(FileSystemEventHandler):
    """Passes on what happens to some paths. Runs on watchdog's thread and never blocks it."""

    def __init__(self, on_event: Callable[[], None]) -> None:
        self._on_event = on_event
        self.heeded: frozenset[str] = frozenset()
        self.directories: frozenset[str] = frozenset()  # heeded too, when they leave

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Pass on an event that is about one of our paths."""
        paths = {os.fsdecode(event.src_path), os.fsdecode(event.dest_path)}
        # A directory is "modified" by everything that comes and goes in it.
        has_left = event.event_type in _LEAVING and not self.directories.isdisjoint(paths)
        if has_left or not self.heeded.isdisjoint(paths):
            self._on_event()


class Watch:
    """The watchdog observer, kept on the paths that matter now. For one thread only."""

    def __init__(self, on_event: Callable[[], None]) -> None:
        self._ear = _Ear(on_event)
        self._observer: BaseObserver | None = None
        # Directory -> its watch and the device and inode it was made for: another directory can
        # have come into the same place since.
        self._watches: dict[Path, tuple[ObservedWatch, tuple[int, int]]] = {}
        self._complained: set[str] = set()

    def open(self) -> None:
        """Start watchdog's threads; where the system refuses, the poll must do alone."""
        try:
            observer = Observer()
            observer.name = "atlas-watch"
            observer.start()
        except _REFUSALS as error:
            self._complain("cannot watch for changes", error)
            return
        self._observer = observer

    def follow(self, paths: set[Path]) -> None:
        """Heed exactly `paths`; makes anew the watch of a directory that has been replaced."""
        if self._observer is None:
            return
        directories = {path.parent for path in paths}
        self._ear.heeded = frozenset(map(str, paths))
        self._ear.directories = frozenset(map(str, directories))
        # A watch ends with its directory, and the next directory may get the same inode number.
        alive = {e.watch for e in self._observer.emitters if e.should_keep_running()}
        wanted = {directory: _identity(directory) for directory in directories}
        for directory, (watch, identity) in list(self._watches.items()):
            if wanted.get(directory) != identity or watch not in alive:
                del self._watches[directory]
                with contextlib.suppress(OSError):  # the kernel has dropped it already
                    self._observer.unschedule(watch)
        for directory, now_there in wanted.items():
            if now_there is None or directory in self._watches:
                continue
            try:
                watch = self._observer.schedule(self._ear, str(directory), event_filter=_CHANGES)
            except _REFUSALS as error:
                self._complain(f"{directory}: cannot be watched", error)
                continue
            self._watches[directory] = (watch, now_there)

    def close(self) -> None:
        """Stop watchdog's threads and wait for their end."""
        if self._observer is None:
            return
        self._observer.stop()
        self._observer.join()
        self._observer = None

    def _complain(self, what: str, error: Exception) -> None:
        if what not in self._complained:
            self._complained.add(what)
            log.warning("%s (%s); the configuration is polled instead", what, error)


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        facts = directory.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
