"""The benchmark: `python3 -m tests.bench`, Atlas beside nginx and HAProxy on this machine.

Metric by metric and round by round the rivals are measured in turn, so that none has the quiet hour
for itself. Wanted are Linux and `wrk`; a rival that is not installed is left out. Everything runs
on 127.0.0.1, on free ports, in a folder that goes away with it, and ends in bounded time.

It prints a table to be pasted into a page. A noisy machine gives noisy figures: believe ratios, not
figures, and neither from a run with `--quick`. Exit status: 0, 1 when a rival failed, 2 when
nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tests.bench.load import LoadFailed
from tests.bench.machine import build_caption, describe_machine
from tests.bench.metrics import METRICS, Kind, Metric
from tests.bench.processes import ServerFailed
from tests.bench.report import Results, build_table, list_errors
from tests.bench.rivals import DIRECT, REFERENCE, RIVALS, find_rival
from tests.bench.testbed import Testbed
from tests.toolkit import find_program

EVERYBODY = (DIRECT, *RIVALS)

# Beyond what the load takes: starting, settling and ending, for each run.
SECONDS_AROUND_RUN = 2.0

FILES_WANTED = 16384


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s instead of 5 of 3 s")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument(
        "--only",
        type=_names_of(EVERYBODY),
        default=EVERYBODY,
        help=f"some of {','.join(EVERYBODY)}",
    )
    parser.add_argument(
        "--metrics",
        type=_names_of(METRICS),
        default=tuple(METRICS),
        help=f"some of {','.join(METRICS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    placing = parser.add_mutually_exclusive_group()
    placing.add_argument(
        "--pinned",
        action="store_true",
        default=None,
        help="one CPU for the proxy, the others for the load (the default where there are two)",
    )
    placing.add_argument("--open", action="store_false", dest="pinned", help="any CPU for anybody")
    options = parser.parse_args(arguments)
    cpus = len(os.sched_getaffinity(0))
    if options.pinned and cpus < 2:
        parser.error("--pinned needs two CPUs")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    options.pinned = cpus > 1 if options.pinned is None else options.pinned
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = 1 if options.quick else 3
    return options


def _names_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """A reader of comma-separated names out of `known`."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def find_rivals(wanted: Sequence[str]) -> list[str]:
    """Leave out what is not installed, and say so."""
    found = []
    for name in wanted:
        if name == DIRECT or find_rival(RIVALS[name]):
            found.append(name)
        elif name == "atlas":
            print("atlas is skipped: tomli and watchdog are not installed, not in .venv either")
        else:
            print(f"{name} is skipped: it is not installed")
    return found


def is_measured(rival: str, metric: Metric) -> bool:
    """Does this metric say anything about this rival?"""
    if rival == DIRECT:
        return metric.kind is not Kind.IDLE
    is_body = metric.kind in {Kind.DOWNLOADS, Kind.UPLOADS}
    return is_body or not RIVALS[rival].is_for_bodies


def plan_runs(options: argparse.Namespace, rivals: Sequence[str]) -> list[tuple[str, int, str]]:
    """All runs in their order: metric, round, rival."""
    return [
        (metric, number, rival)
        for metric in options.metrics
        for number in range(options.rounds)
        for rival in rivals
        if is_measured(rival, METRICS[metric])
    ]


def run_all(
    testbed: Testbed,
    runs: Sequence[tuple[str, int, str]],
    seconds: int,
    is_ended: threading.Event,
) -> tuple[Results, dict[str, str]]:
    """Measure; returns the results, and what went wrong by rival.

    A rival that failed is out. Once `is_ended` is set, or time is up, no other run begins.
    """
    results, failures = Results(), {}
    # A run that is as slow as its time limits allow must not make the whole endless.
    deadline = time.monotonic() + 60 + 2 * len(runs) * (seconds + SECONDS_AROUND_RUN)
    shown = ""
    for metric, number, rival in runs:
        if rival in failures:
            continue
        if is_ended.is_set() or time.monotonic() > deadline:
            cause = "ended by a signal" if is_ended.is_set() else "out of time"
            failures[cause] = "the rest was not measured"
            break
        if metric != shown:
            print(f"{METRICS[metric].what} ...", file=sys.stderr, flush=True)
            shown = metric
        try:
            results.add(metric, rival, number, testbed.measure(rival, METRICS[metric], seconds))
        except (LoadFailed, ServerFailed) as error:
            if not is_ended.is_set():  # Ctrl-C reaches the servers, too
                failures[rival] = f"{METRICS[metric].what}: {error}"
    return results, failures


def raise_file_limit() -> None:
    """A thousand connections on both sides want more descriptors than some systems grant."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark and return the exit status."""
    if not Path("/proc/self/stat").exists():
        print("the benchmark needs Linux: it reads CPU time and memory from /proc")
        return 2
    options = parse_arguments(arguments)
    wrk = find_program("wrk")
    if wrk is None:
        print("wrk is not installed, and nothing else makes the load (Debian, Ubuntu: package wrk)")
        return 2
    rivals = find_rivals(options.only)
    runs = plan_runs(options, rivals)
    if not runs:
        print("nothing is left to measure")
        return 2
    placing = "pinned" if options.pinned else "open"
    how = f"{placing}, rounds: {options.rounds} of {options.seconds} s"
    how += "" if find_program("nginx") else ", upstream in Python"
    how += " (quick: only to see that it works)" if options.quick else ""
    machine = describe_machine()
    about = len(runs) * (options.seconds + SECONDS_AROUND_RUN / 4) / 60
    print(f"{len(runs)} runs, about {about:.1f} minutes", file=sys.stderr, flush=True)

    raise_file_limit()
    # Heeded between two runs: an exception in the middle of starting a server would lose it.
    is_ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_ended.set())
    try:
        with (
            tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder,
            Testbed(Path(folder), wrk, is_pinned=options.pinned) as testbed,
        ):
            results, failures = run_all(testbed, runs, options.seconds, is_ended)
    except ServerFailed as error:
        print(f"nothing could be measured: {error}")
        return 2

    print(f"\n{build_caption(machine, how)}")
    print(f"Other programs used {results.others:.2f} CPUs meanwhile.", end=" ")
    print(f"In brackets: ratio to {REFERENCE}.\n" if REFERENCE in rivals else "\n")
    print(build_table(results, options.metrics, rivals))
    for line in list_errors(results, options.metrics, rivals):
        print(line)
    for name, reason in failures.items():
        print(f"{name}: {reason}")
    if options.json:
        everything = {
            "machine": machine,
            "how": how,
            "others": results.others,
            "results": results.as_json(),
            "failures": failures,
        }
        options.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
