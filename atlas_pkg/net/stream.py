"""A socket with a buffer, deadlines and typed errors; nobody outside `net/` touches the socket.

There are verbs of two kinds. Those that *never wait* (`receive_now`, `send_now`, `send_some`) are
for a thread that has others to serve; "not yet" is an answer that they give. Those that *wait*
(`receive`, `send`) take a timeout and keep an eye on the other party.

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
from typing import NamedTuple

from atlas_pkg.errors import Side, StreamError

# One read of a head, or of a body that is decoded: a larger one would only be copied around.
RECEIVE_BYTES = 64 * 1024

# How long a half-closed client is taken to be still reading (`timeouts.client_gone`). Under the 5 s
# within which an upstream must be freed; above the time that most answers take.
CLIENT_GONE = 3.0

# Where the kernel cannot report a hang-up by itself, we look this often (macOS, BSD).
_WATCH_INTERVAL = 1.0
_HANG_UP = getattr(select, "POLLRDHUP", 0)

# Keep-alive of TCP for connections that may be silent for hours: asked after a minute, a peer that
# does not answer is given up a minute later. Routers that forget silent connections hear of them,
# too; few do so within a minute. Where a system does not know one of these, its own value stays.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))

# The kernel takes at most 1024 parts in one call (IOV_MAX).
_MOST_PARTS = 1000

# As plain numbers: joining the library's flags anew for each look would cost as much as the look.
_NOW = int(socket.MSG_DONTWAIT)
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

# A TLS socket has other verbs under these names; what is meant here is the connection below it.
_receive = socket.socket.recv
_shut_down = socket.socket.shutdown


def set_patience(sock: socket.socket, *, receive: float, send: float) -> None:
    """Let blocking calls on `sock` return after so many seconds with nothing done."""
    for option, seconds in ((socket.SO_RCVTIMEO, receive), (socket.SO_SNDTIMEO, send)):
        whole = int(seconds)
        value = struct.pack("ll", whole, int((seconds - whole) * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, option, value)


class Ends(NamedTuple):
    """From where to where a connection was opened: IP addresses in text form, and ports."""

    source: str
    source_port: int
    destination: str
    destination_port: int


def plain_address(address: str) -> str:
    """An IP address without what sockets put around it: no zone, and IPv4 as IPv4.

    >>> plain_address("::ffff:192.0.2.1"), plain_address("fe80::1%eth0")
    ('192.0.2.1', 'fe80::1')
    """
    if address.startswith("::ffff:") and "." in address:
        address = address[7:]
    return address.partition("%")[0]


class Stream:
    """One connection's bytes. `buffered` holds what was read but not yet consumed.

    `fd` is for those who wait for many at once (`poll`, `epoll`, `splice`), and for nothing else.
    Used by one thread at a time, except that one thread may read while another writes.
    """

    __slots__ = ("_readiness", "_sock", "buffered", "client_gone", "fd", "side")

    # Do its bytes pass as they are, so that a kernel pipe may carry them?
    is_plain = True
    # The most that is read at once; so much is the sign of a bulk transfer.
    receive_bytes = RECEIVE_BYTES

    def __init__(self, sock: socket.socket, side: Side) -> None:
        self._sock = sock
        self.fd = sock.fileno()
        self.side = side
        self.buffered = b""
        self.client_gone = CLIENT_GONE  # a client's grace once it has closed its sending half
        self._readiness: select.poll | None = None

    def receive_now(self) -> bytes | None:
        """Read what has arrived: None if nothing has, b"" at the end of input. Never waits.

        Raises `StreamError` where the connection has broken.
        """
        try:
            return self._sock.recv(RECEIVE_BYTES, _NOW)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self.broken(error) from None

    def receive_ahead(self, most: int) -> bytes | None:
        """As `receive_now`, but so many bytes at most: for what comes ahead of TLS."""
        try:
            return self._sock.recv(most, _NOW)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self.broken(error) from None

    def send_now(self, data: bytes) -> bytes:
        """Write what fits and return the rest. Never waits.

        A failure is not reported here: whoever sends the rest meets it again.
        """
        try:
            sent = self._sock.send(data, _NOW)
        except OSError:
            return data
        return data[sent:] if sent < len(data) else b""

    def send_some(self, data: bytes | memoryview) -> int:
        """Write what fits; returns how many bytes that was, possibly 0. Never waits.

        Raises `StreamError`.
        """
        try:
            return self._sock.send(data, _NOW)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self.broken(error) from None

    def receive(self, timeout: float, other: Stream | None = None) -> bytes:
        """Read what has arrived, waiting up to `timeout`; b"" at the end of input.

        Raises `StreamError`: for this side when time runs out or the connection breaks, for the
        side of `other` when that one leaves meanwhile.
        """
        try:
            return self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            self.wait_until_readable(timeout, other)
        except OSError as error:
            raise self.broken(error) from None
        try:
            return self._sock.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self.broken(error) from None

    def receive_into(self, view: memoryview, timeout: float, other: Stream | None = None) -> int:
        """As `receive`, into `view`; returns how many bytes were read, 0 at the end of input."""
        try:
            return self._sock.recv_into(view)
        except BlockingIOError:
            self.wait_until_readable(timeout, other)
        except OSError as error:
            raise self.broken(error) from None
        try:
            return self._sock.recv_into(view)
        except OSError as error:
            raise self.broken(error) from None

    def send(self, data: bytes | memoryview, timeout: float) -> None:
        """Write all of `data`; `timeout` is for each time that nothing at all can be written.

        Raises `StreamError` for this side.
        """
        try:
            sent = self._sock.send(data)
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
            sent = self._sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self.broken(error) from None
        if sent < sum(map(len, parts)):
            self.send(memoryview(b"".join(parts))[sent:], timeout)

    def send_file(self, file: int, start: int, count: int, timeout: float) -> bool:
        """As `send`, for a part of an open file; False where it has come to its end before."""
        while count:
            try:
                sent = os.sendfile(self.fd, file, start, count)
            except BlockingIOError:
                self.wait_until_writable(timeout)
                continue
            except OSError as error:
                raise self.broken(error) from None
            if not sent:
                return False
            start, count = start + sent, count - sent
        return True

    def is_readable(self, timeout: float = 0.0) -> bool:
        """Is there something to read (bytes, the end, an error), now or within `timeout`?"""
        if self._readiness is None:
            self._readiness = select.poll()
            self._readiness.register(self._sock, select.POLLIN)
        return bool(self._readiness.poll(timeout * 1000))

    def wait_until_readable(
        self, timeout: float, other: Stream | None = None, *, heeds_other: bool = False
    ) -> bool:
        """Wait until something can be read here (True) or, if `heeds_other`, there (False).

        What `other` says goes first. Raises `StreamError` as `receive` does.
        """
        deadline = time.monotonic() + timeout
        other_until = float("inf")
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        if other is not None:
            poller.register(other.fd, _HANG_UP | (select.POLLIN if heeds_other else 0))
        while True:
            now = time.monotonic()
            wait = max(0.0, min(deadline, other_until) - now)
            if other is not None and not _HANG_UP:
                wait = min(wait, _WATCH_INTERVAL)
            events = dict(poller.poll(wait * 1000 + 1))
            seen = events.get(other.fd, 0) if other is not None else 0
            if other is not None and seen and heeds_other:
                if other.is_readable():
                    return False
                seen = 0  # what came was nothing for us, a session ticket of TLS for example
            if self.fd in events:
                return True
            # What has come is taken, even if we come late to look.
            if now >= deadline:
                raise StreamError(self.side, "nothing came in time", timed_out=True)
            if other is None:
                continue
            if now >= other_until:
                raise StreamError(other.side, "closed its connection")
            if seen & (select.POLLHUP | select.POLLERR):
                raise StreamError(other.side, "closed its connection")
            if seen or (not _HANG_UP and other_until == float("inf") and other.has_ended()):
                other_until = now + other.client_gone
                poller.unregister(other.fd)

    def wait_until_writable(self, timeout: float, *, heeds_input: bool = False) -> bool:
        """Wait until something can be written (True) or, if `heeds_input`, read (False, first).

        Raises `StreamError` when time runs out.
        """
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT | (select.POLLIN if heeds_input else 0))
        while events := poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if heeds_input and events[0][1] & ~select.POLLOUT and self.is_readable():
                return False
            if not heeds_input or events[0][1] & select.POLLOUT:
                return True
        raise StreamError(self.side, "nothing could be written in time", timed_out=True)

    def peek_now(self) -> bytes | None:
        """Look at the first byte that has arrived, and leave it there; else as `receive_now`."""
        try:
            return _receive(self._sock, 1, _PEEK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self.broken(error) from None

    def has_ended(self) -> bool:
        """Has the other end closed, with nothing left to read? Never waits."""
        try:
            return self.peek_now() == b""
        except StreamError:
            return True

    def is_broken(self) -> bool:
        """Has it been reset, or ended in both directions? Never waits."""
        poller = select.poll()
        poller.register(self.fd, 0)
        return bool(poller.poll(0))

    def is_silent(self) -> bool:
        """Has nothing arrived that is still to be read, not even an end? For any thread."""
        try:
            return self.peek_now() is None
        except StreamError:
            return False

    def ends(self) -> Ends | None:
        """From where to where it was opened; None through a socket file. Raises `StreamError`."""
        if self._sock.family is socket.AF_UNIX:
            return None
        try:
            source, destination = self._sock.getpeername(), self._sock.getsockname()
        except OSError as error:
            raise self.broken(error) from None
        if self.side is Side.UPSTREAM:
            source, destination = destination, source
        return Ends(
            plain_address(source[0]), source[1], plain_address(destination[0]), destination[1]
        )

    def stop_blocking(self) -> None:
        """From now on no call on this connection waits, `send` and `receive` included."""
        self._sock.setblocking(False)

    def keep_alive(self) -> None:
        """Have the kernel find out whether the other machine is still there while all is silent.

        One that lost its power or its network never closes anything. Reading and waiting then
        meets a broken connection.
        """
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE:
                if hasattr(socket, name):
                    self._sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        except OSError:
            return  # it has ended already, or is no TCP connection

    def shut_down(self) -> None:
        """End both directions at once, waking whoever waits on them."""
        try:
            _shut_down(self._sock, socket.SHUT_RDWR)
        except OSError:
            return  # it had ended already

    def end_receiving(self) -> None:
        """Let whoever reads here find what has arrived, and then the end of input."""
        try:
            _shut_down(self._sock, socket.SHUT_RD)
        except OSError:
            return

    def end_sending(self) -> None:
        """Close the sending half: the other end reads the end of input."""
        try:
            _shut_down(self._sock, socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        """Close the connection; harmless when it is closed already."""
        self._sock.close()

    def abort(self) -> None:
        """Close with a reset, so that what was sent cannot be taken for complete."""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        self._sock.close()

    def broken(self, error: OSError) -> StreamError:
        """Translate what the kernel reports; the one place that looks at it for this side."""
        reason = os.strerror(error.errno).lower() if error.errno else "connection broken"
        return StreamError(self.side, reason)
