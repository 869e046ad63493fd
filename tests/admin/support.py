"""For the tests of the admin address: a source that is made up, and the app in the real HTTP loop.

`ask` plays bytes through `HttpService` on a socket pair, in the calling thread: the client writes
all that it has to say, ends its sending half, and reads what came back. `serve_page` listens on a
port, for a browser. `python -m tests.admin.support` serves made-up numbers to look at.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from atlas_pkg.admin.app import AdminApp
from atlas_pkg.admin.commands import CommandError, select
from atlas_pkg.admin.stats import Stats, Totals, UpstreamStats
from atlas_pkg.balancing.pool import Pool
from atlas_pkg.config.model import Config, Timeouts
from atlas_pkg.control.overrides import Change
from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.copy import Copier
from atlas_pkg.net.stream import Stream, set_patience
from atlas_pkg.observing.event_log import ErrorLine, Event
from atlas_pkg.observing.observers import Observers
from atlas_pkg.observing.rates import Sample, Strip
from atlas_pkg.observing.record import Record
from atlas_pkg.observing.timeline import Explained, build_timeline
from atlas_pkg.observing.tracer import Asking
from atlas_pkg.serving.client import CLOSE, PARK, Client, Next
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.connection import HttpService
from atlas_pkg.serving.generation import ConfigHolder, Generation
from tests.observing.explain_support import NOW, explained

TOKEN = "top secret"


def build_upstream(name: str, **more: object) -> UpstreamStats:
    """An upstream that is up and has served a little."""
    upstream = UpstreamStats(
        name=name,
        address="10.0.0.1",
        port=3000,
        kind="up",
        state="up",
        why="",
        since=NOW - 7200,
        weight=1,
        group="default",
        configured_weight=1,
        backup=False,
        share_percent=50.0,
        in_flight=2,
        max_connections=0,
        idle=3,
        rate=12.4,
        total=12345,
        classes={"2xx": 12000, "3xx": 300, "4xx": 45, "5xx": 0},
        failures={"connect": 0, "reset": 0, "timeout": 0},
        retries=0,
        p50_ms=1.3,
        p95_ms=4.8,
        p99_ms=31.0,
        strip=Strip(requests=[12] * 60, failed=[0] * 60, marks="u" * 60),
    )
    upstream.update(more)  # type: ignore[typeddict-item]
    return upstream


def build_stats(*upstreams: UpstreamStats, now: float = NOW) -> Stats:
    """A healthy Atlas with these upstreams."""
    sample = Sample(
        rate=25.0,
        connections=7,
        error_percent=0.0,
        p50_ms=1.3,
        p95_ms=4.8,
        p99_ms=31.0,
        bytes_in_rate=4200.0,
        bytes_out_rate=118_000_000.0,
        queue=0,
    )
    return Stats(
        version="0.1.0",
        time=now,
        pids=[4242],
        uptime=7260.0,
        mode="http",
        listen=["127.0.0.1:8080"],
        config_path="/etc/atlas/atlas.toml",
        generation=4,
        last_reload={"time": now - 180, "ok": True, "error": "", "generation": 4},
        state="serving",
        ready=True,
        ready_reason="2 of 2 upstreams usable",
        totals=Totals(**sample, max_connections=4096, requests=1_234_567),
        history=[sample] * 60,
        upstreams=list(upstreams),
        events=[],
        errors=[],
    )


class FakeSource:
    """An `Aggregate` whose answers the test sets; it remembers how it was steered and asked."""

    def __init__(self, build: Callable[[], Stats] | None = None, *records: Record) -> None:
        self._build = build or (lambda: build_stats(build_upstream("a"), build_upstream("b")))
        self.ready = (True, "2 of 2 upstreams usable")
        self.steered: list[tuple[str, Change]] = []
        self.failure: CommandError | None = None
        self.document = explained(*(build_timeline(record, NOW - 5) for record in records))
        self.asked: list[Asking] = []
        self.polls = 0  # of the numbers
        self.looks = 0  # at the exchanges

    def stats(self) -> Stats:
        self.polls += 1
        return self._build()

    def metrics(self) -> str:
        return "# TYPE atlas_connections gauge\natlas_connections 7\n"

    def readiness(self) -> tuple[bool, str]:
        return self.ready

    def explain(self, query: Mapping[str, str]) -> Explained:
        self.looks += 1
        exchanges = select(self.document["exchanges"], query)
        return Explained(**{**self.document, "exchanges": exchanges})

    def ask_for(self, asking: Asking) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append(asking)

    def steer(self, name: str, change: Change) -> bool:
        if self.failure is not None:
            raise self.failure
        if name not in {item["name"] for item in self._build()["upstreams"]}:
            return False
        self.steered.append((name, change))
        return True


class _Service:
    """The HTTP loop around `app`, with the default configuration but for `timeouts`."""

    def __init__(self, app: AdminApp, timeouts: Timeouts | None = None) -> None:
        self.clients = Clients()
        config = Config(Path("atlas.toml"), timeouts=timeouts or Timeouts())
        holder = ConfigHolder(Generation(config))
        self._http = HttpService(
            holder, self.clients, app, Observers(), has_lane=False, is_raw=False
        )

    def serve(self, sock: socket.socket, address: str, patience: float) -> None:
        """Serve one client until it leaves, or says nothing for so many seconds."""
        client = Client(Stream(sock, Side.CLIENT), address, math.inf, None, Pool())
        self.clients.add(client)
        copier, following = Copier(), PARK
        while self.clients.put_away(client, following) is PARK:
            following = CLOSE
            with contextlib.suppress(StreamError):
                client.stream.wait_until_readable(patience)
                found = self._http.read(client)
                following = found if isinstance(found, Next) else self._http.wait(found, copier)
        copier.close()


def exchange_bytes(
    app: AdminApp, data: bytes, *, ends: bool = True, timeouts: Timeouts | None = None
) -> bytes:
    """Say `data` to `app` and return all that it says until it closes or waits.

    Unless `ends`, the client keeps its sending half open.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        set_patience(ours, receive=0.02, send=0.02)  # as accepted connections have it
        theirs.settimeout(20)
        theirs.sendall(data)
        if ends:
            theirs.shutdown(socket.SHUT_WR)
        _Service(app, timeouts).serve(ours, "192.0.2.7", 0.02)
        ours.close()
        pieces = []
        while piece := theirs.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


class Answer:
    """One answer, parsed by the standard library."""

    def __init__(self, data: bytes, method: str) -> None:
        parsed = http.client.HTTPResponse(_Bytes(data), method=method)  # type: ignore[arg-type]
        parsed.begin()
        self.status = parsed.status
        self.fields = parsed.headers
        self.body = parsed.read()
        self.text = self.body.decode()
        parsed.close()


class _Bytes:
    """What `HTTPResponse` takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def ask(
    app: AdminApp, path: str, *fields: str, method: str = "GET", body: bytes | str = b""
) -> Answer:
    """Ask `app` once; `fields` are whole lines, Host and Content-Length are added."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"{method} {path} HTTP/1.1", *fields]
    if not any(line.lower().startswith("host:") for line in fields):
        lines.append("Host: 127.0.0.1:9090")
    chunked = any(line.lower().startswith("transfer-encoding:") for line in fields)
    if (body or method == "POST") and not chunked:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n"
    return Answer(exchange_bytes(app, head + body), method)


@contextlib.contextmanager
def serve_page(app: AdminApp, port: int = 0) -> Iterator[int]:
    """Serve `app` on a port of this machine, each connection in a thread; yields the port."""
    listener = socket.create_server(("127.0.0.1", port))
    threads: list[threading.Thread] = []

    service = _Service(app)

    def serve(sock: socket.socket) -> None:
        service.serve(sock, "127.0.0.1", 20)
        sock.close()

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    accepting.join(20)
    listener.close()
    service.clients.cut()
    for thread in threads:
        thread.join(20)


def build_scene(name: str) -> Callable[[], Stats]:
    """Numbers that move, to look at: healthy, ill (one is down), refused (a reload was)."""
    began = time.time() - 7260

    def wave(second: float, base: float, swing: float) -> float:
        value = base + swing * math.sin(second / 9) + swing / 2 * math.sin(second / 2.3 + 1)
        return max(0.0, value)

    def scene_sample(second: float) -> Sample:
        is_ill = name == "ill" and second > time.time() - 34
        return Sample(
            rate=round(wave(second, 1240, 160)),
            connections=round(wave(second + 5, 312, 40)),
            error_percent=wave(second, 4.2, 1.5) if is_ill else 0.0,
            p50_ms=wave(second, 1.9, 0.3),
            p95_ms=wave(second + 2, 6.1, 1.4) * (3 if is_ill else 1),
            p99_ms=wave(second + 7, 14.0, 4.0) * (3 if is_ill else 1),
            bytes_in_rate=wave(second, 420_000, 60_000),
            bytes_out_rate=wave(second + 3, 18_400_000, 2_500_000),
            queue=round(wave(second, 4, 5)) if is_ill else 0,
        )

    def build() -> Stats:
        now = time.time()
        seconds = [math.floor(now) - 59 + index for index in range(60)]
        stats = build_stats(now=now)
        stats["uptime"] = now - began
        stats["history"] = [scene_sample(second) for second in seconds]
        stats["totals"] = Totals(
            **stats["history"][-1], max_connections=4096, requests=8_934_112 + round(now % 1e5)
        )
        for index in range(4):
            requests = [round(wave(second + 3 * index, 420 - 90 * index, 60)) for second in seconds]
            upstream = build_upstream(
                f"backend{index + 1}",
                address=f"10.0.0.{index + 11}" if index != 2 else "2001:db8::7",
                since=began,
                share_percent=(41.2, 30.1, 28.7, 0.0)[index],
                weight=(3, 2, 2, 1)[index],
                group="default",
                configured_weight=(3, 2, 2, 1)[index],
                in_flight=(14, 9, 8, 0)[index],
                max_connections=(100, 100, 0, 0)[index],
                rate=requests[-1],
                total=(3_812_000, 2_704_113, 2_417_995, 4)[index],
                why="HTTP 200 in 1.8 ms" if index < 3 else "HTTP 200 in 2.4 ms",
                backup=index == 3,
                strip=Strip(requests=requests, failed=[0] * 60, marks="u" * 60),
            )
            if index == 3:
                upstream["rate"] = 0.0
                upstream["strip"]["requests"] = [0] * 60
                upstream["classes"] = {"2xx": 4, "3xx": 0, "4xx": 0, "5xx": 0}
                upstream["p50_ms"] = upstream["p95_ms"] = upstream["p99_ms"] = None
            stats["upstreams"].append(upstream)
        stats["events"] = [
            Event(
                time=now - 180,
                kind="reload",
                upstream="",
                text="configuration reloaded (generation 4): upstreams changed backend2 "
                "(weight 1 -> 2), added backend4",
            ),
            Event(time=now - 1260, kind="state", upstream="backend3", text="up: HTTP 200"),
            Event(
                time=now - 1311,
                kind="state",
                upstream="backend3",
                text="down: connect refused, 3 times in a row",
            ),
            Event(time=began, kind="process", upstream="", text="Atlas 0.1.0 started"),
        ]
        if name == "ill":
            make_ill(stats, now)
        if name == "refused":
            text = (
                "/etc/atlas/atlas.toml:14: upstreams[1].weigth: unknown key, did you mean "
                '"weight"?\n/etc/atlas/atlas.toml: upstreams[2].port: must be 1 to 65535, got 0'
            )
            stats["last_reload"] = {"time": now - 42, "ok": False, "error": text, "generation": 4}
            stats["events"].insert(
                0, Event(time=now - 42, kind="refused", upstream="", text="configuration refused")
            )
        return stats

    return build


def make_ill(stats: Stats, now: float) -> None:
    """One is down, one has an open breaker, one is drained."""
    first, second, third, _ = stats["upstreams"]
    second.update(
        {
            "kind": "down",
            "state": "down",
            "why": "connect refused, 3 times in a row",
            "since": now - 34,
            "rate": 0.0,
            "share_percent": 13.0,
            "in_flight": 0,
            "failures": {"connect": 212, "reset": 3, "timeout": 0},
            "retries": 209,
        }
    )
    second["classes"]["5xx"] = 41
    second["strip"] = Strip(
        requests=[*second["strip"]["requests"][:24], *[9] * 3, *[0] * 33],
        failed=[0] * 22 + [8, 60, 9, 9, 9] + [0] * 33,
        marks="u" * 26 + "d" * 34,
    )
    third.update(
        {
            "kind": "open",
            "state": "breaker open, 8 s left",
            "why": "too many failures in a row",
            "since": now - 2,
            "failures": {"connect": 0, "reset": 5, "timeout": 2},
        }
    )
    third["strip"]["marks"] = "u" * 40 + "o" * 12 + "u" * 6 + "d" * 2
    third["strip"]["failed"][-3:] = [40, 70, 3]
    first["weight"] = 5
    stats["upstreams"][3].update(
        {"kind": "drain", "state": "drain", "why": "no new clients", "since": now - 600}
    )
    stats["events"][:0] = [
        Event(
            time=now - 2,
            kind="state",
            upstream="backend3",
            text="breaker open, 8 s left: too many failures in a row",
        ),
        Event(
            time=now - 34,
            kind="state",
            upstream="backend2",
            text="down: connect refused, 3 times in a row",
        ),
    ]
    stats["errors"] = [
        ErrorLine(
            group="default",
            time=now - age,
            client="192.0.2.44",
            line=line,
            upstream=upstream,
            status=status,
            text=text,
            count=count,
        )
        for age, status, line, upstream, text, count in (
            (
                2.2,
                504,
                "POST /api/orders HTTP/1.1",
                "backend3",
                "the upstream did not answer in time",
                1,
            ),
            (
                3.0,
                502,
                "GET /api/items/8812?… HTTP/1.1",
                "backend3",
                "the upstream failed before its answer had begun",
                2,
            ),
            (
                35.1,
                502,
                "GET /assets/app.9f1c2e.js HTTP/1.1",
                "backend2",
                "the upstream could not be reached",
                1,
            ),
            (
                36.9,
                503,
                "GET / HTTP/1.1",
                "-",
                "no upstream was available, or had room in time",
                1234,
            ),
        )
    ]


if __name__ == "__main__":
    scene, port = sys.argv[1], int(sys.argv[2])
    with serve_page(AdminApp(FakeSource(build_scene(scene)), token=TOKEN), port):
        threading.Event().wait()
