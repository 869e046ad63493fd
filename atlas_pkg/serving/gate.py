"""Where connections wait until they have something to say, and workers wait for one that has.

All client connections between two requests wait in one `epoll`. Each is registered *one-shot*: the
first event hands it to exactly one worker and then the kernel keeps quiet about it until it is
parked again. Worker threads wait on the same `epoll`, and the kernel wakes the one that came last,
whose memory is still warm. So an idle client costs a descriptor and no thread.

`PortableGate` does the same for systems without `epoll`, with one selector thread and a queue.

Ownership: a parked connection is in `_parked`, and whoever takes it out of there (one atomic
`dict.pop`) owns it: a worker, or the gatekeeper whose deadline came first.
"""

from __future__ import annotations

import os
import queue
import select
import selectors
import socket
import threading
from typing import Protocol

from atlas_pkg.serving.clients import ClientConnection


class Gate(Protocol):
    """Where connections and workers meet. Thread-safe."""

    # Set when no worker is left at the gate: the gatekeeper looks whether more are needed.
    crowded: threading.Event
    # How often a worker has left the gate; while that stands still, all of them are stuck.
    departures: int

    @property
    def has_free_worker(self) -> bool:
        """Is a worker waiting here? A hint: being wrong costs a turn, nothing else."""

    def park(self, connection: ClientConnection) -> None:
        """Let `connection` wait until it is readable. The caller gives it up."""

    def take(self, timeout: float) -> ClientConnection | None:
        """Wait for a readable connection and own it; None when time runs out."""

    def has_ready(self) -> bool:
        """Is a connection readable and not taken yet?"""

    def take_expired(self, now: float) -> list[ClientConnection]:
        """Own all connections whose deadline has passed."""

    def take_idle(self) -> list[ClientConnection]:
        """Own all connections that have said nothing yet and are not saying anything now."""

    def close(self) -> None:
        """Release what the gate itself holds."""


class _Attendance:
    """Counts the workers that wait at a gate."""

    def __init__(self) -> None:
        self.crowded = threading.Event()
        self.departures = 0
        # Guards _waiting and departures.
        self._lock = threading.Lock()
        self._waiting = 0
        self._parked: dict[int, ClientConnection] = {}

    @property
    def has_free_worker(self) -> bool:
        return self._waiting > 0

    def _arrive(self) -> None:
        with self._lock:
            self._waiting += 1

    def _leave(self) -> None:
        with self._lock:
            self._waiting -= 1
            self.departures += 1
            is_last = not self._waiting
        if is_last and not self.crowded.is_set():
            self.crowded.set()

    def park(self, connection: ClientConnection) -> None:
        raise NotImplementedError  # each gate has its own way

    def take_expired(self, now: float) -> list[ClientConnection]:
        expired = []
        # A copy is made in one step; workers take and park all the while. So what is seen here
        # is looked at again by whoever owns it.
        for fd, waiting in self._parked.copy().items():
            if waiting.deadline > now or not (owned := self._parked.pop(fd, None)):
                continue
            if owned.deadline <= now:
                expired.append(owned)
            else:
                self.park(owned)
        return expired

    def take_idle(self) -> list[ClientConnection]:
        idle = []
        for fd, waiting in self._parked.copy().items():
            if waiting.has_begun_head or not (owned := self._parked.pop(fd, None)):
                continue
            # Not before it is ours: a worker could close the socket at this very moment.
            if owned.has_begun_head or owned.stream.is_readable():
                self.park(owned)
            else:
                idle.append(owned)
        return idle


class EpollGate(_Attendance):
    """The gate on Linux."""

    _EVENTS = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._readiness = select.poll()
        self._readiness.register(self._epoll, select.POLLIN)

    def park(self, connection: ClientConnection) -> None:
        fd = connection.stream.sock.fileno()
        self._parked[fd] = connection  # before the kernel may report it
        if connection.is_registered:
            try:
                self._epoll.modify(fd, self._EVENTS)
            except OSError:
                pass  # taken from `_parked` and closed since the line above, as draining may do
        else:
            connection.is_registered = True
            self._epoll.register(fd, self._EVENTS)

    def take(self, timeout: float) -> ClientConnection | None:
        self._arrive()
        try:
            events = self._epoll.poll(timeout, 1)
        finally:
            self._leave()
        # A connection that expired at this very moment is no longer there.
        return self._parked.pop(events[0][0], None) if events else None

    def has_ready(self) -> bool:
        # An epoll descriptor is itself readable while one of its members is ready.
        return bool(self._readiness.poll(0))

    def close(self) -> None:
        self._epoll.close()


class PortableGate(_Attendance):
    """The gate elsewhere: a selector in a thread of its own, and a queue to the workers."""

    def __init__(self) -> None:
        super().__init__()
        self._ready: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._arriving: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._thread.start()

    def park(self, connection: ClientConnection) -> None:
        fd = connection.stream.sock.fileno()
        self._parked[fd] = connection
        self._arriving.put(fd)
        self._wake_writer.send(b"!")

    def take(self, timeout: float) -> ClientConnection | None:
        self._arrive()
        try:
            fd = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        finally:
            self._leave()
        return self._parked.pop(fd, None)

    def has_ready(self) -> bool:
        return not self._ready.empty()

    def close(self) -> None:
        self._wake_writer.close()  # the thread reads the end of input and ends
        self._thread.join()
        self._selector.close()
        self._wake_reader.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._wake_reader:
                    self._selector.unregister(key.fileobj)
                    self._ready.put(key.fd)
                elif not self._wake_reader.recv(4096):
                    return
            while not self._arriving.empty():
                self._watch(self._arriving.get())

    def _watch(self, fd: int) -> None:
        """Begin to watch a descriptor, unless its connection has left meanwhile."""
        if fd not in self._parked:
            return
        if fd in self._selector.get_map():
            # The number is that of a connection which expired here. The system forgot it when it
            # was closed, the selector did not.
            self._selector.unregister(fd)
        try:
            self._selector.register(fd, selectors.EVENT_READ)
        except (OSError, ValueError):
            return  # closed at this very moment


def open_gate() -> Gate:
    """The best gate that this system has; ATLAS_PORTABLE=1 asks for the portable one."""
    if hasattr(select, "epoll") and not os.environ.get("ATLAS_PORTABLE"):
        return EpollGate()
    return PortableGate()
