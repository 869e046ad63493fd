"""What a process asks of the system before it serves: CPUs, open files, a heap, a gravedigger.

All of this is inherited by threads and by processes, so it comes before either is started. Where
a system does not know a call, things stay as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import random
import resource
import signal

from atlas_pkg.config.model import Listen
from atlas_pkg.serving.server import client_limit

log = logging.getLogger("atlas")

# From glibc's malloc.h.
_M_ARENA_MAX = -8

# Objects made and not yet freed before the garbage collector looks for cycles. Hundreds of requests
# under way are several thousand objects; at its default of 700 the collector looks through them
# again and again and finds nothing (4 % of the CPU time where every head is different).
COLLECT_AFTER = 20_000


def count_processes(wanted: int) -> int:
    """How many processes `listen.workers` asks for; 0 is one per CPU that we may use."""
    return wanted or len(_allowed_cpus()) or os.cpu_count() or 1


def hold_to_one_cpu(number: int | None = None) -> None:
    """Hold this process to one of the CPUs that it may use: the nth, counting round, or any.

    Threads under one interpreter lock are slower on two CPUs than on one: the lock and the caches
    wander. A process alone takes any, since others like it on this machine would all take the
    first.
    """
    if cpus := _allowed_cpus():
        cpu = random.choice(cpus) if number is None else cpus[number % len(cpus)]
        os.sched_setaffinity(0, {cpu})


def share_one_heap() -> None:
    """Have all threads allocate from one heap, where the C library is glibc; before any is started.

    It would give many threads heaps of their own, so that they need not wait for one another; ours
    do not, under the interpreter lock. What one thread frees there, others cannot use: under a
    siege of hostile clients memory went on growing (103 MB after 45 s, by one heap 72).
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return  # another C library, which has other ways


def bury_orphans() -> None:
    """As process 1 of a container, have those forgotten that end there without a parent.

    They become our children, and would stay as zombies. We have no other children, so the kernel
    may forget all of them; a supervisor, who has, asks for each (`supervisor.py`).
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with contextlib.suppress(ChildProcessError):  # nobody is left
            while os.waitpid(-1, os.WNOHANG)[0]:  # who has ended before that
                pass


def collect_rarely() -> None:
    """Have cycles of garbage looked for now and then, and never among what the start has made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def allow_many_descriptors(listen: Listen) -> None:
    """Use as many descriptors as the system grants, not as few as it suggests.

    The suggestion (the soft limit) is often 1024, out of regard for programs that use `select`.
    A thousand idle clients would use it up and leave none for upstreams.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # macOS says "unlimited" and then refuses it
    if soft == resource.RLIM_INFINITY:
        log.debug("open files are not limited")
        return
    log.debug("open files: at most %d", soft)
    if client_limit() < listen.max_connections:
        log.warning(
            "open files are limited to %d: %d clients at once, not listen.max_connections = %d "
            "(ulimit -n, LimitNOFILE=)",
            soft,
            client_limit(),
            listen.max_connections,
        )


def _allowed_cpus() -> list[int]:
    """The CPUs that we may use, in order; none where the system cannot tell (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
