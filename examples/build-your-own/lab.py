"""What the experiments share: steps with a line left out, upstreams of all sorts, and a verdict.

An experiment plays the same scene twice: with a step as it stands, and with a copy of it in which
something was left out. What was seen is compared with what the step's page says.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent

# How long anything may take that should happen, and how long we wait for what should not.
SOON = 10.0
NEVER = 1.0

TIMES = {1: "once", 2: "twice"}

Change = tuple[str, str]  # what is replaced, and by what


class Upstream(ThreadingHTTPServer):
    """A server of the standard library, as many programs have one. It notes what it is asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str = "one", behave: Callable[[Handler], None] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.behave = behave or Handler.greet
        self.requests: list[str] = []
        self.opened = self.closed = 0  # connections
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def process_request(self, request, client_address) -> None:
        """Count a connection."""
        self.opened += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        """Close a connection, then count it."""
        super().shutdown_request(request)
        self.closed += 1

    def handle_error(self, request, client_address) -> None:
        """Keep quiet about clients that have left."""

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Reads requests as most handlers do: so many bytes as Content-Length says."""

    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_GET(self) -> None:
        """Note the request, read its body, and do what this upstream does."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.behave(self)

    do_POST = do_GET  # noqa: N815

    def greet(self) -> None:
        """Answer as an upstream should."""
        self.answer(f"Hello from {self.server.name}".encode())

    def answer(self, body: bytes) -> None:
        """Answer with a body."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class Program:
    """A step that runs."""

    def __init__(self, process: subprocess.Popen[str], config: Path) -> None:
        self.process = process
        self.config = config
        self.said: list[str] = []
        self._news = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.port = int(self.wait_until_said(r"listening on .*:(\d+)")[1])

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.said.append(line)
                self._news.notify_all()

    def end(self) -> None:
        """End it, and take in all that it has said."""
        self.process.kill()
        self._listener.join(SOON)

    def wait_until_said(self, pattern: str) -> re.Match[str]:
        """Wait until it has said something."""
        with self._news:
            found = self._news.wait_for(lambda: re.search(pattern, "".join(self.said)), SOON)
        if not found:
            raise TimeoutError(f"{pattern}: not in {self.said}")
        return found

    def connect(self) -> socket.socket:
        """Connect, and do nothing yet."""
        return socket.create_connection(("127.0.0.1", self.port), SOON)

    def client(self, timeout: float = SOON) -> http.client.HTTPConnection:
        """A client that keeps its connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, request: str = "GET /", timeout: float = SOON) -> tuple[int, str]:
        """Ask once; status and body, or (0, "") where there is no whole answer."""
        client = self.client(timeout)
        try:
            return ask(client, request)
        finally:
            client.close()

    def count_threads(self) -> int:
        """How many threads it has."""
        return int(self._status("Threads"))

    def memory(self) -> int:
        """How many bytes of memory it has in use."""
        return int(self._status("VmRSS").split()[0]) * 1024

    def _status(self, name: str) -> str:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(line for line in status.splitlines() if line.startswith(name)).split(":")[1]


@dataclass(frozen=True)
class Scene:
    """Where an experiment is played: with a step as it stands, or with a change."""

    step: str
    change: Change | None = None

    @property
    def limit(self) -> float:
        """How long to wait for what happens as long as nothing is changed."""
        return NEVER if self.change else SOON

    @contextlib.contextmanager
    def start(
        self,
        *upstreams: Upstream,
        strategy: str = "round_robin",
        retries: int = 0,
        setup: Sequence[Change] = (),
    ) -> Iterator[Program]:
        """Run the step in front of these. `setup` are changes for every play."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for path in HERE.glob("*.py"):
                shutil.copy(path, folder)
            for old, new in [*setup, *([self.change] if self.change else [])]:
                edit(folder, self.step, old, new)
            config = folder / "atlas.toml"
            write_config(config, upstreams, strategy, retries)
            arguments = [str(config)]
            if self.step < "step5":
                arguments = ["0", *[f"127.0.0.1:{one.port}" for one in upstreams]]
            if self.step == "step4":
                arguments.insert(1, strategy)
            process = subprocess.Popen(
                [sys.executable, f"{self.step}.py", *arguments],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            with process, contextlib.ExitStack() as stack:
                stack.callback(process.kill)
                program = Program(process, config)
                stack.callback(program.end)
                yield program


def write_config(
    path: Path, upstreams: Sequence[Upstream], strategy: str, retries: int = 0
) -> None:
    """Write a configuration, in one step, so that nobody reads half of it."""
    text = '[listen]\naddress = "127.0.0.1"\nport = 0\n\n'
    text += f'[routing]\nstrategy = "{strategy}"\nretries = {retries}\n'
    for one in upstreams:
        text += f'\n[[upstreams]]\nname = "{one.name}"\naddress = "127.0.0.1"\n'
        text += f"port = {one.port}\n"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def edit(folder: Path, step: str, old: str, new: str) -> None:
    """Replace what stands in the step once, or in the files that it shares with others."""
    for name in (step, "attempt", "message"):
        path = folder / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        if old in text:
            if text.count(old) > 1:
                raise ValueError(f"{path.name} has this more than once: {old}")
            path.write_text(text.replace(old, new), encoding="utf-8")
            return
    raise ValueError(f"{step} does not have this: {old}")


def ask(client: http.client.HTTPConnection, request: str) -> tuple[int, str]:
    """As `Program.ask`, over a connection that stays."""
    method, path = request.split()
    try:
        client.request(method, path)
        response = client.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        client.close()
        return 0, ""


def read_all(sock: socket.socket, timeout: float = SOON) -> bytes:
    """Read until the other side closes, or time runs out."""
    sock.settimeout(timeout)
    data = b""
    with contextlib.suppress(OSError):
        while more := sock.recv(65536):
            data += more
    return data


def reset(sock: socket.socket) -> None:
    """Hang up as a program does that is killed: without a good-bye."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_until(condition: Callable[[], object], timeout: float = SOON) -> bool:
    """Look again and again; False if it does not become true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@dataclass(frozen=True)
class Experiment:
    """A scene that is played twice: `old` stands in a step, `new` is put in its place."""

    title: str
    old: str
    new: str
    play: Callable[[Scene], str]

    def show(self, seen: str, seen_without: str) -> str:
        """Say what was seen."""
        lines = [f"  - {line.strip()}" for line in self.old.splitlines() if line.strip()]
        lines += [f"  + {line.strip()}" for line in self.new.splitlines() if line.strip()]
        return "\n".join(
            [self.title, f"  as it stands: {seen}", *lines, f"  changed: {seen_without}"]
        )


def run(file: str, experiments: Sequence[Experiment]) -> int:
    """Play everything at once, print it in order, compare with the page; the exit status."""
    path = Path(file)
    step = path.stem.replace("experiment", "step")
    with ThreadPoolExecutor(2 * len(experiments)) as threads:
        played = [
            [threads.submit(one.play, Scene(step, change)) for change in (None, (one.old, one.new))]
            for one in experiments
        ]
        pairs = zip(experiments, played, strict=True)
        report = "\n\n".join(one.show(*[seen.result() for seen in both]) for one, both in pairs)
    print(report, end="\n\n")
    page = path.with_name(f"{step}.md").read_text(encoding="utf-8")
    if f"```text\n{report}\n```" in page:
        print(f"All of it is as {step}.md says.")
        return 0
    print(f"This is not what {step}.md says.")
    return 1
