"""Who watches the exchanges of this process: access log, counters, list of errors, explanations.

With none of them configured nobody watches, and an exchange costs what it costs. The access log
follows the configuration while Atlas runs: `follow` opens, changes and closes it. A file that
cannot be opened is an error at the start, which `check_access_log` finds before anything serves;
later it is logged, and the file in use stays. `[admin]` needs a restart, so its observers are there
from the start or never, and so is the writer that `--explain` needs.

Not done here: making records (`serving/connection.py`) and what the observers do with them.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from atlas_pkg.config.model import Config
from atlas_pkg.errors import StartError
from atlas_pkg.observing.access_log import EXPLAINED, AccessLog, open_log
from atlas_pkg.observing.event_log import Errors
from atlas_pkg.observing.metrics import Counters
from atlas_pkg.observing.observers import A_FEW, ALL, Observers
from atlas_pkg.observing.record import Observer, Record
from atlas_pkg.observing.tracer import Asking, Tracer

log = logging.getLogger("atlas")


def check_access_log(config: Config, *, may_create: bool = True) -> None:
    """Raise `StartError` where the access log cannot be opened.

    The file is made if need be. Without `may_create` it is only looked whether that could be done.
    """
    path = config.access_log
    if path is None:
        return
    if may_create or path == "-" or Path(path).exists():
        os.close(open_log(path))
        return
    folder = Path(path).parent
    if not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EACCES if folder.is_dir() else errno.ENOENT
        raise StartError(f"log.access: cannot open {path}: {os.strerror(code)}")


class Observing:
    """The observers of one process. Its methods may be called by any thread."""

    def __init__(self, observers: Observers, *, is_counting: bool, explain: int = 0) -> None:
        """Have `observers` told, as far as the configuration asks for them.

        One in `explain` exchanges is explained on standard output; 0 = none.
        """
        self.counters = Counters()
        self.errors = Errors()
        self.tracer = Tracer(explain)
        self._observers = observers
        self._is_counting = is_counting
        self._may_explain = is_counting or explain > 0
        self._always: tuple[Observer, ...] = ()
        if is_counting:
            self._always = (self.counters.note, self.errors.note, self.tracer.note)
        self._terminal: AccessLog | None = None
        if explain:
            self._terminal = AccessLog("-", EXPLAINED, what="explanations")
            self._always += (self._print,)
        # Guards what follows. A file is opened under it, against our rule: nobody but a reload and
        # a SIGHUP ever want it, and two that open the same log must come one after the other.
        self._lock = threading.Lock()
        self._access_log: AccessLog | None = None
        self._target: tuple[str, str] | None = None  # path and format in use

    def ask(self, asking: Asking) -> None:
        """Change which exchanges are explained."""
        self.tracer.ask(asking)
        self._observers.refresh()

    def start(self, config: Config) -> None:
        """Begin to watch; raises `StartError` where the access log cannot be opened."""
        with self._lock:
            self._turn_to(config)

    def follow(self, config: Config, *, reopen: bool = False) -> None:
        """Do as a new configuration says, or log why that cannot be done.

        `reopen` opens the file anew also where nothing has changed: logrotate may have moved it.
        """
        with self._lock:
            if reopen and self._access_log is not None and self._target == _target(config):
                self._access_log.reopen()
                return
            try:
                self._turn_to(config)
            except StartError as error:
                log.error("%s; the access log stays as it was", error)

    def close(self) -> None:
        """Write what still waits and end. Blocks for some seconds at most."""
        with self._lock:
            self._observers.watch((), None, timed=0)
            if self._access_log is not None:
                self._access_log.close()
                self._access_log = None
            if self._terminal is not None:
                self._terminal.close()

    def _turn_to(self, config: Config) -> None:
        """Open, change or close the access log; raises `StartError`. Caller holds the lock."""
        self._observers.publish()  # what has ended belongs to the log as it was
        wanted, leaving = _target(config), None
        if wanted is None:
            leaving, self._access_log = self._access_log, None
        elif self._access_log is None:
            self._access_log = AccessLog(*wanted)
        elif wanted != self._target:
            self._access_log.switch(*wanted)
        self._target = wanted
        self._watch()
        if leaving is not None:
            leaving.close()  # last, so that nothing comes to a closed log

    def _watch(self) -> None:
        """Have the observers that there are now told of exchanges. Caller holds the lock."""
        observers, timed = self._always, A_FEW if self._is_counting else 0
        if self._access_log is not None:
            observers = (*observers, self._access_log.note)
            timed = ALL if self._access_log.shows_times else timed
        self._observers.watch(observers, self.tracer if self._may_explain else None, timed=timed)

    def _print(self, records: Sequence[Record]) -> None:
        """Have explained exchanges shown on standard output; an `Observer`."""
        explained = [record for record in records if record.choices is not None]
        if self._terminal is not None and explained:
            self._terminal.note(explained)


def _target(config: Config) -> tuple[str, str] | None:
    """Where the access log goes and how it is written; None without one."""
    path = config.access_log
    return None if path is None else (path, config.log.format)
