"""The program: arguments in, exit status out, and signals between.

    0  ended after finishing everything, or --check found a usable configuration
    1  could not serve, or a drain had to be cut short
    2  wrong arguments or an unusable configuration

Signals are turned into words on a queue, and the main thread does what they say: SIGTERM and SIGINT
drain (a second one cuts it short), SIGHUP reloads. Nothing is done inside a handler, because
it may interrupt any line of the main thread.
"""

from __future__ import annotations

import argparse
import logging
import queue
import signal
import sys
from pathlib import Path
from types import FrameType

import atlas_pkg
from atlas_pkg import logs
from atlas_pkg.config import load_config, parse_config, summary
from atlas_pkg.control.service import Service
from atlas_pkg.demo import Demo
from atlas_pkg.document import read_document
from atlas_pkg.errors import ConfigError, StartError

log = logging.getLogger("atlas")

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(argv: list[str] | None = None) -> int:
    """Run Atlas with `argv` (default: the command line); returns the exit status."""
    arguments = _build_parser().parse_args(argv)
    if arguments.demo:
        with Demo() as demo:
            return run(demo.path, arguments.log_level, demo)
    if arguments.check:
        return check(arguments.config)
    return run(arguments.config, arguments.log_level)


def check(path: Path) -> int:
    """Load and validate a configuration, and print what it would do."""
    try:
        config = load_config(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    print(summary(config))
    return EXIT_OK


def run(path: Path, log_level: str | None, demo: Demo | None = None) -> int:
    """Serve with the configuration at `path` until a signal ends it."""
    try:
        seen = read_document(path)
        config = parse_config(seen, path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    logs.set_up(log_level or config.log.level)
    words: queue.SimpleQueue[int] = queue.SimpleQueue()
    _listen_for_signals(words)
    service = Service(config, seen, log_level=log_level)
    try:
        service.start()
    except StartError as error:
        log.error("%s", error)
        return EXIT_FAILED
    if demo is not None:
        print(demo.invitation(service.port), flush=True)
    while (word := words.get()) not in _STOP_SIGNALS:
        log.info("SIGHUP: looking at %s", config.path)
        service.trigger_reload()
    log.info("%s: ending", signal.Signals(word).name)
    is_finished = service.drain(lambda: _has_stop_signal(words))
    return EXIT_OK if is_finished else EXIT_FAILED


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlas",
        description="An HTTP/1.1 load balancer.",
        epilog="Signals: SIGTERM and SIGINT finish what is under way and end; SIGHUP reloads.",
    )
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=Path("atlas.toml"),
        help="configuration file (default: atlas.toml in the current folder)",
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
    parser.add_argument("--version", action="version", version=f"atlas {atlas_pkg.__version__}")
    return parser


def _listen_for_signals(words: queue.SimpleQueue[int]) -> None:
    """Put every signal that concerns us on the queue."""

    def note(number: int, _: FrameType | None) -> None:
        words.put(number)

    for number in (*_STOP_SIGNALS, signal.SIGHUP):
        signal.signal(number, note)


def _has_stop_signal(words: queue.SimpleQueue[int]) -> bool:
    """Has a second signal come that asks us to end at once?"""
    while not words.empty():
        if words.get() in _STOP_SIGNALS:
            return True
    return False
