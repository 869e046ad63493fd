"""The admin address: a frontend of its own, with the admin app and what it shows.

A process that serves alone has it in threads of its own (`AdminPort`). Several worker processes
have an admin process beside them (`serve_admin`), which serves no clients: so the supervisor keeps
its one thread, and the page answers while they are busy. It asks them through channels, where
what an administrator has said stays too, so it may itself die and be replaced.

Few may talk to this port, and not for long: it has few threads and short patience of its own, and
nothing of `[timeouts]` and `[limits]` applies to it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from atlas_pkg import logs
from atlas_pkg.admin.aggregate import Aggregate, Collect
from atlas_pkg.admin.app import AdminApp
from atlas_pkg.admin.stats import About
from atlas_pkg.balancing.pool import Pool
from atlas_pkg.config.model import Admin, Config, Listen, Timeouts
from atlas_pkg.control.channel import PATIENCE, Asker, End
from atlas_pkg.control.overrides import OverridesHolder
from atlas_pkg.control.report import ProcessReport
from atlas_pkg.control.supervisor import Order, Orders, Serve
from atlas_pkg.control.worker_process import build_question, recall_overrides
from atlas_pkg.observing.observers import Observers
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.frontend import Frontend
from atlas_pkg.serving.generation import ConfigHolder, Generation

log = logging.getLogger("atlas.admin")

MAX_THREADS = 4
MAX_CONNECTIONS = 256

# How long answers under way are waited for at the end: one may wait for processes that have ended.
GRACE = PATIENCE + 1.0

# A page that refreshes keeps its connection; whoever does not read or write is cut soon.
_TIMEOUTS = Timeouts(client_head=5.0, client_body=5.0, client_write=5.0, client_idle=30.0)


class AdminPort:
    """The admin address, served by threads of this process."""

    def __init__(
        self, settings: Admin, about: About, collect: Collect, overrides: OverridesHolder
    ) -> None:
        self._aggregate = Aggregate(about, collect, overrides)
        names = (settings.address, *settings.hosts)
        app = AdminApp(self._aggregate, token=settings.token, names=names)
        # A configuration without upstreams: the HTTP loop wants one for its timeouts and limits.
        config = Config(
            Path(about.config_path),
            listen=Listen(max_connections=MAX_CONNECTIONS),
            timeouts=_TIMEOUTS,
        )
        holder = ConfigHolder(Generation(config))
        self._front = Frontend(
            holder, Clients(), app, Observers(), tidy=_keep, lanes=1, max_threads=MAX_THREADS
        )

    def start(self, listener: socket.socket) -> None:
        """Begin to serve the clients of `listener`, which is taken over."""
        self._aggregate.start()
        self._front.start([listener])

    def stop_accepting(self) -> None:
        """Answer those who are connected once more, and nobody else: there is a successor."""
        self._front.stop_accepting()

    def stop(self) -> None:
        """End, and cut whoever does not let go in time. Blocks."""
        self._aggregate.stop()
        self.stop_accepting()
        self._front.end(GRACE)


def serve_admin(settings: Admin, about: About, ends: Sequence[End]) -> Serve:
    """The life of the admin process, for the supervisor; `ends` lead to the worker processes."""

    def serve(_: int, listeners: Sequence[socket.socket], orders: Orders) -> bool:
        logs.set_process("admin")
        logs.write_in_background()
        overrides = OverridesHolder(recall_overrides(ends))
        asker = Asker(ends)

        def collect(*, explains: bool) -> dict[int, ProcessReport]:
            reports = asker.ask(build_question(overrides.current(), explains=explains))
            for report in reports.values():
                logs.set_level(report["log_level"])  # they follow the configuration, we follow them
            return reports

        port = AdminPort(settings, about, collect, overrides)
        port.start(listeners[0])
        orders.say_ready()
        # Reloads and dumps are for those who serve.
        while (order := orders.wait()) not in (Order.DRAIN, Order.CUT):
            if order is Order.HAND_OVER:
                port.stop_accepting()
        port.stop()
        return True

    return serve


def _keep(_: Pool) -> None:
    """This port has no upstream connections, so there is nothing to look after."""
