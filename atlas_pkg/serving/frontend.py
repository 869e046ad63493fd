"""One port with all that serves its clients: acceptor, lanes, threads, and an app.

The proxy has a frontend (the word is HAProxy's), and so has the admin address: the same HTTP with
another app. A frontend is made first, then started with its listening sockets, as a rule one. It
ends in two steps, `stop_accepting` and `end`. The proxy's drain takes smaller ones and does things
between them: `begin_drain`, `stop_accepting`, `release_idle` as often as needed, `cut`, `stop`.

Not done here: what the app does, and how long a drain waits.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence

from atlas_pkg.balancing.pool import Pool
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.errors import StreamError
from atlas_pkg.net.copy import Copier
from atlas_pkg.observing.observers import Observers
from atlas_pkg.serving.client import CLOSE, PARK, Client, Next
from atlas_pkg.serving.clients import FIRST_WORD, Clients
from atlas_pkg.serving.connection import App, HttpService
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.generation import ConfigHolder
from atlas_pkg.serving.lane import HAS_EPOLL, TIDY_INTERVAL, EpollLane
from atlas_pkg.serving.server import POLL_INTERVAL, AtlasServer
from atlas_pkg.serving.threads import STACK_BYTES, Threads

log = logging.getLogger("atlas.frontend")

# A lane, or the accepting thread, that has not come round for so long is stuck: they do so several
# times a second.
STUCK = 5.0


class Frontend:
    """Serves the clients of one port with one app."""

    def __init__(
        self,
        holder: ConfigHolder,
        clients: Clients,
        app: App,
        observers: Observers,
        *,
        tidy: Callable[[Pool], None],
        lanes: int,
        max_threads: int,
        is_raw: bool = False,
    ) -> None:
        """The `observers` are told of the exchanges here. `tidy` looks after idle upstream
        connections. Without `lanes` a client has a thread.

        `is_raw`: what clients say is not read here, and the app is called as soon as they come.
        """
        self._holder = holder
        self._clients = clients
        self._tidy = tidy
        self._max_threads = max_threads
        self.observers = observers
        lanes = lanes if HAS_EPOLL else 0
        self._http = HttpService(
            holder, clients, app, self.observers, has_lane=lanes > 0, is_raw=is_raw
        )
        self._threads = Threads(self._go_on, max_threads)
        self._lanes = [
            EpollLane(self._http, clients, self._threads, self.observers, tidy)
            for _ in range(lanes)
        ]
        # Guards _pools: those of the threads that serve a client each.
        self._lock = threading.Lock()
        self._pools: set[Pool] = set()
        self._servers: list[AtlasServer] = []

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    @property
    def waiting(self) -> int:
        """How many requests stand in line for a thread, because all are at work."""
        return self._threads.waiting

    def start(self, listeners: Sequence[socket.socket]) -> None:
        """Begin to serve the clients of `listeners`, which are taken over."""
        threading.stack_size(STACK_BYTES)
        if self._lanes:
            self._threads.start()
        for number, lane in enumerate(self._lanes, 1):
            lane.start(f"lane-{number}")
        for listener in listeners:
            server = AtlasServer(
                listener,
                self._holder,
                self._clients,
                lanes=self._lanes,
                welcome=self._welcome,
                serve=self._serve,
                most_threads=self._max_threads,
            )
            self._servers.append(server)
            threading.Thread(
                target=server.serve_forever, args=(POLL_INTERVAL,), name="accept", daemon=True
            ).start()

    def is_serving(self) -> bool:
        """Do clients get in, and does each lane look after them?"""
        beats = [lane.swept_at for lane in self._lanes]
        beats += [server.turned_at for server in self._servers]
        return time.monotonic() - min(beats) < STUCK

    def idle_connections(self) -> dict[Upstream, int]:
        """How many upstream connections are kept at rest."""
        with self._lock:
            pools = [*self._pools, *(lane.pool for lane in self._lanes)]
        counts: dict[Upstream, int] = {}
        for pool in pools:
            for upstream, count in pool.count_idle().items():
                counts[upstream] = counts.get(upstream, 0) + count
        return counts

    def begin_drain(self) -> None:
        """From now on have every answer close its connection."""
        self._clients.is_draining = True

    def stop_accepting(self) -> None:
        """Take those whom the kernel has connected already, and from now on nobody.

        Every answer closes its connection from now on.
        """
        self.begin_drain()
        for server in self._servers:
            server.shutdown()
            server.accept_backlog()

    def release_idle(self) -> None:
        """Close the connections of clients that are saying nothing.

        Whoever has only just come is given time for a first word. One that is about to ask for more
        loses its connection, and has to ask again.
        """
        self._clients.dismiss_idle(len(self._clients), came_by=time.monotonic() - FIRST_WORD)

    def wait_until_alone(self, timeout: float) -> None:
        """Wait until no client is connected, or time runs out."""
        self._clients.wait_until_below(1, timeout)

    def end(self, grace: float) -> None:
        """Finish what is under way within `grace` seconds, and cut the rest. Blocks."""
        self.release_idle()
        self.wait_until_alone(grace)
        self.cut()
        self.stop()

    def cut(self) -> int:
        """End all connections that are still open; returns how many there were."""
        return self._clients.cut()

    def stop(self) -> None:
        """Let the lanes end once they are done with what they do; does not wait."""
        for lane in self._lanes:
            lane.stop()

    def _welcome(self, client: Client) -> None:
        """Let a new client wait for its first word, or have a thread begin at once."""
        found = self._http.welcome(client)
        if isinstance(found, Next):
            self._clients.put_away(client, found)
        else:
            self._threads.put(found)

    def _go_on(self, exchange: Exchange, copier: Copier) -> None:
        """Serve from where the lane has stopped; in a thread that may wait."""
        following: Next = CLOSE
        try:
            following = self._http.wait(exchange, copier)
        except Exception:
            # Whatever went wrong, it costs this client and not the thread.
            log.exception("serving failed; the client's connection is closed")
        finally:
            self._clients.put_away(exchange.client, following)

    def _serve(self, client: Client) -> None:
        """Serve a client from its first request to its last, in a thread of its own: the road."""
        copier = Copier()
        with self._lock:
            self._pools.add(client.pool)
        try:
            found = self._http.welcome(client)
            while True:
                following = found if isinstance(found, Next) else self._http.wait(found, copier)
                if self._clients.put_away(client, following) is not PARK:
                    return
                found = self._wait_for_request(client)
        except Exception:
            log.exception("serving failed; the client's connection is closed")
            self._clients.put_away(client, CLOSE)
        finally:
            with self._lock:
                self._pools.discard(client.pool)
            client.pool.close()
            copier.close()

    def _wait_for_request(self, client: Client) -> Exchange | Next:
        """Wait until a client says something, and begin to read it. Blocks."""
        if client.stream.buffered and not client.head_since:
            return self._http.read(client)  # it has said more already
        parked, fd = self._clients.parked, client.stream.fd
        parked[fd] = client
        try:
            while (left := client.deadline - time.monotonic()) > 0:
                try:
                    client.stream.wait_until_readable(min(left, TIDY_INTERVAL))
                except StreamError:
                    self._tidy(client.pool)  # nothing has come yet: a time to look after it
                else:
                    break
            else:
                return self._http.expire(client)
        finally:
            parked.pop(fd, None)
        return self._http.read(client)  # by now nobody takes it for idle
