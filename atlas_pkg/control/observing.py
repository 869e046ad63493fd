"""Who watches the exchanges of this process: the access log, the tallies, the list of errors.

With none of them configured nobody watches, and an exchange costs what it costs. The access log
follows the configuration while Atlas runs: `follow` opens, changes and closes it. A file that
cannot be opened is an error at the start, which `check_access_log` finds before anything serves;
later it is logged, and the file in use stays. `[admin]` needs a restart, so its two observers are
there from the start or never.

Not done here: making records (`serving/connection.py`) and what the observers do with them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from atlas_pkg.config import Config
from atlas_pkg.errors import StartError
from atlas_pkg.metrics import Tallies
from atlas_pkg.record import Observer
from atlas_pkg.serving.accesslog import AccessLog, open_log
from atlas_pkg.serving.journal import Journal

log = logging.getLogger("atlas")


def check_access_log(config: Config) -> None:
    """Raise `StartError` where the access log cannot be opened. The file is made if need be."""
    if config.access_log is not None:
        os.close(open_log(config.access_log))


class Observing:
    """The observers of one process. Its methods may be called by any thread."""

    def __init__(self, watch: Callable[[Sequence[Observer]], None], *, is_counting: bool) -> None:
        """`watch` is told who watches, each time that it changes."""
        self.tallies = Tallies()
        self.journal = Journal()
        self._watch = watch
        self._counters: tuple[Observer, ...] = ()
        if is_counting:
            self._counters = (self.tallies.note, self.journal.observe)
        # Guards what follows. A file is opened under it, against our rule: nobody but a reload and
        # a SIGHUP ever want it, and two that open the same log must come one after the other.
        self._lock = threading.Lock()
        self._access_log: AccessLog | None = None
        self._target: tuple[str, str] | None = None  # path and format in use

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
            self._watch(())
            if self._access_log is not None:
                self._access_log.close()
                self._access_log = None

    def _turn_to(self, config: Config) -> None:
        """Open, change or close the access log; raises `StartError`. Caller holds the lock."""
        wanted, current = _target(config), self._access_log
        if wanted is None:
            self._watch(self._counters)  # first, so that nothing comes to a closed log
            if current is not None:
                current.close()
            self._access_log = None
        elif current is None:
            self._access_log = AccessLog(*wanted)
            self._watch((*self._counters, self._access_log.note))
        elif wanted != self._target:
            current.switch(*wanted)
        self._target = wanted


def _target(config: Config) -> tuple[str, str] | None:
    """Where the access log goes and how it is written; None without one."""
    path = config.access_log
    return None if path is None else (path, config.log.format)
