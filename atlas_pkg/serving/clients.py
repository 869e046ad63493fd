"""The clients that are connected now, and whether we are still taking them.

A `ClientConnection` is what remains of a client between two requests: a descriptor, some bytes, a
deadline. It is small on purpose, since most clients say nothing most of the time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import Any

from atlas_pkg.http1.forwarding import Hop
from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.generation import Generation

# What serves a client, in steps: it pauses wherever it would have to wait for somebody, so that its
# worker can go on with other clients. It yields the upstream's stream while it only awaits what
# comes from there, or None where a worker has to wait. It is sent the worker that goes on with it.
Steps = Generator[Stream | None, Any, None]


class ClientConnection:
    """One client's connection. Belongs to the gate or to one worker, never to both."""

    __slots__ = (
        "_generation",
        "_hop",
        "address",
        "awaits_since",
        "deadline",
        "head_since",
        "is_lingering",
        "is_registered",
        "requests",
        "steps",
        "stream",
        "upstream",
    )

    def __init__(self, stream: Stream, address: str, deadline: float) -> None:
        self.stream = stream
        self.address = address
        self.deadline = deadline  # when the gatekeeper ends the waiting
        # When the first part of a head came that is not complete: then the deadline is the head's.
        self.head_since = 0.0
        self.is_lingering = False  # answered for the last time, waiting for the client to close
        self.is_registered = False  # known to the gate's epoll
        self.requests = 0
        # Where its serving goes on, while it has paused; and since when it awaits its answer.
        self.steps: Steps | None = None
        self.awaits_since = 0.0
        self.upstream: Stream | None = None  # from which it awaits it
        self._generation: Generation | None = None
        self._hop: Hop | None = None

    def hop(self, generation: Generation) -> Hop:
        """What forwarding needs to know of this client, built once per generation."""
        if self._hop is None or self._generation is not generation:
            self._hop = generation.forwarder.build_hop(self.address, "http")
            self._generation = generation
        return self._hop


class Clients:
    """All open client connections. Thread-safe."""

    def __init__(self) -> None:
        # Guards _open; notified when one has left.
        self._changed = threading.Condition()
        self._open: set[Stream] = set()
        # Set once, when Atlas begins to drain: every answer from then on closes its connection.
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, stream: Stream) -> None:
        """Count a new client."""
        with self._changed:
            self._open.add(stream)

    def close(self, stream: Stream) -> None:
        """Close a client's connection and forget it."""
        stream.close()
        with self._changed:
            self._open.discard(stream)
            self._changed.notify_all()

    def wait_until_below(self, limit: int, timeout: float) -> bool:
        """Wait until fewer than `limit` clients are connected; False when time runs out."""
        if len(self._open) < limit:
            return True
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(self._open) >= limit:
                if not self._changed.wait(deadline - time.monotonic()):
                    return False
        return True

    def cut(self) -> int:
        """End all connections that are still open; returns how many there were."""
        with self._changed:
            streams = list(self._open)
        for stream in streams:
            stream.shut_down()  # wakes whoever uses it; its owner closes it
        return len(streams)
