"""The program: arguments in, exit status out, and signals between.

    0  ended after finishing everything, or --check found a usable configuration
    1  could not serve, or a drain had to be cut short
    2  wrong arguments or an unusable configuration

The main thread waits for signals and does what they say: SIGTERM and SIGINT drain (a second one
cuts it short), SIGHUP reloads, SIGUSR1 logs the state of every upstream, SIGUSR2 has a new Atlas
take over (`control/takeover.py`). They are blocked in all threads and have no handlers. A handler
may interrupt any line of the main thread, and Python runs it only when that thread wakes up: the
kernel is free to tell another thread of two signals that come together, and both would be lost.
A signal that comes while Atlas starts is heard afterwards. A timer's signal says that time has
passed.

With several processes (`listen.workers`) the supervisor waits for signals in the same way, and
tells the worker processes what they mean.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import atlas_pkg
from atlas_pkg import logs
from atlas_pkg.admin.server import AdminPort, serve_admin
from atlas_pkg.admin.stats import About
from atlas_pkg.admin.text import show_upstreams
from atlas_pkg.balancing.balancer import BalancerSettings
from atlas_pkg.balancing.preview import preview
from atlas_pkg.config.document import read_document
from atlas_pkg.config.loader import load_config, parse_config
from atlas_pkg.config.model import Admin, Config
from atlas_pkg.config.rules import show_endpoint
from atlas_pkg.config.summary import summary
from atlas_pkg.control.channel import open_channel
from atlas_pkg.control.observing import check_access_log
from atlas_pkg.control.overrides import OverridesHolder
from atlas_pkg.control.process import (
    allow_many_descriptors,
    bury_orphans,
    collect_rarely,
    count_processes,
    hold_to_one_cpu,
    share_one_heap,
)
from atlas_pkg.control.report import ProcessReport
from atlas_pkg.control.service import Options, Service, Setup, log_warnings
from atlas_pkg.control.supervisor import STOP_SIGNALS, TICK, Supervisor
from atlas_pkg.control.systemd import Notifier
from atlas_pkg.control.takeover import Heritage, Listeners, Takeover, read_heritage
from atlas_pkg.control.worker_process import build_question, build_worker_life, recall_overrides
from atlas_pkg.demo import Demo
from atlas_pkg.errors import ConfigError, StartError
from atlas_pkg.net.certificates import Certificates, read_certificates
from atlas_pkg.net.listener import open_listener, open_listeners
from atlas_pkg.net.tls_client import read_tls_clients
from atlas_pkg.observing.tracer import MOST_ONE_IN

log = logging.getLogger("atlas")

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

_SIGNALS = STOP_SIGNALS | {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM}


def main(argv: list[str] | None = None) -> int:
    """Run Atlas with `argv` (default: the command line); returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _build_parser()
    if "-t" in argv or (argv[:1] == ["check"] and len(argv) == 2):  # as nginx and Caddy have it
        parser.error("to check a configuration: --check FILE")
    arguments = parser.parse_args(argv)
    if arguments.file and arguments.config:
        parser.error("the configuration file is given twice")
    path = arguments.file or arguments.config or Path("atlas.toml")
    if arguments.check:
        return check(path)
    options = Options(arguments.log_level, arguments.explain)
    # Threads inherit it, so this comes before any is started.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if arguments.demo:
        with Demo() as demo:
            return run(demo.path, options, demo)
    return run(path, options)


def check(path: Path) -> int:
    """Load and validate a configuration, and print what it would do."""
    try:
        config = load_config(path)
        certificates = read_certificates(config)
        tls_clients = read_tls_clients(config)
        check_access_log(config, may_create=False)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except StartError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return EXIT_FAILED
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # it may not know all letters
    print(summary(config))
    if certificates is not None:
        print("\n".join(["certificates:", *certificates.describe()]))
    for group in config.group_names:
        if told := preview(BalancerSettings.of(config, group, tls_clients)):
            print("\n".join([*([f"group {group}"] if len(config.group_names) > 1 else ()), *told]))
    return EXIT_OK


def run(path: Path, options: Options, demo: Demo | None = None) -> int:
    """Serve with the configuration at `path` until a signal ends it."""
    try:
        seen = read_document(path)
        config = parse_config(seen, path)
        certificates = read_certificates(config)
        tls_clients = read_tls_clients(config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    logs.set_up(options.log_level or config.log.level)
    listen = config.listen
    count = count_processes(listen.workers)
    listeners: list[socket.socket] = []
    try:
        heritage = read_heritage()
        check_access_log(config)
        listeners = open_listeners(
            listen.address, listen.port, count, use="listen", inherited=heritage.listeners
        )
        port = listeners[0].getsockname()[1]
        if listen.http_redirect:
            listeners += open_listeners(
                listen.address,
                listen.http_redirect,
                count,
                use="http_redirect",
                inherited=heritage.listeners,
            )
        admin = _open_admin(config, port, count, heritage)
    except StartError as error:
        log.error("%s", error)
        for sock in listeners:
            sock.close()
        return EXIT_FAILED
    for where in heritage.listeners.close():
        log.warning("%s is open but not in the configuration: closed", where)
    _log_start(config, port, certificates)
    if admin is not None:
        where = show_endpoint(admin.settings.address, admin.listener.getsockname()[1])
        log.info("admin address http://%s", where)
    allow_many_descriptors(listen)
    share_one_heap()
    collect_rarely()
    if demo is not None:
        print(demo.invitation(port), flush=True)
    serve = _serve_alone if count == 1 else _serve_with_workers
    ports = _Ports(listeners, listen.http_redirect, admin)
    setup = Setup(config, seen, options, heritage.secret, certificates, tls_clients)
    is_finished = serve(ports, setup, heritage)
    return EXIT_OK if is_finished else EXIT_FAILED


def _log_start(config: Config, port: int, certificates: Certificates | None) -> None:
    """Tell what is started, once for all processes."""
    listen = config.listen
    log.info("Atlas %s, mode %s, configuration %s", atlas_pkg.__version__, listen.mode, config.path)
    for upstream in config.upstreams:
        log.info("upstream %s at %s, weight %d", upstream.label, upstream.endpoint, upstream.weight)
    log_warnings(config, certificates)
    for number, route in enumerate(config.routes, 1):
        log.info("route %d: %s", number, route)
    if listen.mode == "static":
        log.info("files of %s", os.fsdecode(config.root))
    else:
        log.info("strategy %s", config.routing.strategy)
    for group, routing in config.groups:
        log.info("strategy of group %s: %s", group, routing.strategy)
    schemes = ("tcp", "tls") if listen.mode == "tcp" else ("http", "https")
    scheme = schemes[listen.tls is not None]
    log.info("listening on %s://%s", scheme, show_endpoint(listen.address, port))
    if listen.http_redirect:
        where = show_endpoint(listen.address, listen.http_redirect)
        log.info("http://%s leads there", where)


class _AdminParts(NamedTuple):
    """What the admin address is made of, whichever process serves it."""

    settings: Admin
    listener: socket.socket
    about: About


class _Ports(NamedTuple):
    """Where clients connect."""

    listeners: list[socket.socket]
    http_redirect: int  # the port of those of them that send clients on
    admin: _AdminParts | None

    def named(self) -> Listeners:
        """All listening sockets, each with what it is for."""
        named = [
            ("listen" if sock.getsockname()[1] != self.http_redirect else "http_redirect", sock)
            for sock in self.listeners
        ]
        return [*named, ("admin", self.admin.listener)] if self.admin is not None else named


def _open_admin(
    config: Config, port: int, processes: int, heritage: Heritage
) -> _AdminParts | None:
    """Open the admin address, if there is to be one; raises `StartError`."""
    settings = config.admin
    if settings is None:
        return None
    try:
        listener = open_listener(
            settings.address, settings.port, use="admin", inherited=heritage.listeners
        )
    except StartError as error:
        raise StartError(f"admin: {error}") from None
    about = About(
        mode=config.listen.mode,
        listen=[show_endpoint(config.listen.address, port)],
        config_path=str(config.path.absolute()),
        processes=processes,
    )
    return _AdminParts(settings, listener, about)


def _serve_alone(ports: _Ports, setup: Setup, heritage: Heritage) -> bool:
    """Serve in this process until a signal ends it; returns whether all was finished."""
    listeners, _, admin = ports
    overrides = OverridesHolder(heritage.overrides)
    takeover = Takeover(ports.named(), heritage.secret, overrides.current)
    if setup.config.listen.pin:
        hold_to_one_cpu()
    bury_orphans()
    logs.write_in_background()
    service = Service(setup)
    port = None
    if admin is not None:

        def collect(*, explains: bool) -> dict[int, ProcessReport]:
            service.follow(overrides.current())
            return {1: service.report(explains=explains)}

        port = AdminPort(admin.settings, admin.about, collect, overrides)
        port.start(admin.listener)
        service.follow(overrides.current())
    service.start(listeners, takes_over=heritage.is_takeover)
    notifier = Notifier()
    notifier.serving(service.status(), is_told=heritage.tell_ready())
    signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    while (word := signal.sigwait(_SIGNALS)) not in STOP_SIGNALS:
        if word == signal.SIGUSR1:
            _log_upstreams(service)
        elif word == signal.SIGUSR2:
            takeover.begin()
        elif word == signal.SIGHUP:
            log.info("SIGHUP: looking at %s", setup.config.path)
            notifier.reloading()
            service.reload_now()
            notifier.ready(service.status())
        elif takeover.is_done():
            notifier.hand_over(takeover.successor)
            if port is not None:
                port.stop_accepting()  # who asks from now on, asks about the successor
            break
        else:
            notifier.tick(service.is_serving, service.status)
    else:
        log.info("%s: ending", signal.Signals(word).name)
        takeover.abandon()
        notifier.stopping()
    is_finished = service.drain(_has_stop_signal, has_successor=word not in STOP_SIGNALS)
    if port is not None:
        port.stop()
    return is_finished


def _serve_with_workers(ports: _Ports, setup: Setup, heritage: Heritage) -> bool:
    """Serve in several processes; otherwise like `_serve_alone`."""
    listeners, _, admin = ports
    count = count_processes(setup.config.listen.workers)
    channels = [open_channel() for _ in range(count)] if admin else []
    ours, theirs = [end for end, _ in channels], [end for _, end in channels]
    for end in ours:
        end.say({"number": 0, "question": build_question(heritage.overrides, explains=False)})
    life = build_worker_life(
        setup,
        count=count,
        takes_over=heritage.is_takeover,
        ends=theirs,
        dump=_log_upstreams,
    )
    attendant = None
    if admin is not None:
        attendant = ("admin", admin.listener, serve_admin(admin.settings, admin.about, ours))
    is_finished = Supervisor(
        count,
        listeners,
        life,
        attendant=attendant,
        takeover=Takeover(ports.named(), heritage.secret, lambda: recall_overrides(ours)),
        tell_ready=heritage.tell_ready,
    ).run()
    for end in (*ours, *theirs):
        end.bell.close()
    return is_finished


def _log_upstreams(service: Service) -> None:
    """Log how this process finds its upstreams."""
    for line in show_upstreams(service.report(explains=False)["upstreams"]):
        log.info("%s", line)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlas",
        description="An HTTP/1.1 load balancer.",
        epilog="Signals: SIGTERM and SIGINT finish what is under way and end; SIGHUP reloads; "
        "SIGUSR1 logs the state of every upstream; SIGUSR2 has the program started anew take over.",
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="configuration file (default: atlas.toml in the current folder)",
    )
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="another way to name that file"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--check", action="store_true", help="validate the configuration, print a summary and exit"
    )
    what.add_argument(
        "--demo", action="store_true", help="run with three small upstreams of its own"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="how much to log, whatever the configuration says",
    )
    parser.add_argument(
        "--explain",
        nargs="?",
        type=_read_count,
        const=1,
        default=0,
        metavar="N",
        help="print why requests went where they went: each one, or one in N (--explain=N)",
    )
    parser.add_argument("--version", action="version", version=f"atlas {atlas_pkg.__version__}")
    return parser


def _read_count(text: str) -> int:
    """Read N of --explain=N. A file's name that comes behind --explain lands here, too."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_ONE_IN:
        raise argparse.ArgumentTypeError(f"N is a number from 1 to {MOST_ONE_IN}, not {text!r}")
    return int(text)


def _has_stop_signal() -> bool:
    """Has a second signal come that asks us to end at once? It stays pending, as a fact."""
    return not STOP_SIGNALS.isdisjoint(signal.sigpending())
