"""The two gates: `epoll` on Linux, a selector in a thread of its own elsewhere.

In the `epoll`, client connections are registered *one-shot*: the first event hands them to the
leader, and then the kernel keeps quiet about them until they are parked again. Upstream connections
are registered *edge-triggered* and once, so awaiting an answer costs no system call of its own.
"""

from __future__ import annotations

import os
import queue
import select
import selectors
import socket
import threading

from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.clients import ClientConnection
from atlas_pkg.serving.gate import Gate, WaitingRoom

# So many connections are taken in one turn. With 8 a turn costs more than it need, from 32 on it
# makes no difference.
MOST_TAKEN = 32

# Names that only Linux has.
_EPOLLIN = getattr(select, "EPOLLIN", 0)
_CLIENT_EVENTS = _EPOLLIN | getattr(select, "EPOLLONESHOT", 0)
_UPSTREAM_EVENTS = _EPOLLIN | getattr(select, "EPOLLET", 0)
_OPENING_EVENTS = _UPSTREAM_EVENTS | getattr(select, "EPOLLOUT", 0)


class EpollGate(WaitingRoom):
    """The gate on Linux."""

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
                self._epoll.modify(fd, _CLIENT_EVENTS)
            except OSError:
                pass  # taken from `_parked` and closed since the line above, as draining may do
        else:
            connection.is_registered = True
            self._epoll.register(fd, _CLIENT_EVENTS)

    def await_answer(self, connection: ClientConnection, upstream: Stream) -> bool:
        if not upstream.is_watched:
            events = _OPENING_EVENTS if upstream.is_connecting else _UPSTREAM_EVENTS
            try:
                self._epoll.register(upstream.sock, events)
            except OSError:
                return False  # no memory for it, or the user watches as many as are allowed
            upstream.is_watched = True
        self._note_awaiting(connection, upstream)
        return True

    def release(self, connection: ClientConnection) -> None:
        upstream, connection.upstream = connection.upstream, None
        if upstream is None or not upstream.is_watched:
            return
        upstream.is_watched = False
        try:
            self._epoll.unregister(upstream.sock)
        except (OSError, ValueError):
            pass  # closed; it may rest in another worker's pool, who closes it at this very moment

    def take(self, timeout: float) -> list[ClientConnection]:
        self._arrive()
        try:
            events = self._epoll.poll(self._wait_at_most(timeout), MOST_TAKEN)
        finally:
            self._leave()
        taken = [self._find(fd) for fd, _ in events]
        return [connection for connection in taken if connection is not None]

    def has_ready(self) -> bool:
        # An epoll descriptor is itself readable while one of its members is ready.
        return bool(self._handed or self._readiness.poll(0))

    def close(self) -> None:
        self._epoll.close()


class PortableGate(WaitingRoom):
    """The gate elsewhere: a selector in a thread of its own, and a queue to the leader."""

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
        self._ask_to_watch(fd)

    def await_answer(self, connection: ClientConnection, upstream: Stream) -> bool:
        self._note_awaiting(connection, upstream)
        self._ask_to_watch(upstream.sock.fileno())
        return True

    def release(self, connection: ClientConnection) -> None:
        """Nothing to do: the thread forgets a connection with its first event."""

    def take(self, timeout: float) -> list[ClientConnection]:
        ready = []
        self._arrive()
        try:
            ready.append(self._ready.get(timeout=self._wait_at_most(timeout)))
            while len(ready) < MOST_TAKEN:
                ready.append(self._ready.get_nowait())
        except queue.Empty:
            pass
        finally:
            self._leave()
        taken = [self._find(fd) for fd in ready]
        return [connection for connection in taken if connection is not None]

    def has_ready(self) -> bool:
        return bool(self._handed) or not self._ready.empty()

    def close(self) -> None:
        self._wake_writer.close()  # the thread reads the end of input and ends
        self._thread.join()
        self._selector.close()
        self._wake_reader.close()

    def _ask_to_watch(self, fd: int) -> None:
        self._arriving.put(fd)
        self._wake_writer.send(b"!")

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
        if fd not in self._parked and fd not in self._awaiting:
            return
        if fd in self._selector.get_map():
            # The number is that of a connection which expired here. The system forgot it when it
            # was closed, the selector did not.
            self._selector.unregister(fd)
        awaiting = self._awaiting.get(fd)
        upstream = awaiting.upstream if awaiting else None
        is_opening = upstream is not None and upstream.is_connecting
        try:
            self._selector.register(
                fd, selectors.EVENT_WRITE if is_opening else selectors.EVENT_READ
            )
        except (OSError, ValueError):
            return  # closed at this very moment


def open_gate() -> Gate:
    """The best gate that this system has; ATLAS_PORTABLE=1 asks for the portable one."""
    if hasattr(select, "epoll") and not os.environ.get("ATLAS_PORTABLE"):
        return EpollGate()
    return PortableGate()
