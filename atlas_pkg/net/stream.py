"""A socket with a buffer, deadlines and typed errors.

Sockets stay *blocking*. `socket.settimeout` would make Python poll before every call and so double
the system calls; instead the kernel's own receive and send timeouts (`SO_RCVTIMEO`, `SO_SNDTIMEO`)
end a call after a short *patience*. What takes longer goes the slow road: `poll` with the exact
time that is left. Common calls therefore cost one system call, and waiting is precise.

While one side is awaited the other is watched: a client that hangs up while its upstream thinks
frees both at once. A client that has only closed its sending half may still be reading, and nobody
can tell it from one that is gone, so it is given a short grace.

Not done here: what the bytes mean, and which deadline applies when.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from atlas_pkg.errors import Side, StreamError

# One read of a head, or of a body that is decoded: a larger one would only be copied around.
RECEIVE_BYTES = 64 * 1024

# How long a half-closed client is taken to be still reading. Under the 5 s within which an
# upstream must be freed; above the time that most answers take.
HALF_CLOSED_GRACE = 3.0

# Where the kernel cannot report a hang-up by itself, we look this often (macOS, BSD).
_WATCH_INTERVAL = 1.0
_HANG_UP = getattr(select, "POLLRDHUP", 0)

# The kernel takes at most 1024 parts in one call (IOV_MAX).
_MOST_PARTS = 1000


def set_patience(sock: socket.socket, *, receive: float, send: float) -> None:
    """Let blocking calls on `sock` return after so many seconds with nothing done."""
    for option, seconds in ((socket.SO_RCVTIMEO, receive), (socket.SO_SNDTIMEO, send)):
        whole = int(seconds)
        value = struct.pack("ll", whole, int((seconds - whole) * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, option, value)


class Stream:
    """One connection's bytes. `buffered` holds what was read but not yet consumed.

    Used by one thread at a time, except that one thread may read while another writes.
    """

    __slots__ = ("_readable", "buffered", "is_connecting", "is_watched", "side", "sock")

    def __init__(self, sock: socket.socket, side: Side) -> None:
        self.sock = sock
        self.side = side
        self.buffered = b""
        self.is_connecting = False  # not open yet: it will be writable when it is
        self.is_watched = False  # the gate wants to hear of it
        self._readable: select.poll | None = None

    def receive(self, timeout: float, other: Stream | None = None) -> bytes:
        """Read what has arrived, waiting up to `timeout`; b"" at the end of input.

        Raises `StreamError`: for this side when time runs out or the connection breaks, for the
        side of `other` when that one leaves meanwhile.
        """
        try:
            return self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            self.wait_until_readable(timeout, other)
        except OSError as error:
            raise self.broken(error) from None
        try:
            return self.sock.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self.broken(error) from None

    def receive_into(self, view: memoryview, timeout: float, other: Stream | None = None) -> int:
        """As `receive`, into `view`; returns how many bytes were read, 0 at the end of input."""
        try:
            return self.sock.recv_into(view)
        except BlockingIOError:
            self.wait_until_readable(timeout, other)
        except OSError as error:
            raise self.broken(error) from None
        try:
            return self.sock.recv_into(view)
        except OSError as error:
            raise self.broken(error) from None

    def send(self, data: bytes | memoryview, timeout: float) -> None:
        """Write all of `data`; `timeout` is for each time that nothing at all can be written.

        Raises `StreamError` for this side.
        """
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self.broken(error) from None
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            self.wait_until_writable(timeout)
            rest = rest[self.send_some(rest) :]

    def send_parts(self, parts: Sequence[bytes | memoryview], timeout: float) -> None:
        """As `send`, for several parts that leave together without being copied into one."""
        if len(parts) > _MOST_PARTS:
            self.send(b"".join(parts), timeout)
            return
        try:
            sent = self.sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self.broken(error) from None
        if sent < sum(map(len, parts)):
            self.send(memoryview(b"".join(parts))[sent:], timeout)

    def send_some(self, data: bytes | memoryview) -> int:
        """Write what fits without waiting; returns how many bytes that was, possibly 0."""
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self.broken(error) from None

    def send_now(self, data: bytes) -> bytes:
        """Write what fits without waiting and return the rest.

        A failure is not told here: sending the rest meets it again.
        """
        try:
            sent = self.sock.send(data, socket.MSG_DONTWAIT)
        except OSError:
            return data
        return data[sent:] if sent < len(data) else b""

    def is_readable(self) -> bool:
        """Is there something to read at once: bytes, the end of input, or an error?"""
        if self._readable is None:
            self._readable = select.poll()
            self._readable.register(self.sock, select.POLLIN)
        return bool(self._readable.poll(0))

    def wait_until_readable(self, timeout: float, other: Stream | None = None) -> None:
        """Return when something can be read; raises `StreamError` as `receive` does."""
        deadline = time.monotonic() + timeout
        other_until = float("inf")
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        if other is not None:
            poller.register(other.sock, _HANG_UP)
        while True:
            now = time.monotonic()
            if now >= deadline:
                raise StreamError(self.side, "nothing came in time", timed_out=True)
            if other is not None and now >= other_until:
                raise StreamError(other.side, "closed its connection")
            wait = min(deadline, other_until) - now
            if other is not None and not _HANG_UP:
                wait = min(wait, _WATCH_INTERVAL)
            events = dict(poller.poll(wait * 1000 + 1))
            if self.sock.fileno() in events:
                return
            if other is None:
                continue
            seen = events.get(other.sock.fileno(), 0)
            if seen & (select.POLLHUP | select.POLLERR):
                raise StreamError(other.side, "closed its connection")
            if seen or (not _HANG_UP and other_until == float("inf") and other.has_ended()):
                other_until = now + HALF_CLOSED_GRACE
                poller.unregister(other.sock)

    def wait_until_writable(self, timeout: float) -> None:
        """Return when something can be written; raises `StreamError` when time runs out."""
        poller = select.poll()
        poller.register(self.sock, select.POLLOUT)
        if not poller.poll(timeout * 1000):
            raise StreamError(self.side, "nothing could be written in time", timed_out=True)

    def has_ended(self) -> bool:
        """Has the other end closed, with nothing left to read? Does not wait."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def shut_down(self) -> None:
        """End both directions at once, waking whoever waits on them."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it had ended already

    def end_sending(self) -> None:
        """Close the sending half: the other end reads the end of input."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket; harmless when it is closed already."""
        self.sock.close()

    def abort(self) -> None:
        """Close with a reset, so that what was sent cannot be taken for complete."""
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        self.sock.close()

    def broken(self, error: OSError) -> StreamError:
        """Translate what the kernel reports; the one place that looks at it for this side."""
        reason = os.strerror(error.errno).lower() if error.errno else "connection broken"
        return StreamError(self.side, reason)


def wait_until_either(first: Stream, second: Stream, timeout: float) -> Stream | None:
    """Wait until one of two streams is readable; `second` wins a tie, None when time runs out."""
    poller = select.poll()
    poller.register(first.sock, select.POLLIN)
    poller.register(second.sock, select.POLLIN)
    ready = {fd for fd, _ in poller.poll(timeout * 1000)}
    if second.sock.fileno() in ready:
        return second
    return first if ready else None


def wait_until_taken(stream: Stream, timeout: float) -> bool:
    """Wait until `stream` can be written (True) or has something to read (False, and first).

    Raises `StreamError` when time runs out.
    """
    poller = select.poll()
    poller.register(stream.sock, select.POLLIN | select.POLLOUT)
    events = poller.poll(timeout * 1000)
    if not events:
        raise StreamError(stream.side, "nothing could be written in time", timed_out=True)
    return not events[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR)
