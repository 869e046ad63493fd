"""SIGUSR2: a new Atlas takes over from this one, and no client is refused.

The main process starts the program anew: the same arguments, so new code, a new Python and a new
file. The new one inherits what must not be lost: the listening sockets, the secret that signs
sticky cookies, and what an administrator has said. From then on both accept from the same sockets.
Once the new one serves it says so through a pipe, and this one drains. Where it ends without a
word, or says nothing for too long, this one goes on as if nothing had happened; why, the new one
has written into the log that both share.

What is inherited stands in a file without a name (`memfd_create`), whose number is in the
environment. No socket is ever closed by the one before the other holds it: the kernel would reset
the clients in its queue.

Process 1 of a container cannot hand over, since the container ends with it: it says so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from atlas_pkg.control.overrides import NO_OVERRIDES, Overrides, decode, encode
from atlas_pkg.control.systemd import take_sockets
from atlas_pkg.net.listener import Inherited

log = logging.getLogger("atlas.takeover")

VARIABLE = "ATLAS_TAKEOVER"

# How long a successor may take to start, first probes of its upstreams included.
PATIENCE = 60.0

# What each socket is for, with the socket.
Listeners = Sequence[tuple[str, socket.socket]]


class Heritage(NamedTuple):
    """What this process has from the one that it takes over from, if there is one."""

    listeners: Inherited
    secret: bytes  # signs sticky cookies where the configuration has none
    overrides: Overrides
    predecessor: int = 0  # its process id
    ready: int = -1  # the pipe through which it waits for us

    @property
    def is_takeover(self) -> bool:
        """Is there a predecessor?"""
        return self.predecessor > 0

    def tell_ready(self) -> bool:
        """Tell the predecessor that we serve. Is there one? It may have died since."""
        if self.is_takeover:
            with contextlib.suppress(OSError):
                os.write(self.ready, b"!")
            os.close(self.ready)
        return self.is_takeover


def read_heritage() -> Heritage:
    """Take over what a predecessor, or systemd, has left for this process. Raises `StartError`."""
    number = os.environ.pop(VARIABLE, "")
    if not number:
        return Heritage(Inherited(take_sockets()), os.urandom(32), NO_OVERRIDES)
    with open(int(number), "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        left = json.loads(file.read())
    sockets = [(use, socket.socket(fileno=fd)) for use, fd in left["listeners"]]
    for fd in [left["ready"], *(sock.fileno() for _, sock in sockets)]:
        os.set_inheritable(fd, False)
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, left["cpus"])  # it may hold itself to one of them
    return Heritage(
        Inherited(sockets),
        bytes.fromhex(left["secret"]),
        decode(left["overrides"]),
        left["pid"],
        left["ready"],
    )


class Takeover:
    """Starts a successor of this process, and sees how it fares. For the main thread."""

    def __init__(
        self, listeners: Listeners, secret: bytes, recall: Callable[[], Overrides]
    ) -> None:
        """`recall` tells what an administrator has said so far.

        Made before this process holds itself to one CPU, so that its successor may choose again.
        """
        self._listeners = listeners
        self._secret = secret
        self._recall = recall
        self._cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.successor = 0  # its process id, while there is one
        self._news = -1  # the pipe through which it says that it serves
        self._deadline = 0.0

    def begin(self) -> None:
        """Start a successor; returns at once. What prevents it is logged."""
        if self.successor:
            log.warning("SIGUSR2: process %d is starting already", self.successor)
        elif os.getpid() == 1:
            log.error(
                "SIGUSR2 is refused: a container ends with its process 1, which is this one. "
                "Start another container instead"
            )
        elif not hasattr(os, "memfd_create"):
            log.error("SIGUSR2 is refused: only on Linux another process can take over")
        else:
            try:
                self._start()
            except OSError as error:
                log.error("SIGUSR2: the program cannot be started anew: %s", error)

    def is_done(self) -> bool:
        """Does a successor serve? Does not block. To be asked now and then."""
        if not self.successor:
            return False
        with contextlib.suppress(BlockingIOError):
            if os.read(self._news, 1):
                log.info("process %d serves: this one ends", self.successor)
                return True
        how = self._find_failure()
        if how:
            log.error("process %d has not taken over (%s): all is as before", self.successor, how)
            os.close(self._news)
            self.successor = 0
        return False

    def abandon(self) -> None:
        """End a successor that does not serve yet, since this process is to end itself."""
        if self.successor:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.successor, signal.SIGTERM)

    def _start(self) -> None:
        """Start the program as this one was started. Raises `OSError`."""
        news, ready = os.pipe()
        os.set_blocking(news, False)
        try:
            self.successor = self._spawn(ready)
        except OSError:
            os.close(news)
            raise
        finally:
            os.close(ready)
        self._news, self._deadline = news, time.monotonic() + PATIENCE
        log.info("SIGUSR2: process %d starts, and takes over once it serves", self.successor)

    def _spawn(self, ready: int) -> int:
        """Start the program with all that is left to it; returns its process id."""
        left = {
            "pid": os.getpid(),
            "ready": ready,
            "listeners": [(use, sock.fileno()) for use, sock in self._listeners],
            "secret": self._secret.hex(),
            "overrides": encode(self._recall()),
            "cpus": self._cpus,
        }
        file = os.memfd_create("atlas")
        inherited = [file, ready, *(sock.fileno() for _, sock in self._listeners)]
        try:
            os.pwrite(file, json.dumps(left).encode(), 0)
            for fd in inherited:
                os.set_inheritable(fd, True)
            return os.posix_spawn(
                sys.executable,
                [sys.executable, *sys.orig_argv[1:]],
                {**os.environ, VARIABLE: str(file)},
            )
        finally:
            for fd in inherited:
                os.set_inheritable(fd, False)
            os.close(file)

    def _find_failure(self) -> str:
        """Say why the successor will not serve; empty where it still may."""
        try:
            pid, status = os.waitpid(self.successor, os.WNOHANG)
        except ChildProcessError:  # the supervisor, who asks for all that have died, was first
            return "it has ended"
        if pid:
            return f"it has ended with {os.waitstatus_to_exitcode(status)}"
        if time.monotonic() < self._deadline:
            return ""
        os.kill(self.successor, signal.SIGKILL)
        os.waitpid(self.successor, 0)
        return f"it does not serve after {PATIENCE:g} s, and is killed"
