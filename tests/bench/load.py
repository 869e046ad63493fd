"""The load: many small requests by `wrk`, large bodies and idle connections by ourselves.

`wrk` is fast enough to keep any proxy busy from one core, and it takes Lua for heads that are never
the same twice. Its rates say nothing about bodies that are under way when time is up, so bodies are
carried here: whole transfers only, as many as begin within the time.

Whatever comes back is checked: a status other than 200 or a wrong length is an error, not speed.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.metrics import SIZES, Kind, Metric
from tests.bench.upstream import PIECE, swallow

# How long a single read or write may take.
PATIENCE = 15.0

_MICROSECOND = 1e-6
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_LAST_CHUNK = b"\r\n0\r\n\r\n"

_DONE = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nfigures: {"requests": %d, "duration": %d, "errors": %d, "median": %d, "p99": %d}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""

# What a browser sends, some 500 bytes; target, Cookie and Referer differ each time.
_DIFFERENT = """
local n = 0
local fields = {
  ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
  ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
  ["Accept-Language"] = "en-GB,en;q=0.5",
  ["Accept-Encoding"] = "gzip, deflate, br",
  ["Sec-Fetch-Mode"] = "navigate",
  ["Cache-Control"] = "no-cache",
}
function request()
  n = n + 1
  fields["Cookie"] = "session=" .. n .. "x0123456789abcdef; theme=dark; seen=" .. n * 7
  fields["Referer"] = "http://127.0.0.1/list?page=" .. n
  return wrk.format("GET", wrk.path .. "?item=" .. n, fields)
end
"""


class LoadFailed(Exception):
    """No figures could be had."""


@dataclass(frozen=True)
class Outcome:
    """What one run of load came to."""

    requests: int
    duration: float
    errors: int = 0
    body_bytes: int = 0
    latency_median: float = 0.0
    latency_p99: float = 0.0


def write_scripts(folder: Path) -> None:
    """Write what `wrk` is to run: `same.lua` and `different.lua`."""
    (folder / "same.lua").write_text(_DONE, encoding="utf-8")
    (folder / "different.lua").write_text(_DIFFERENT + _DONE, encoding="utf-8")


def run_wrk(wrk: str, port: int, metric: Metric, *, seconds: int, folder: Path) -> Outcome:
    """Send small requests as fast as they are answered; raises `LoadFailed`."""
    script = folder / ("different.lua" if metric.differs else "same.lua")
    command = [wrk, "-t1", f"-c{metric.connections}", f"-d{seconds}s", "--timeout", "5s"]
    command += ["-H", "Connection: close"] if metric.closes else []
    command += ["-s", str(script), f"http://127.0.0.1:{port}{metric.path}"]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise LoadFailed("wrk did not end") from None
    match = re.search(r"^figures: (.*)$", ran.stdout, re.MULTILINE)
    if match is None:
        raise LoadFailed(f"wrk: {(ran.stdout + ran.stderr).strip()[-300:]}")
    said = json.loads(match[1])
    return Outcome(
        said["requests"],
        said["duration"] * _MICROSECOND,
        said["errors"],
        latency_median=said["median"] * _MICROSECOND,
        latency_p99=said["p99"] * _MICROSECOND,
    )


def run_transfers(port: int, metric: Metric, *, seconds: float, folder: Path) -> Outcome:
    """Carry bodies over several connections, at least one over each; raises `LoadFailed`."""
    began = time.monotonic()
    until = began + seconds

    def carry_bodies() -> int:
        count = 0
        with connect(port) as sock:
            while not count or time.monotonic() < until:
                if metric.kind is Kind.UPLOADS:
                    upload(sock, metric.path, folder)
                else:
                    download(sock, metric.path)
                count += 1
        return count

    with ThreadPoolExecutor(metric.connections) as threads:
        running = [threads.submit(carry_bodies) for _ in range(metric.connections)]
        try:
            count = sum(each.result() for each in running)
        except OSError as error:
            raise LoadFailed(f"a transfer failed: {error}") from None
    return Outcome(count, time.monotonic() - began, body_bytes=count * SIZES[metric.path])


def connect(port: int) -> socket.socket:
    """Connect to a port of this machine."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def download(sock: socket.socket, path: str) -> None:
    """Ask for `path` and drop its body; raises `OSError` unless all of it came."""
    sock.sendall(b"GET %b HTTP/1.1\r\nHost: bench.test\r\n\r\n" % path.encode())
    head, body = _read_head(sock)
    length = _LENGTH.search(head)
    if length is None:
        received = _swallow_chunks(sock, body)
    else:
        received = int(length[1])
        swallow(sock, received - len(body))
    if received < SIZES[path]:
        raise ConnectionError(f"{received} bytes instead of {SIZES[path]}")


def upload(sock: socket.socket, path: str, folder: Path) -> None:
    """Send the file of `path` as a body; raises `OSError` unless it was answered well."""
    head = b"POST /up HTTP/1.1\r\nHost: bench.test\r\nContent-Length: %d\r\n\r\n"
    sock.sendall(head % SIZES[path])
    with (folder / path.strip("/")).open("rb") as file:
        sock.sendfile(file)
    answer, body = _read_head(sock)
    length = _LENGTH.search(answer)
    swallow(sock, int(length[1]) - len(body) if length else 0)


def _read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Read the head of a good answer, and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(1 << 16)
        if not more:
            raise ConnectionError("no answer")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(head.split(b"\r\n")[0].decode("latin-1"))
    return head, body


def _swallow_chunks(sock: socket.socket, body: bytes) -> int:
    """Drop a chunked body up to its last chunk, for which the upstream's bytes cannot be taken."""
    buffer = bytearray(PIECE)
    received, tail = len(body), body[-len(_LAST_CHUNK) :]
    while tail != _LAST_CHUNK:
        count = sock.recv_into(buffer)
        if not count:
            raise ConnectionError("the body was cut")
        received += count
        tail = (tail + buffer[max(0, count - len(_LAST_CHUNK)) : count])[-len(_LAST_CHUNK) :]
    return received
