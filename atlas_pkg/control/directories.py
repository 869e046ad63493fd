"""Watch the directories that decide where a path leads and what is found there.

A watched *file* goes silent: editors rename a new file over it, and a Kubernetes volume swaps a
symlink beside it without touching the name at all. So the directories are watched: those that
hold a link on the way from the path to the file, and the one that holds the file. An event says
only that something may have changed; `control/reload.py` looks whether it has. Directories come
and go too, so the set is given anew with every look, and a watch on a directory that has been
replaced is made anew. Where the system grants no watch, that is logged once and nobody fails:
the poll in `control/reload.py` does without.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

log = logging.getLogger("atlas.reload")

# What our own reading causes. Taken as a change, it would keep us reading for ever.
_READING = frozenset({"opened", "closed_no_write"})

# More links than that on one path are a loop; Linux gives up at the same number.
_MOST_LINKS = 40

# How the system refuses: out of inotify instances or watches, out of threads.
_REFUSALS = (OSError, RuntimeError)


def trace_path(path: Path) -> tuple[Path, set[Path]]:
    """Follow absolute `path` through its links, and name the directories that could redirect it.

    Returns where it ends, whether or not anything is there, and each directory that holds a link
    on the way or the end itself. None of these is reached through a link, and each exists: for
    a missing one stands the nearest directory above it, where it would appear.
    """
    todo = list(reversed(path.parts[1:]))
    here = Path(path.anchor)
    directories = set()
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
        directories.add(here)
        if target.is_absolute():
            here = Path(target.anchor)
        todo.extend(part for part in reversed(target.parts) if part != target.anchor)
    directories.add(here.parent)
    return here, {_nearest_directory(directory) for directory in directories}


def _nearest_directory(path: Path) -> Path:
    """Find the lowest directory that exists on the way down to `path`."""
    while path != path.parent and not path.is_dir():
        path = path.parent
    return path


class _Ear(FileSystemEventHandler):
    """Passes events on to the watcher's thread. Runs on watchdog's thread and never blocks it."""

    def __init__(self, on_event: Callable[[], None]) -> None:
        self._on_event = on_event

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Let every event count that something other than reading has caused."""
        if event.event_type not in _READING:
            self._on_event()


class DirectoryWatch:
    """The watchdog observer, kept on the directories that matter now. For one thread only."""

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

    def follow(self, directories: set[Path]) -> None:
        """Watch exactly `directories`, making anew the watch of any that has been replaced."""
        if self._observer is None:
            return
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
                watch = self._observer.schedule(self._ear, str(directory))
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
