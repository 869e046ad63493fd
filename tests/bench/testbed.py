"""The testbed: upstreams, proxies before them, and one measured run after the other.

Pinned, a proxy has the first CPU for itself, and load and upstreams have the others: the figures
say what one CPU of a proxy can do. Open, the kernel places everything, as it does in real life.

There are two upstreams (`Metric.needs_python_upstream`), so a proxy may run twice, once before
each. Idle connections are counted on a fresh instance: memory that was used and freed before would
hide what they need.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.bench.load import (
    LoadFailed,
    Outcome,
    connect,
    download,
    run_transfers,
    run_wrk,
    write_scripts,
)
from tests.bench.metrics import IDLE_CONNECTIONS, SIZES, Kind, Metric
from tests.bench.processes import (
    Server,
    ServerFailed,
    held_to,
    read_busy,
    read_cpu,
    read_memory,
)
from tests.bench.rivals import (
    DIRECT,
    NGINX_HEAD,
    RIVALS,
    build_nginx_command,
    find_rival,
)
from tests.toolkit import find_program, free_port

SETTLING = 0.3

_NGINX_UPSTREAM = (
    NGINX_HEAD
    + """
  open_file_cache max=10;
  default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {files};
    location = /1k {{ return 200 "{small}"; }}
    location / {{ }}
  }}
}}
"""
)


class Testbed:
    """Everything that runs for the benchmark; as a context manager it ends all of it."""

    __test__ = False  # not a class of tests, whatever its name begins with

    def __init__(self, folder: Path, wrk: str, *, is_pinned: bool) -> None:
        self._folder = folder
        self._wrk = wrk
        cpus = sorted(os.sched_getaffinity(0))
        self._proxy_cpus = set(cpus[:1]) if is_pinned else set(cpus)
        self._load_cpus = set(cpus[1:]) if is_pinned else set(cpus)
        self._ending = contextlib.ExitStack()
        self._upstreams: dict[bool, Server] = {}
        self._proxies: dict[tuple[str, bool], Server] = {}
        self._instances = 0

    def __enter__(self) -> Self:
        with self._ending:  # ends everything, unless all goes well
            self._ending.enter_context(held_to(self._load_cpus))
            self._start_upstreams()
            self._ending = self._ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def _start_upstreams(self) -> None:
        self._folder.chmod(0o755)  # nginx's worker may run as another user
        write_scripts(self._folder)
        for path in ("/10m", "/100m"):
            with (self._folder / path.strip("/")).open("wb") as file:
                file.truncate(SIZES[path])
        self._upstreams[True] = self._start("upstream", self._prepare_python_upstream)
        nginx = find_program("nginx")
        if nginx:
            self._upstreams[False] = self._start("nginx-upstream", self._prepare_nginx_upstream)
        else:
            self._upstreams[False] = self._upstreams[True]
            print("nginx is not installed: a slow upstream in Python takes its place")

    def measure(self, rival: str, metric: Metric, seconds: int) -> dict[str, float]:
        """Run one metric against one rival and return its figures, by name.

        `others` says how many CPUs were used by what is not the benchmark. Blocks. Raises
        `LoadFailed` and `ServerFailed`.
        """
        if metric.kind is Kind.IDLE:
            return self._measure_idle(rival, metric)
        is_first = (rival, metric.needs_python_upstream) not in self._proxies
        server = self._find_server(rival, metric)
        if is_first and rival != DIRECT:
            self._run_load(server.port, metric, 1)  # thrown away: warms up
        cpu, others, began = read_cpu(server.pids), self._read_others(server), time.monotonic()
        outcome = self._run_load(server.port, metric, seconds)
        took = time.monotonic() - began
        cpu, others = read_cpu(server.pids) - cpu, self._read_others(server) - others
        if not server.pids:
            raise ServerFailed(f"{rival} has ended")
        figures = derive_figures(outcome, None if rival == DIRECT else cpu)
        figures["others"] = max(0.0, others / took)
        return figures

    def _read_others(self, server: Server) -> float:
        """CPU seconds of this machine that were spent on neither load, upstreams nor `server`."""
        servers = {server, *self._upstreams.values()}
        ours = sum(read_cpu(known.pids) for known in servers)
        return read_busy() - ours - _read_own_cpu()

    def _run_load(self, port: int, metric: Metric, seconds: int) -> Outcome:
        if metric.kind is Kind.REQUESTS:
            return run_wrk(self._wrk, port, metric, seconds=seconds, folder=self._folder)
        return run_transfers(port, metric, seconds=seconds, folder=self._folder)

    def _measure_idle(self, rival: str, metric: Metric) -> dict[str, float]:
        proxy = self._start_proxy(rival, metric)
        try:
            with hold_connections(proxy.port, 10):
                pass  # what every first request brings with it is not the connections' fault
            time.sleep(SETTLING)
            before = read_memory(proxy.pids)
            with hold_connections(proxy.port, IDLE_CONNECTIONS):
                time.sleep(SETTLING)
                grown = read_memory(proxy.pids) - before
        finally:
            proxy.end()
        return {"memory_per_connection": grown / IDLE_CONNECTIONS, "errors": 0.0}

    def _find_server(self, rival: str, metric: Metric) -> Server:
        """The server that the load is to ask; a proxy is started when it is first needed."""
        if rival == DIRECT:
            return self._upstreams[metric.needs_python_upstream]
        key = rival, metric.needs_python_upstream
        if key not in self._proxies:
            self._proxies[key] = self._start_proxy(rival, metric)
        return self._proxies[key]

    def _start_proxy(self, name: str, metric: Metric) -> Server:
        rival = RIVALS[name]
        program = find_rival(rival)
        assert program is not None, f"{name} is not installed"
        upstream = self._upstreams[metric.needs_python_upstream].port

        def prepare(folder: Path, port: int) -> list[str]:
            return rival.prepare(program, folder, port=port, upstream=upstream)

        with held_to(self._proxy_cpus):
            server = self._start(name, prepare)
        try:
            with connect(server.port) as sock:
                download(sock, metric.path)  # before any figure is believed
        except OSError as error:
            raise ServerFailed(f"{name} does not answer well: {error}") from None
        return server

    def _start(self, name: str, prepare: Callable[[Path, int], Sequence[str]]) -> Server:
        self._instances += 1
        folder = self._folder / f"{name}-{self._instances}"
        folder.mkdir()
        port = free_port()
        server = Server(name, prepare(folder, port), port, folder / "log")
        self._ending.callback(server.end)
        server.wait_until_listening()
        return server

    def _prepare_python_upstream(self, _: Path, port: int) -> list[str]:
        return [sys.executable, "-m", "tests.bench.upstream", str(port), str(self._folder)]

    def _prepare_nginx_upstream(self, folder: Path, port: int) -> list[str]:
        path = folder / "configuration"
        small = "x" * SIZES["/1k"]
        values = {"folder": folder, "files": self._folder, "port": port, "small": small}
        path.write_text(_NGINX_UPSTREAM.format(**values), encoding="utf-8")
        nginx = find_program("nginx")
        assert nginx is not None
        return build_nginx_command(nginx, path, folder)


def derive_figures(outcome: Outcome, cpu: float | None) -> dict[str, float]:
    """Work out the figures of a run; `cpu` is the seconds that it cost the proxy, if there is one.

    Raises `LoadFailed` when nothing was answered.
    """
    figures = {"errors": float(outcome.errors)}
    if not outcome.requests:
        raise LoadFailed("nothing was answered")
    if outcome.body_bytes:
        figures["throughput"] = outcome.body_bytes / outcome.duration
        if cpu is not None:
            figures["cpu_per_byte"] = cpu / outcome.body_bytes
        return figures
    figures["rate"] = outcome.requests / outcome.duration
    figures["latency_median"] = outcome.latency_median
    figures["latency_p99"] = outcome.latency_p99
    if cpu is not None:
        figures["cpu_per_request"] = cpu / outcome.requests
    return figures


@contextlib.contextmanager
def hold_connections(port: int, count: int) -> Iterator[None]:
    """Open connections, ask once on each, and keep them; raises `LoadFailed`."""
    with contextlib.ExitStack() as open_ones:
        try:
            for _ in range(count):
                sock = open_ones.enter_context(connect(port))
                download(sock, "/1k")
                open_ones.callback(_check_open, sock)
        except OSError as error:
            raise LoadFailed(f"a connection was not served: {error}") from None
        yield


def _check_open(sock: socket.socket) -> None:
    """Raise `LoadFailed` if the proxy has closed the connection meanwhile."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        if not sock.recv(1):
            raise LoadFailed("an idle connection was closed")


def _read_own_cpu() -> float:
    """CPU seconds of the benchmark itself and of the loads that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
