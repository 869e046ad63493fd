"""Notice that the configuration file has changed, and hand its new bytes over once.

Any event on the way to the file (`control/watch.py`) starts a short timer that each further event
restarts, so a burst is looked at once, when it is over. A look compares where the path leads and
what the file holds with what was last seen; equal means that nothing happened, whatever the events
said. Behind the events stands a slow poll, for network file systems, moved directories and machines
out of inotify watches.

The bytes are handed over as they are: whether they make a configuration is for the receiver to
say. A file that is gone or unreadable is logged once, and what is in force stays in force.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import stat
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path

from atlas_pkg.control.watch import Watch, trace_path

log = logging.getLogger("atlas.reload")

_STOP_PATIENCE = 5.0  # a receiver that takes longer is left behind on its daemon thread


class _Signal(Enum):
    """What the watcher's thread can be told."""

    EVENT = "event"
    TRIGGER = "trigger"
    STOP = "stop"


class Burst:
    """When to look after a run of events: once all is quiet, but in time even if it never is."""

    def __init__(self, *, quiet: float, limit: float) -> None:
        self._quiet = quiet
        self._limit = max(quiet, limit)
        self._began: float | None = None
        self._latest = 0.0

    def note(self, now: float) -> None:
        """Take in one event."""
        if self._began is None:
            self._began = now
        self._latest = now

    def clear(self) -> None:
        """Forget the run: somebody has looked."""
        self._began = None

    def due(self) -> float | None:
        """Say when to look; None while no event is waiting for a look."""
        if self._began is None:
            return None
        return min(self._latest + self._quiet, self._began + self._limit)


def _read_regular(path: Path) -> bytes:
    """Read a file whole; a pipe is refused, since opening one may block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.read_bytes()


def _digest(paths: Sequence[Path]) -> list[tuple[Path, bytes]]:
    """Sum up what files hold; one that cannot be read counts as empty."""
    digests = []
    for path in paths:
        try:
            data = _read_regular(path)
        except OSError:
            data = b""
        digests.append((path, hashlib.sha256(data).digest()))
    return digests


def _stamp(path: Path) -> tuple[object, ...]:
    """Sum up what a file looks like from outside, for the poll to compare."""
    try:
        facts = path.stat()
    except OSError as error:
        return (path, error.errno)
    times = (facts.st_mtime_ns, facts.st_ctime_ns)
    return (path, facts.st_dev, facts.st_ino, facts.st_size, *times)


class ConfigWatcher:
    """Calls `on_change` with the file's bytes whenever path or content have changed.

    So it does when `files()` have, of which more may belong to the configuration. All calls come
    from one thread of the watcher's own, so never two at a time. `seen` is the content that is in
    force already. `start` it in the process that is to serve: threads do not survive a fork.
    """

    def __init__(
        self,
        path: Path,
        on_change: Callable[[bytes], None],
        *,
        seen: bytes,
        files: Callable[[], Sequence[Path]] = tuple,
        debounce: float = 0.2,
        poll_interval: float = 2.0,
    ) -> None:
        self._path = path.absolute()
        self._on_change = on_change
        self._poll_interval = poll_interval
        self._has_looked = threading.Event()  # since it was last asked for by hand
        self._signals: queue.SimpleQueue[_Signal] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="atlas-reload", daemon=True)
        # From here on only that thread looks at what follows.
        self._watch = Watch(lambda: self._signals.put(_Signal.EVENT))
        self._burst = Burst(quiet=debounce, limit=poll_interval)
        self._files = files
        self._seen = (trace_path(self._path)[0], hashlib.sha256(seen).digest())
        # Empty, so that the first look hands all over: they may have changed since they were read.
        self._seen_files: list[tuple[Path, bytes]] = []
        self._stamp: tuple[object, ...] = ()  # equals none: what changed since `seen` is found
        self._complaint = ""
        # Is there a reason for the present call of `on_change`: a change, or somebody who asked?
        # Only the first may lack one: what `files()` held when they were read before is unknown.
        self.has_reason = False

    def start(self) -> None:
        """Begin to watch. Returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the watching and wait for it; a call of `on_change` under way is finished first."""
        self._signals.put(_Signal.STOP)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_STOP_PATIENCE)

    def trigger(self) -> None:
        """Have the file handed over now, changed or not. Returns at once; thread-safe."""
        self._has_looked.clear()
        self._signals.put(_Signal.TRIGGER)

    def wait(self, timeout: float) -> None:
        """Wait until what was triggered is done, or time runs out. Blocks."""
        self._has_looked.wait(timeout)

    def _run(self) -> None:
        self._watch.open()
        next_poll = time.monotonic()
        while (signal := self._next_signal(next_poll)) is not _Signal.STOP:
            try:
                if time.monotonic() >= next_poll:
                    next_poll = time.monotonic() + self._poll_interval
                    self._poll()
                self._step(signal)
            except Exception:
                # A background thread: whatever broke, the next change must still be noticed.
                log.exception("%s: taking over the configuration failed", self._path)
        self._watch.close()

    def _next_signal(self, next_poll: float) -> _Signal | None:
        """Wait for what comes first: a signal, the poll's turn or the end of a burst."""
        due = self._burst.due()
        wake = next_poll if due is None else min(next_poll, due)
        try:
            return self._signals.get(timeout=max(0.0, wake - time.monotonic()))
        except queue.Empty:
            return None

    def _poll(self) -> None:
        """Look from outside only; what seems changed is read when the burst has ended."""
        if self._follow()[1] != self._stamp:
            self._burst.note(time.monotonic())

    def _follow(self) -> tuple[Path, tuple[object, ...]]:
        """Watch what matters now; returns where the path leads, and how all looks from outside."""
        traces = [trace_path(path) for path in (self._path, *self._files())]
        self._watch.follow({name for _, names in traces for name in names})
        return traces[0][0], tuple(_stamp(resolved) for resolved, _ in traces)

    def _step(self, signal: _Signal | None) -> None:
        """Act on one signal, or on the time that has passed."""
        now = time.monotonic()
        if signal is _Signal.EVENT:
            self._burst.note(now)
        due = self._burst.due()
        if signal is _Signal.TRIGGER or (due is not None and now >= due):
            self._burst.clear()
            try:
                self._look(is_manual=signal is _Signal.TRIGGER)
            finally:
                self._has_looked.set()

    def _look(self, *, is_manual: bool) -> None:
        """Read the file, and hand it over where it differs from what was last seen."""
        # Watches and stamp first: what changes while we read is then noticed as a new change.
        resolved, self._stamp = self._follow()
        try:
            data = _read_regular(resolved)
        except OSError as error:
            self._stamp = ()  # keep trying: out of descriptors, say, leaves no trace in a stamp
            self._report_missing(error.strerror or str(error), is_manual=is_manual)
            return
        if self._complaint:
            self._complaint = ""
            log.info("%s: can be read again", self._path)
        found, found_files = (resolved, hashlib.sha256(data).digest()), _digest(self._files())
        if (found, found_files) == (self._seen, self._seen_files) and not is_manual:
            log.debug("%s: looked at, unchanged", self._path)
            return
        self.has_reason = is_manual or found != self._seen or bool(self._seen_files)
        self._seen, self._seen_files = found, found_files
        self._on_change(data)

    def _report_missing(self, reason: str, *, is_manual: bool) -> None:
        """Say once per cause that the file cannot be read; whoever asked by hand hears it again."""
        if reason == self._complaint and not is_manual:
            return
        self._complaint = reason
        log.warning("%s: cannot be read (%s); what is in force stays", self._path, reason)
