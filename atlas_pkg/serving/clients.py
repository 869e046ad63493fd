"""All clients that are connected now, and how a client's connection ends.

Ownership: a client that waits is in `parked`, and whoever takes it out of there (one atomic
`dict.pop`) owns it. Everybody else is owned by the lane or by the thread that serves it, which
hands it to `put_away` with what is to become of it.

After a last answer a client may still be sending. Closing at once would make its kernel drop the
answer unread (RFC 9112 §9.6), so Atlas closes its own half, reads on while the client sends, and
throws away what comes (nginx calls it a lingering close). The waiting is done where all clients
wait, and bounded in time and bytes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

from atlas_pkg.errors import StreamError
from atlas_pkg.net.tls import TlsStream
from atlas_pkg.serving.client import ABORT, CLOSE, FINISH, PARK, TAKEN, Client, Next

# How long a client may go on sending after its last answer. One that uploads slowly, and looks for
# an answer only at the end, shall find it.
LINGER = 2.0  # a pause of so many seconds ends it (nginx: 5)
LINGER_TIME = 30.0  # seconds in all (nginx: 30)
LINGER_BYTES = 64 * 1024 * 1024  # in all
LINGER_READS = 16  # in one turn: others wait for theirs

# Whoever has only just come may be about to say its first word. A drain gives it so long.
FIRST_WORD = 1.0


class Clients:
    """All open client connections. Thread-safe."""

    def __init__(self) -> None:
        # Guards _open; notified when one has left.
        self._changed = threading.Condition()
        self._open: set[Client] = set()
        # Those that wait until they say something, by descriptor, the longest waiting first.
        self.parked: dict[int, Client] = {}
        # Set once, when Atlas begins to drain: every answer from then on closes its connection, and
        # whoever says nothing is let go (`release_idle` in `frontend.py`).
        self.is_draining = False
        self.is_cut = False  # and all that were left have been ended

    def __len__(self) -> int:
        return len(self._open)

    def add(self, client: Client) -> None:
        """Count a new client."""
        with self._changed:
            self._open.add(client)

    def close(self, client: Client) -> None:
        """Close a client's connection and forget it."""
        client.stream.close()
        with self._changed:
            self._open.discard(client)
            self._changed.notify_all()

    def put_away(self, client: Client, following: Next) -> Next:
        """Do what is to become of a client: the one place for that.

        Returns `PARK` where it waits from now on (without a lane, the caller has to see to that),
        and otherwise `TAKEN`: it is closed or served elsewhere, and no longer the caller's.
        """
        if following is FINISH:
            following = self._finish(client)
        elif following is PARK and not (client.head_since or client.is_lingering):
            client.deadline = time.monotonic() + client.idle_limit
        if following is PARK:
            if client.lane is not None:
                client.lane.park(client)
            return PARK
        if following is ABORT:
            client.stream.abort()
        if following is not TAKEN:
            client.release_bound()
            self.close(client)
        return TAKEN

    def throw_away_input(self, client: Client) -> Next:
        """Read what a lingering client still sends; it is over at its end, or beyond a bound."""
        count = 0
        try:
            for _ in range(LINGER_READS):
                data = client.stream.receive_now()
                if data is None:
                    break
                if not data:
                    return CLOSE
                count += len(data)
        except StreamError:
            return CLOSE
        now = time.monotonic()
        if now >= client.deadline:
            return CLOSE
        client.linger_bytes -= count
        if client.linger_bytes < 0:
            return CLOSE
        if count and not self.is_draining:
            client.deadline = min(now + LINGER, client.linger_until)
        return PARK

    def take_expired(self, now: float) -> Iterator[Client]:
        """Own all that have waited beyond their deadline, one after the other."""
        # A copy is made in one step; others park and take all the while. So what is seen here is
        # looked at again once it is ours.
        for fd, seen in self.parked.copy().items():
            if seen.deadline > now or not (client := self.parked.pop(fd, None)):
                continue
            if client.deadline <= now:
                yield client
            elif client.lane is not None:
                client.lane.park(client)

    def dismiss_idle(self, most: int, *, came_by: float = math.inf) -> int:
        """Close up to `most` of those that are between two requests, the longest waiting first.

        Whoever has come since the instant `came_by`, and has not asked for anything yet, stays.
        """
        count = 0
        for fd, seen in self.parked.copy().items():
            if count >= most:
                break
            if not _is_between_requests(seen):
                continue
            if not seen.requests and seen.silent_since > came_by:
                continue
            if seen.lane is None:
                if self.parked.get(fd) is seen:  # it is not just being read
                    seen.stream.end_receiving()  # its thread wakes, and closes it
                    count += 1
            elif (client := self.parked.pop(fd, None)) is not None:
                if _is_between_requests(client):
                    client.release_bound()
                    self.close(client)
                    count += 1
                elif client.lane is not None:
                    client.lane.park(client)
        return count

    def wait_until_below(self, limit: int, timeout: float) -> bool:
        """Wait until fewer than `limit` clients are connected; False when time runs out."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._open) < limit, timeout)

    def cut(self) -> int:
        """End all connections that are still open; returns how many there were."""
        self.is_cut = True
        with self._changed:
            clients = list(self._open)
        for client in clients:
            client.stream.shut_down()  # wakes whoever uses it; its owner closes it
        return len(clients)

    def _finish(self, client: Client) -> Next:
        """Begin the gentle end, where the client is or may be still sending."""
        stream = client.stream
        if not (client.is_sending or stream.buffered) and (
            stream.is_silent() or stream.has_ended()
        ):
            return CLOSE
        stream.end_sending()
        stream.buffered = b""
        client.head_since = 0.0
        client.is_lingering = True
        now = time.monotonic()
        client.deadline, client.linger_until = now + LINGER, now + LINGER_TIME
        client.linger_bytes = LINGER_BYTES
        return self.throw_away_input(client)


def _is_between_requests(client: Client) -> bool:
    """Has it been answered, or just come, and said nothing since?

    Only its owner can rely on the answer; for anybody else it is a hint.
    """
    stream = client.stream
    # While an opening is due, `head_since` is set from its beginning; what tells there that the
    # client has said something is that the handshake has begun.
    has_begun = isinstance(stream, TlsStream) if client.awaits else bool(client.head_since)
    if has_begun or client.is_lingering or stream.buffered:
        return False
    return stream.is_silent()
