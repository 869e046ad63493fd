"""Programs that the benchmark starts, and what the system knows of them.

A server is a program and all its descendants: nginx works in a child, and Atlas may one day. CPU
time and memory are read from `/proc` for the whole tree, so this needs Linux. Each server is ended
by its own process id; a tree that does not end in time is killed, process by process.

To hold a server to certain CPUs the benchmark moves there itself for the moment of starting it: a
child inherits that, so no thread of it ever runs elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

START_PATIENCE = 15.0
END_PATIENCE = 5.0

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_ROOT = Path(__file__).resolve().parents[2]


class ServerFailed(Exception):
    """A server did not begin to serve, or served something wrong."""


@contextlib.contextmanager
def held_to(cpus: set[int]) -> Iterator[None]:
    """Run this thread, and what it starts meanwhile, on `cpus` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """A running program that listens on a port of 127.0.0.1."""

    def __init__(self, name: str, command: Sequence[str], port: int, log: Path) -> None:
        self.name = name
        self.port = port
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=_ROOT
            )

    def wait_until_listening(self) -> None:
        """Return once the port accepts connections; raises `ServerFailed`."""
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1),
            ):
                return
            time.sleep(0.02)
        said = self._log.read_text(errors="replace").strip()[-300:]
        raise ServerFailed(f"{self.name} did not start: {said}")

    @property
    def pids(self) -> list[int]:
        """This process and its living descendants."""
        return find_tree(self._process.pid) if self._process.poll() is None else []

    def end(self) -> None:
        """End the program, and kill its tree if that takes too long."""
        pids = self.pids
        self._process.terminate()
        try:
            self._process.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()


def find_tree(root: int) -> list[int]:
    """Return the process id `root` and those of its living descendants."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (fields := _read_stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def read_cpu(pids: Sequence[int]) -> float:
    """Read the CPU seconds that the processes have used, their reaped children included."""
    fields = [_read_stat(pid) for pid in pids]
    return sum(int(ticks) for known in fields for ticks in known[11:15]) * _TICK


def read_busy() -> float:
    """Read the CPU seconds that this machine has spent on anything, its host's other guests too."""
    user, nice, system, _, _, interrupts, soft, stolen = (
        int(ticks) for ticks in _read(_PROC / "stat").split()[1:9]
    )
    return (user + nice + system + interrupts + soft + stolen) * _TICK


def read_memory(pids: Sequence[int]) -> int:
    """Read the bytes that the processes occupy; a page shared by two counts half in each."""
    total = 0
    for pid in pids:
        match = re.search(r"^Pss:\s+(\d+)", _read(_PROC / str(pid) / "smaps_rollup"), re.MULTILINE)
        total += int(match[1]) * 1024 if match else 0
    return total


def _read_stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` from the state on; none when the process has gone."""
    return _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
