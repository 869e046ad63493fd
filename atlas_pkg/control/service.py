"""The running load balancer: its parts wired together, and what can be done to it while it runs.

`start` opens everything, `reload` puts a new configuration in force, `drain` lets it end with
nothing lost. Signals and arguments are `main`'s; this room only knows verbs.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import atlas_pkg
from atlas_pkg import logs
from atlas_pkg.balancing.resolution import Resolver
from atlas_pkg.config import Config, live_changes, parse_config, restart_changes
from atlas_pkg.control.reload import ConfigWatcher
from atlas_pkg.errors import ConfigError
from atlas_pkg.net.listener import open_listener
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.connection import HttpService
from atlas_pkg.serving.exchange import Worker
from atlas_pkg.serving.gate import open_gate
from atlas_pkg.serving.generation import ConfigHolder, Generation
from atlas_pkg.serving.proxy import Proxy
from atlas_pkg.serving.server import POLL_INTERVAL, AtlasServer
from atlas_pkg.serving.tunnels import Tunnels
from atlas_pkg.serving.workers import Workers
from atlas_pkg.wording import show_endpoint

log = logging.getLogger("atlas")

# How often the drain looks whether all is finished or somebody has lost patience.
DRAIN_TICK = 0.05

# How often it says what it is waiting for.
DRAIN_REPORT = 5.0


class Service:
    """One Atlas process. Its methods are called from the main thread, unless said otherwise."""

    def __init__(self, config: Config, seen: bytes, *, log_level: str | None = None) -> None:
        """`seen` is the file as `config` was read from it; `log_level` overrides `[log]`."""
        self._log_level = log_level
        self._resolver = Resolver()
        self._holder = ConfigHolder(Generation(config))
        self._clients = Clients()
        self._gate = open_gate()
        tunnels = Tunnels(self._clients.close)
        self._http = HttpService(self._holder, self._gate, self._clients, Proxy(tunnels).forward)
        self._workers = Workers(
            self._gate,
            self._http.serve,
            on_expired=self._http.expire,
            tidy=self._tidy,
            max_threads=config.listen.max_threads,
        )
        self._watcher = ConfigWatcher(Path(config.path), self.reload, seen=seen)
        self._server: AtlasServer | None = None
        self._accepting: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        """Begin to serve; raises `StartError` when the listening socket cannot be opened."""
        config = self._holder.current().config
        listener = open_listener(config.listen.address, config.listen.port)
        self.port = listener.getsockname()[1]
        self._resolver.watch(self._holder.current().balancer.upstreams)
        self._log_start(config)
        if config.listen.pin:
            _pin_to_one_cpu()
        self._workers.start()
        self._server = AtlasServer(listener, self._gate, self._clients, self._holder)
        self._accepting = threading.Thread(
            target=self._server.serve_forever, args=(POLL_INTERVAL,), name="accept", daemon=True
        )
        self._accepting.start()
        self._watcher.start()

    def trigger_reload(self) -> None:
        """Have the configuration file looked at now, changed or not."""
        self._watcher.trigger()

    def reload(self, data: bytes) -> None:
        """Put the configuration in `data` in force, or keep the present one and log why.

        Called on the watcher's thread.
        """
        old = self._holder.current()
        try:
            config = parse_config(data, Path(old.config.path))
        except ConfigError as error:
            log.error("Configuration refused, the one in force stays:\n%s", error)
            return
        restart, live = restart_changes(old.config, config), live_changes(old.config, config)
        if restart:
            log.warning("needs a restart to take effect: %s", ", ".join(restart))
        if not live:
            log.info("configuration unchanged%s", " but for that" if restart else "")
            return
        generation = Generation(config, old)
        self._resolver.watch(generation.balancer.upstreams)
        if self._log_level is None:
            logs.set_level(config.log.level)
        self._holder.swap(generation)
        log.info(
            "Configuration hot-reloaded (generation %d): %s", generation.number, "; ".join(live)
        )

    def drain(self, is_cut: Callable[[], bool]) -> bool:
        """Stop accepting, finish what is under way; returns whether all of it was finished.

        Ends early when `is_cut` says so. Blocks for `timeouts.pre_drain` and then for
        `timeouts.drain` at most.
        """
        timeouts = self._holder.current().config.timeouts
        if timeouts.pre_drain:
            log.info("draining in %g s, still accepting", timeouts.pre_drain)
            _wait_until(is_cut, timeouts.pre_drain)
        log.info(
            "draining: no new clients, %d connected, %g s at most",
            len(self._clients),
            timeouts.drain,
        )
        self._watcher.stop()
        self._stop_accepting()
        deadline = time.monotonic() + timeouts.drain
        next_report = time.monotonic() + DRAIN_REPORT

        def has_ended() -> bool:
            nonlocal next_report
            # Again each time: a client may just have been put back at the gate.
            for client in self._gate.take_idle():
                self._clients.close(client.stream)
            if time.monotonic() >= next_report:
                next_report += DRAIN_REPORT
                log.info("draining: %d connections left", len(self._clients))
            return not len(self._clients) or is_cut()

        _wait_until(has_ended, deadline - time.monotonic())
        cut = self._clients.cut()
        self._workers.stop()
        self._resolver.stop()
        if cut:
            log.warning("drained: %d connections had to be cut", cut)
        else:
            log.info("drained: all requests were finished")
        return not cut

    def _stop_accepting(self) -> None:
        if self._server is not None:
            self._clients.is_draining = True
            self._server.shutdown()
            self._server.accept_backlog()

    def _tidy(self, worker: Worker) -> None:
        """Let a worker with nothing to do look after its idle upstream connections."""
        generation = self._holder.current()
        config = generation.config
        worker.pool.close_expired(
            config.pool, config.timeouts.upstream_idle, generation.balancer.upstreams
        )

    def _log_start(self, config: Config) -> None:
        log.info(
            "Atlas %s, mode %s, configuration %s",
            atlas_pkg.__version__,
            config.listen.mode,
            config.path,
        )
        for upstream in config.upstreams:
            where = show_endpoint(upstream.address, upstream.port)
            log.info("upstream %s at %s, weight %d", upstream.name, where, upstream.weight)
        if not config.upstreams:
            log.warning("no upstreams are configured: every request is answered 503")
        log.info("strategy %s", config.routing.strategy)
        log.info("listening on http://%s", show_endpoint(config.listen.address, self.port))


def _pin_to_one_cpu() -> None:
    """Hold this process to one of the CPUs that it may use, where the system can.

    Threads under one interpreter lock are slower on two CPUs than on one: the lock and the caches
    wander. Threads inherit this, so it comes before they are started.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


def _wait_until(condition: Callable[[], bool], timeout: float) -> None:
    """Wait until `condition` holds or time runs out."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(DRAIN_TICK)
