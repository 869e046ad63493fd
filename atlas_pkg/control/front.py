"""One port with all that serves its clients: the accepting thread, the gate, workers and an app.

The proxy has a front, and so has the admin address: the same HTTP loop with another app. A front is
made first, then started with a listening socket. It ends in steps, since a drain wants to do things
between them: `stop_accepting`, `release_idle` as often as needed, `cut`, `stop`.

Not done here: what the app does, and how long a drain waits.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.observing.observers import Observers
from atlas_pkg.serving.clients import ClientConnection, Clients
from atlas_pkg.serving.connection import App, HttpService
from atlas_pkg.serving.exchange import Worker
from atlas_pkg.serving.gates import open_gate
from atlas_pkg.serving.generation import ConfigHolder
from atlas_pkg.serving.server import POLL_INTERVAL, AtlasServer
from atlas_pkg.serving.turns import Turns
from atlas_pkg.serving.workers import Workers


class Front:
    """Serves the clients of one port with one app."""

    def __init__(
        self,
        holder: ConfigHolder,
        clients: Clients,
        app: App,
        *,
        tidy: Callable[[Worker], None],
        max_threads: int,
    ) -> None:
        """`tidy` is called by a worker with nothing to do."""
        self._holder = holder
        self._clients = clients
        self._gate = open_gate()
        # Are told of the exchanges here.
        self.observers = Observers()
        self._http = HttpService(holder, self._gate, clients, app, self.observers)
        self._workers = Workers(
            self._gate,
            Turns(self._gate, self._http.serve, self._give_up, max_threads, self.observers),
            on_expired=self._http.expire,
            tidy=tidy,
            max_threads=max_threads,
        )
        self._server: AtlasServer | None = None

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def start(self, listener: socket.socket) -> None:
        """Begin to serve the clients of `listener`, which is taken over."""
        self._workers.start()
        self._server = AtlasServer(listener, self._gate, self._clients, self._holder)
        threading.Thread(
            target=self._server.serve_forever, args=(POLL_INTERVAL,), name="accept", daemon=True
        ).start()

    def idle_connections(self) -> dict[Upstream, int]:
        """How many upstream connections the workers keep at rest."""
        return self._workers.idle_connections()

    def stop_accepting(self) -> None:
        """Take those whom the kernel has connected already, and from now on nobody."""
        if self._server is not None:
            self._clients.is_draining = True
            self._server.shutdown()
            self._server.accept_backlog()

    def release_idle(self) -> None:
        """Close the connections of clients that are saying nothing."""
        for client in self._gate.take_idle():
            self._clients.close(client.stream)

    def wait_until_alone(self, timeout: float) -> None:
        """Wait until no client is connected, or time runs out."""
        self._clients.wait_until_below(1, timeout)

    def cut(self) -> int:
        """End all connections that are still open; returns how many there were."""
        return self._clients.cut()

    def stop(self) -> None:
        """Let all threads end once they are done with what they do; does not wait."""
        self._workers.stop()

    def _give_up(self, client: ClientConnection) -> None:
        """Whatever went wrong with it, it does not stay in the count of clients."""
        self._clients.close(client.stream)
