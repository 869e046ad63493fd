"""Bytes both ways between two connections, whatever they mean; one thread for all of them.

A `Tunnel` moves bytes until both sides have ended. The end of input on one side is passed on as
such (a half-close), not as the end of the tunnel. A machine that vanishes without an end is found
out by TCP's keep-alive.

The `Relay` waits for all tunnels at one `epoll`, reads where something has come, and writes it on
at once, so a tunnel that says nothing costs two descriptors and no thread. Nothing here waits: what
a side does not take is kept, and until it is gone nothing more is read for it. So two sides that
each wait for the other to read do not lock up, and memory does not depend on how much passes. A
bulk transfer goes through a kernel pipe, where the system has one. A thread for each direction, the
textbook's way, costs two threads for each client that says nothing, and a switch for each word.

Not done here: what becomes a tunnel, and when (`proxying/forward.py`, `proxying/tcp.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.splice import HAS_SPLICE, PIPE_BYTES, KernelPipe
from atlas_pkg.net.stream import RECEIVE_BYTES, Stream

log = logging.getLogger("atlas.tunnel")

# How often it is looked which tunnels have been silent for too long.
SWEEP_INTERVAL = 0.5

_IN, _OUT = select.POLLIN, select.POLLOUT  # the numbers of `epoll`, too
_BROKEN, _HANG_UP = select.POLLERR, select.POLLHUP


class _Way:
    """One way of a tunnel: what was read from `source` and not yet taken by `sink`.

    A read that fills the buffer is the sign of a bulk transfer: it goes on through a kernel pipe
    until less than that comes at once. Messages of a chat never need one.
    """

    __slots__ = (
        "_may_splice",
        "_pipe",
        "_unsent",
        "awaited",
        "back",
        "has_ended",
        "has_hung_up",
        "is_pending",
        "is_shut",
        "moved",
        "sink",
        "source",
        "tunnel",
    )

    back: _Way  # the opposite way of the same tunnel

    def __init__(self, tunnel: Tunnel, source: Stream, sink: Stream) -> None:
        self.tunnel = tunnel
        self.source = source
        self.sink = sink
        self.moved = 0  # bytes that the sink has taken
        self._unsent = memoryview(b"")
        self._may_splice = HAS_SPLICE and source.is_plain and sink.is_plain
        self._pipe: KernelPipe | None = None
        self.is_pending = False  # is there something that the sink has not taken yet?
        self.has_ended = False  # the source has sent its last byte
        self.is_shut = False  # and the sink has been told so
        self.has_hung_up = False  # the source takes nothing any more, either
        # Events of `source` that the relay waits for; -1: it is not registered (yet, or any more).
        self.awaited = -1

    def fill(self) -> None:
        """Read once, and write what fits; only called while nothing is pending. Never waits."""
        if self._pipe is not None:
            self._fill_pipe(self._pipe)
            return
        data: bytes | None
        if self.source.buffered:
            data, self.source.buffered = self.source.buffered, b""
        else:
            data = self.source.receive_now()
        if data is None:
            return
        if not data:
            self.has_ended = True
            self.flush()
            return
        sent = self.sink.send_some(data)
        self.moved += sent
        if sent < len(data):
            self._unsent, self.is_pending = memoryview(data)[sent:], True
        if len(data) == RECEIVE_BYTES and self._may_splice:
            pipe = KernelPipe()
            with contextlib.suppress(OSError):  # no descriptors are left: it goes on as it is
                pipe.open()
                self._pipe = pipe

    def flush(self) -> None:
        """Write what fits of what is pending, and pass on the end of input. Never waits."""
        if self._unsent:
            sent = self.sink.send_some(self._unsent)
            self._unsent = self._unsent[sent:]
            self.moved += sent
        elif self._pipe is not None and self._pipe.held:
            held = self._pipe.held
            self.moved += held - self._pipe.drain_some(self.sink)
        self.is_pending = bool(self._unsent) or (self._pipe is not None and self._pipe.held > 0)
        if self.has_ended and not self.is_pending and not self.is_shut:
            self.sink.end_sending()
            self.is_shut = True

    def _fill_pipe(self, pipe: KernelPipe) -> None:
        received = pipe.fill_now(self.source, PIPE_BYTES)
        if received is None:
            return
        if received < RECEIVE_BYTES:
            self._unsent = memoryview(pipe.read())
            self.close()
        self.has_ended = not received
        self.flush()

    def close(self) -> None:
        """Release the pipe, and with it what the sink will not take any more."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


class Tunnel:
    """A client and an upstream, and what is on its way between them."""

    def __init__(
        self,
        client: Stream,
        upstream: Stream,
        idle_limit: float,
        on_end: Callable[[Tunnel, StreamError | None], None],
        *,
        half_closed_limit: float,
    ) -> None:
        """`on_end` is called by the relay, and closes both; it must not wait.

        It is told what has ended the tunnel, where that was not both sides. After one side has
        ended, the other may fall silent for `half_closed_limit`, and no longer than at other times.
        """
        for stream in (client, upstream):
            stream.stop_blocking()
            stream.keep_alive()  # silence may last for hours, and tell nothing
        self.up = _Way(self, client, upstream)
        self.down = _Way(self, upstream, client)
        self.up.back, self.down.back = self.down, self.up
        self.idle_limit = idle_limit
        self.half_closed_limit = min(half_closed_limit, idle_limit)
        self.moved_at = time.monotonic()
        self.on_end = on_end

    def is_overdue(self, now: float) -> bool:
        """Has it been silent for too long?"""
        is_half_closed = self.up.is_shut or self.down.is_shut
        limit = self.half_closed_limit if is_half_closed else self.idle_limit
        return now - self.moved_at >= limit


class Relay:
    """The thread that serves all tunnels. `add` is for any thread, all else is its own."""

    def __init__(self) -> None:
        self._poller = select.epoll() if hasattr(select, "epoll") else select.poll()
        # A second of what `poll` counts time in.
        self._second = 1 if hasattr(select, "epoll") else 1000
        self._ways: dict[int, _Way] = {}  # by the descriptor of their source
        self._new: deque[Tunnel] = deque()
        self._next_sweep = 0.0
        self._is_stopping = False
        # Who adds a tunnel rings.
        self._door, self._bell = os.pipe()
        for end in (self._door, self._bell):
            os.set_blocking(end, False)
        self._poller.register(self._door, _IN)

    def start(self) -> None:
        """Begin to serve."""
        threading.Thread(target=self._run, name="relay", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end; does not wait."""
        self._is_stopping = True
        self._ring()

    def add(self, tunnel: Tunnel) -> None:
        """Move the bytes of `tunnel` until it ends. Never waits; the caller gives it up."""
        self._new.append(tunnel)
        self._ring()

    def _ring(self) -> None:
        try:
            os.write(self._bell, b"!")
        except BlockingIOError:
            return  # it has been rung often enough

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._step()
            except Exception:
                log.exception("the relay met an error of ours and goes on")

    def _step(self) -> None:
        """Wait until something happens, and do what is to be done about it."""
        events = self._poller.poll(SWEEP_INTERVAL * self._second if self._ways else None)
        now = time.monotonic()
        for fd, seen in events:
            if (way := self._ways.get(fd)) is not None:  # else it has just ended
                self._serve(way, seen, now)
            elif fd == self._door:
                os.read(fd, RECEIVE_BYTES)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_INTERVAL
            self._sweep(now)
        while self._new:
            self._begin(self._new.popleft())

    def _serve(self, way: _Way, seen: int, now: float) -> None:
        """Something has happened at the source of `way`, which is the sink of the way back."""
        back, tunnel = way.back, way.tunnel
        try:
            if seen & _OUT:
                back.flush()
                if not (back.is_pending or back.has_ended):
                    back.fill()
            if way.awaited & _IN:
                if seen & ~_OUT:  # an end and an error are found by reading, after all that came
                    way.fill()
            elif seen & _BROKEN:
                raise StreamError(way.source.side, "closed its connection")
            elif seen & _HANG_UP:
                if not way.is_pending:
                    self._end(tunnel, None)
                    return
                way.has_hung_up = True
            tunnel.moved_at = now
            if way.is_pending or way.has_ended or way.awaited != _IN or back.awaited != _IN:
                self._await(way)
                self._await(back)
                if way.is_shut and back.is_shut:
                    self._end(tunnel, None)
        except StreamError as error:
            self._end(tunnel, error)
        except Exception:
            log.exception("a tunnel met an error of ours")
            self._end(tunnel, None)

    def _await(self, way: _Way) -> None:
        """Wait for what the source of `way` is wanted for.

        A hang-up is reported even to those who did not ask, again and again. So a source that takes
        nothing any more is left out, but to be read from.
        """
        fd = way.source.fd
        wanted = 0 if way.is_pending or way.has_ended else _IN
        wanted |= _OUT if way.back.is_pending else 0
        if (way.has_hung_up or way.back.is_shut) and not wanted & _IN:
            wanted = -1
        if wanted == way.awaited:
            return
        if way.awaited < 0:
            self._poller.register(fd, wanted)
        elif wanted < 0:
            self._poller.unregister(fd)
        else:
            self._poller.modify(fd, wanted)
        way.awaited = wanted

    def _begin(self, tunnel: Tunnel) -> None:
        """Serve a new tunnel, of which something may have been read before."""
        ways = (tunnel.up, tunnel.down)
        for way in ways:
            self._ways[way.source.fd] = way
        for way in ways:
            if way.source.fd in self._ways:  # else it has ended at once
                self._serve(way, _IN, tunnel.moved_at)

    def _end(self, tunnel: Tunnel, error: StreamError | None) -> None:
        for way in (tunnel.up, tunnel.down):
            if way.awaited >= 0:
                self._poller.unregister(way.source.fd)
            self._ways.pop(way.source.fd, None)
            way.close()
        tunnel.on_end(tunnel, error)

    def _sweep(self, now: float) -> None:
        """End the tunnels that have been silent for too long."""
        for way in list(self._ways.values()):
            tunnel = way.tunnel
            if way is tunnel.up and tunnel.is_overdue(now):
                silence = StreamError(Side.CLIENT, "the tunnel was idle too long", timed_out=True)
                self._end(tunnel, silence)
