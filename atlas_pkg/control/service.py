"""The running load balancer: its parts wired together, and what can be done to it while it runs.

`start` opens everything, `reload` puts a new configuration in force, `drain` lets it end with
nothing lost. Signals and arguments are `main`'s; this room only knows verbs.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from atlas_pkg import logs
from atlas_pkg.balancing.balancer import Addresses
from atlas_pkg.balancing.health import HealthChecker, HealthState
from atlas_pkg.balancing.pool import Pool
from atlas_pkg.balancing.resolver import Resolver
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.diff import live_changes, restart_changes, shorten
from atlas_pkg.config.document import read_document
from atlas_pkg.config.loader import parse_config
from atlas_pkg.config.model import Config
from atlas_pkg.config.pages import list_pages
from atlas_pkg.config.summary import warnings_of
from atlas_pkg.control.channel import SharedText
from atlas_pkg.control.observing import Observing
from atlas_pkg.control.overrides import AS_CONFIGURED, NO_OVERRIDES, Overrides
from atlas_pkg.control.reload import ConfigWatcher
from atlas_pkg.control.report import DRAINING, SERVING, ProcessReport, Reporter
from atlas_pkg.errors import ConfigError
from atlas_pkg.net.certificates import Certificates, certificate_changes, read_certificates
from atlas_pkg.net.tls_client import TlsClient, read_tls_clients, tls_changes
from atlas_pkg.net.tunnel import Relay
from atlas_pkg.observing.observers import Observers
from atlas_pkg.observing.process_stats import is_usable
from atlas_pkg.observing.tracer import Asking
from atlas_pkg.proxying.forward import Proxy
from atlas_pkg.proxying.https_redirect import HttpsRedirect
from atlas_pkg.proxying.tcp import TcpProxy
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.connection import App
from atlas_pkg.serving.frontend import Frontend
from atlas_pkg.serving.generation import ConfigHolder, Generation
from atlas_pkg.serving.static import StaticFiles

log = logging.getLogger("atlas")

# How often the drain looks whether all is finished or somebody has lost patience.
DRAIN_TICK = 0.05

# How often it says what it is waiting for.
DRAIN_REPORT = 5.0

# How long a reload that was asked for is waited for: host names may have to be looked up.
RELOAD_PATIENCE = 5.0

# How often it is said that a certificate expires soon.
DAY = 86_400.0

# How long one who takes over waits for the first probes of its upstreams.
FIRST_PROBES = 5.0

# After connections have been cut, their exchanges have this long to end, so that the access log has
# them.
CUT_GRACE = 1.0


class Options(NamedTuple):
    """What the command line says, beside the configuration."""

    log_level: str | None = None  # instead of that in `[log]`
    explain: int = 0  # one in so many exchanges on standard output; 0 = none


class Setup(NamedTuple):
    """What a process begins with: the same for all processes that share a port."""

    config: Config
    seen: bytes  # the file as `config` was read from it
    options: Options
    secret: bytes  # signs sticky cookies, where the configuration has no secret of its own
    certificates: Certificates | None  # shared, so that one process can resume another's sessions
    tls_clients: Mapping[str, TlsClient]  # by upstream; kept if their files have gone since


class Service:
    """One Atlas process. Its methods are called from the main thread, unless said otherwise."""

    def __init__(self, setup: Setup, last_good: SharedText | None = None) -> None:
        """`last_good` holds the file that was last put in force in this place.

        A process that replaces another finds there what that one had put in force, and writes there
        what it puts in force itself.
        """
        config, seen, options, secret, certificates, tls_clients = setup
        self._log_level = options.log_level
        self._config = config  # as the file says; in force it is with the addresses of host names
        self._resolver = Resolver(on_change=self._follow_names)
        self._holder = ConfigHolder(
            Generation(config, secret=secret, certificates=certificates, tls_clients=tls_clients)
        )
        clients, observers, self._relay = Clients(), Observers(), Relay()
        app: App = Proxy(clients, self._relay)
        if config.listen.mode == "tcp":
            app = TcpProxy(clients, self._relay, observers)
        elif config.listen.mode == "static":
            app = StaticFiles()
        self._front = Frontend(
            self._holder,
            clients,
            app,
            observers,
            tidy=self._tidy,
            lanes=config.listen.lanes,
            max_threads=config.listen.max_threads,
            is_raw=config.listen.mode == "tcp",
        )
        self._redirect: HttpsRedirect | None = None
        if config.listen.http_redirect:
            self._redirect = HttpsRedirect(config, observers, tidy=self._tidy)
        self._observing = Observing(
            observers, is_counting=config.admin is not None, explain=options.explain
        )
        self._reporter = Reporter(self._front, self._observing)
        # Guards the change from one generation to the next: a new file and new addresses of host
        # names may come together. Taken before the two below.
        self._changing = threading.Lock()
        # Guards the overrides until they are carried out, and the swap of the balancer that carries
        # them out, so that what is newer wins. The balancer's lock is taken inside this one, never
        # the other way round.
        self._overriding = threading.Lock()
        self._overrides = NO_OVERRIDES
        self._health = HealthChecker(self._note_probe)
        self._has_ended = threading.Event()
        self._seen = seen
        # Those of the configuration that was read last, even if it was refused: it may have been
        # because of one of these, and be good once that file is.
        self._files = config.files
        self._last_good = last_good
        self._watcher = self._build_watcher()

    def catch_up(self) -> None:
        """Begin with what is in force by now. For a process that replaces another, before `start`.

        The configuration that it was given is as old as the supervisor. The other processes have
        followed the file since, as far as it was good.
        """
        found = _read_newest(self._config.path, self._last_good)
        data, config = found or (self._seen, self._config)
        shown = self._holder.generation.tls
        try:
            certificates = read_certificates(config, shown)
        except ConfigError:
            return  # the watcher will find it too, and say so
        if data != self._seen:
            self._seen, self._files = data, config.files
            self._watcher = self._build_watcher()
        if live := live_changes(self._config, config) + certificate_changes(shown, certificates):
            # As at a start: in a reload, upstreams that are new wait for their first probe.
            self._put_in_force(config, data, live, certificates, is_start=True)

    def start(self, listeners: Sequence[socket.socket], *, takes_over: bool = False) -> None:
        """Begin to serve the clients of `listeners`, which are taken over.

        One that `takes_over` from another process probes all upstreams once before: the other one
        knows which of them are up. Raises `StartError` where the access log cannot be opened.
        """
        self._observing.start(self._config)
        self._resolver.look_up(self._config.upstreams)
        config = self._resolver.expand(self._config)
        if config != self._holder.generation.config:
            old = self._holder.generation
            self._holder.swap(
                Generation(
                    config,
                    secret=old.secret,
                    certificates=old.tls,
                    tls_clients=old.tls_clients,
                )
            )
        generation = self._holder.generation
        self._resolver.watch(self._config.upstreams, generation.upstreams)
        checks = generation.health_checks()
        self._health.watch(checks, awaiting=[each for each, _ in checks] if takes_over else ())
        self._health.start()
        self._relay.start()
        if takes_over:
            self._health.wait_for_first_probes(FIRST_PROBES)
        port = config.listen.http_redirect
        redirecting = [sock for sock in listeners if sock.getsockname()[1] == port]
        serving = [sock for sock in listeners if sock not in redirecting]
        self._front.start(serving)
        if self._redirect is not None:
            self._redirect.start(redirecting, serving[0].getsockname()[1])
        self._reporter.state = SERVING
        self._watcher.start()
        threading.Thread(target=self._warn_daily, name="calendar", daemon=True).start()

    def reload_now(self) -> None:
        """Open the access log anew, and have the configuration file looked at, changed or not.

        Blocks until that is done, for a few seconds at most.
        """
        self._observing.follow(self._holder.generation.config, reopen=True)
        self._watcher.trigger()
        self._watcher.wait(RELOAD_PATIENCE)

    def is_serving(self) -> bool:
        """Are clients served? False where a thread that many depend on is stuck."""
        return self._front.is_serving()

    def status(self) -> str:
        """Say in a line how this process is."""
        report = self.report(explains=False)
        upstreams = report["upstreams"]
        usable = sum(map(is_usable, upstreams))
        return (
            f"serving: {report['connections']} clients, {usable} of {len(upstreams)} upstreams "
            f"usable, configuration {report['generation']}"
        )

    def report(self, *, explains: bool) -> ProcessReport:
        """Say how this process is; `explains`: with the last exchanges. Thread-safe."""
        return self._reporter.report(self._holder.generation, explains=explains)

    def follow(self, overrides: Overrides) -> None:
        """Do what an administrator wants of the upstreams and of us, where that is new.

        Thread-safe, and it does not matter in which order they come.
        """
        with self._overriding:
            if overrides.version <= self._overrides.version:
                return
            before, self._overrides = self._overrides.explain, overrides
            self._override()
            explain = overrides.explain
            if explain.one_in != before.one_in:
                self._observing.ask(Asking(one_in=explain.one_in))
            if explain.orders != before.orders:
                self._observing.ask(Asking(next_from=explain.next_from))

    def _override(self) -> None:
        """Carry out the overrides. Caller holds the lock that guards them."""
        groups = self._holder.generation.groups
        for upstream in self._holder.generation.upstreams:
            balancer = groups[upstream.group].balancer
            override = self._overrides.upstreams.get(upstream.identity, AS_CONFIGURED)
            if upstream.admin_state is not override.state:
                balancer.set_admin_state(upstream, override.state)
            if upstream.weight_override != override.weight:
                balancer.set_weight(upstream, override.weight)

    def reload(self, data: bytes) -> None:
        """Put the configuration in `data` in force, or keep the present one and log why.

        Called on the watcher's thread.
        """
        old = self._holder.generation
        log.debug("the configuration has %d bytes now", len(data))
        try:
            config = parse_config(data, self._config.path)
            self._files = config.files
            certificates = read_certificates(config, old.tls)
            tls_clients = read_tls_clients(config, old.tls_clients)
        except ConfigError as error:
            log.error("Configuration refused, the one in force stays:\n%s", error)
            self._reporter.reloads.note(old.number, str(error))
            return
        restart = restart_changes(self._config, config)
        live = (
            *live_changes(self._config, config),
            *certificate_changes(old.tls, certificates),
            *tls_changes(old.tls_clients, tls_clients),
        )
        if restart:
            log.warning("needs a restart to take effect: %s", ", ".join(restart))
        if not live:
            level = logging.INFO if self._watcher.has_reason else logging.DEBUG
            log.log(level, "configuration unchanged%s", " but for that" if restart else "")
            if self._reporter.reloads.settle(old.number):
                log.info("the file that was refused is gone: it holds what is in force")
            return
        log_warnings(config, certificates)
        number = self._put_in_force(config, data, live, certificates)
        self._reporter.reloads.note(number)

    def _put_in_force(
        self,
        config: Config,
        data: bytes,
        changes: Sequence[str],
        certificates: Certificates | None,
        *,
        is_start: bool = False,
    ) -> int:
        """Do as a new file says; returns the number of its generation."""
        if self._last_good is not None:
            self._last_good.write(data)
        if self._log_level is None:
            logs.set_level(config.log.level)
        addresses = self._resolver.look_up(config.upstreams)
        with self._changing:
            self._config = config
            old = self._holder.generation
            expanded = self._resolver.expand(config)
            generation = Generation(
                expanded,
                None if is_start else old,
                secret=old.secret,
                certificates=certificates,
                tls_clients=old.tls_clients,
            )
            self._swap(generation, addresses)
        self._observing.follow(config)
        if self._redirect is not None:
            self._redirect.follow(config)
        log.info(
            "Configuration hot-reloaded (generation %d): %s", generation.number, "; ".join(changes)
        )
        return generation.number

    def _follow_names(self) -> None:
        """Have servers come and go as host names lead elsewhere. On the resolver's thread."""
        with self._changing:
            old = self._holder.generation
            config = self._resolver.expand(self._config)
            if config == old.config:
                return
            self._swap(Generation(config, old, certificates=old.tls, tls_clients=old.tls_clients))
        log.info("host names lead elsewhere: %s", "; ".join(live_changes(old.config, config)))

    def _swap(self, generation: Generation, addresses: Addresses = MappingProxyType({})) -> None:
        """Put a generation in force. Caller holds the lock that guards the change."""
        with self._overriding:
            new = self._holder.swap(generation, addresses)
            self._override()
        self._resolver.watch(self._config.upstreams, generation.upstreams)
        self._health.watch(generation.health_checks(), awaiting=new)

    def _note_probe(self, upstream: Upstream, state: HealthState) -> None:
        """Pass a probe's result on. Called on the health checker's threads."""
        group = self._holder.generation.groups.get(upstream.group)
        if group is not None:
            group.balancer.note_probe(upstream, state)

    def drain(self, is_cut: Callable[[], bool], *, has_successor: bool = False) -> bool:
        """Stop accepting, finish what is under way; returns whether all of it was finished.

        Ends early when `is_cut` says so. Blocks for `timeouts.pre_drain` and then for
        `timeouts.drain` at most. With a successor no client is to notice: an idle connection stays
        open until then, since a request may be on its way over it. That is answered, and the client
        told to close, so its next request goes to the successor.
        """
        timeouts = self._holder.generation.config.timeouts
        self._reporter.state = DRAINING
        front = self._front
        front.begin_drain()
        if timeouts.pre_drain and not has_successor:
            log.info("draining in %g s, still accepting", timeouts.pre_drain)
            _wait_until(is_cut, timeouts.pre_drain)
        deadline = time.monotonic() + timeouts.drain
        front.stop_accepting()
        if self._redirect is not None:
            self._redirect.stop_accepting()
        log.info(
            "draining: no new clients, %d connected, %g s at most", front.connected, timeouts.drain
        )
        self._watcher.stop()
        next_report = time.monotonic() + DRAIN_REPORT

        def has_ended() -> bool:
            nonlocal next_report
            if not has_successor:
                front.release_idle()  # again each time: a client may just have been parked again
            if time.monotonic() >= next_report:
                next_report += DRAIN_REPORT
                log.info("draining: %d connections left", front.connected)
            return not front.connected or is_cut()

        _wait_until(has_ended, deadline - time.monotonic())
        if has_successor:
            front.release_idle()
            front.wait_until_alone(CUT_GRACE)
        if cut := front.cut():
            front.wait_until_alone(CUT_GRACE)
        front.stop()
        if self._redirect is not None:
            self._redirect.stop()
        self._relay.stop()
        self._observing.close()
        self._resolver.stop()
        self._health.stop()
        self._has_ended.set()
        if cut:
            log.warning("drained: %d connections had to be cut", cut)
        else:
            log.info("drained: all requests were finished")
        return not cut

    def _warn_daily(self) -> None:
        """Say every day which certificates expire soon, until the drain."""
        while not self._has_ended.wait(DAY):
            certificates = self._holder.generation.tls
            for warning in certificates.warnings(time.time()) if certificates else ():
                log.warning("%s", warning)

    def _build_watcher(self) -> ConfigWatcher:
        return ConfigWatcher(
            self._config.path, self.reload, seen=self._seen, files=self._list_files
        )

    def _list_files(self) -> list[Path]:
        """What belongs to the configuration beside its file."""
        files, folder = [*self._files], self._config.page_folder
        if folder is not None:
            files.append(folder)
            with contextlib.suppress(OSError):  # it may be missing today
                files += list_pages(folder)
        return files

    def _tidy(self, pool: Pool) -> None:
        """Look after idle upstream connections."""
        generation = self._holder.generation
        config = generation.config
        pool.close_expired(config.pool, config.timeouts.upstream_idle, generation.upstreams)


def _read_newest(path: Path, last_good: SharedText | None) -> tuple[bytes, Config] | None:
    """The file or, where it is refused, the last one that was in force; None if there is none."""
    try:
        data = read_document(path)
        return data, parse_config(data, path)
    except ConfigError:
        pass  # the watcher will find it too, and say so
    try:
        data = last_good.read() if last_good is not None else b""
        return data, parse_config(data, path)
    except ConfigError:
        return None


def log_warnings(config: Config, certificates: Certificates | None) -> None:
    """Tell what is allowed and yet hardly meant, and which certificates expire soon."""
    warnings = warnings_of(config)
    if certificates is not None:
        warnings += certificates.warnings(time.time())
    if warnings:
        log.warning("%s", shorten(warnings, "; "))


def _wait_until(condition: Callable[[], bool], timeout: float) -> None:
    """Wait until `condition` holds or time runs out."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(DRAIN_TICK)
