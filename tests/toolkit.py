"""Atlas as a user has it, a program in a process of its own, and clients to speak with it.

Everything waits with a deadline and nothing sleeps for luck. Servers listen on port 0. A program
that a test has started is ended by its own process id, and a traceback in its log fails the test
that caused it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

ROOT = Path(__file__).resolve().parent.parent
ATLAS = ROOT / "atlas.py"

# How many lanes each Atlas has that a test starts; 0 = a thread for each client. Tests of both
# engines set it.
LANES = 1

# For what should take milliseconds; a passing run never waits it out.
DEADLINE = 50.0

_LISTENING = re.compile(r"listening on [a-z]+://(\S+):(\d+)")

Found = TypeVar("Found")

# Ports that the kernel gives to nobody who asks for any; each process of pytest has its own.
_PORTS = itertools.count(
    20_000 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + os.getpid() % 500
)


def free_port() -> int:
    """A port on which nobody listens, nor will anybody but whom the test has listen there."""
    for port in _PORTS:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("the numbers do not end")


def descriptors() -> set[str]:
    """Those that this process has open, where the system tells. Others may close some meanwhile."""
    folder = Path("/proc/self/fd")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def wait_until(look: Callable[[], Found], what: str = "it", timeout: float = DEADLINE) -> Found:
    """Look again and again until what is seen is true, and return it."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; last seen: {seen!r}")
        time.sleep(0.01)


def write_toml(tables: Mapping[str, Any]) -> str:
    """Write tables, and arrays of tables, as TOML."""
    parts = []
    for name, content in tables.items():
        for table in content if isinstance(content, list) else [content]:
            parts.append(f"[[{name}]]" if isinstance(content, list) else f"[{name}]")
            parts += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(parts) + "\n"


def build_config(*upstreams: Mapping[str, object], **tables: Mapping[str, object]) -> str:
    """A configuration that listens on any free port of this machine; tables by their names."""
    listen = {"address": "127.0.0.1", "port": 0, "lanes": LANES, **tables.pop("listen", {})}
    return write_toml({"listen": listen, "upstreams": list(upstreams), **tables})


class Program:
    """A process whose output is read as it comes."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        begin: Callable[..., subprocess.Popen[str] | Forked] = subprocess.Popen,
        **options: Any,
    ) -> None:
        """`begin` makes a process of the command."""
        self.process = begin(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        # Guards the lists; notified with every line.
        self._changed = threading.Condition()
        self.lines: list[str] = []  # of standard error
        self.printed: list[str] = []  # of standard output
        self._has_ended = False  # nothing more will come
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in (
                (self.process.stderr, self.lines),
                (self.process.stdout, self.printed),
            )
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """All of standard error so far."""
        return "\n".join(self.lines)

    def count(self, words: str) -> int:
        """In how many lines of the log do `words` occur?"""
        with self._changed:
            return sum(words in line for line in self.lines)

    def wait_for(
        self, words: str, *, times: int = 1, timeout: float = DEADLINE, printed: bool = False
    ) -> str:
        """Wait for a line with `words` in the log, or the nth such line, and return it."""
        lines = self.printed if printed else self.lines

        def seen() -> list[str]:
            return [line for line in lines if words in line][times - 1 :]

        with self._changed:
            self._changed.wait_for(lambda: seen() or self._has_ended, timeout)
            if not seen():
                whole = "\n".join(lines)
                raise AssertionError(f"no line with {words!r} ({times} times) in:\n{whole}")
            return seen()[0]

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for the end of the process and return its exit status."""
        status = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(DEADLINE)
            assert not reader.is_alive(), "it has ended, but somebody still holds its output"
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return status

    def end(self, number: int = signal.SIGKILL) -> int:
        """End the process, if it has not ended yet; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()


class Forked:
    """An Atlas that is forked where it would be started; to tests it looks like a `Popen`.

    See forkserver.py.
    """

    def __init__(self, command: list[str], *, env: Mapping[str, str], **_pipes: object) -> None:
        output, errors = os.pipe(), os.pipe()
        # Says the process id at once, and the exit status at the end.
        self._told, asker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps([command, str(Path.cwd()), dict(env)]).encode()
        socket.send_fds(_fork_server(), [request], [output[1], errors[1], asker.fileno()])
        for handed_over in (output[1], errors[1], asker.detach()):
            os.close(handed_over)
        self.stdout, self.stderr = os.fdopen(output[0]), os.fdopen(errors[0])
        self.pid = int(self._told.recv(16))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self.returncode = int(self._told.recv(16))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("atlas", timeout) from None
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it is just ending
            if self.poll() is None:
                os.kill(self.pid, number)


def fork(command: list[str], **options: Any) -> subprocess.Popen[str] | Forked:
    """Begin an Atlas at the least cost, for tests that do not care how it begins."""
    return (Forked if sys.platform == "linux" else subprocess.Popen)(command, **options)


@functools.cache
def _fork_server() -> socket.socket:
    """Start the fork server of this process; returns where it takes requests."""
    requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-W", "error", "-m", "tests.forkserver", str(theirs.fileno())]
    with theirs:
        server = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
    atexit.register(server.wait)
    atexit.register(requests.close)
    return requests


class Atlas(Program):
    """A running Atlas. As a context manager it ends the process and looks at its log."""

    def __init__(
        self,
        path: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        python: str = sys.executable,
        program: Path = ATLAS,
        begin: Callable[..., subprocess.Popen[str] | Forked] = subprocess.Popen,
    ) -> None:
        """`prefix` is a command that starts commands, such as one that sets limits."""
        self.path = path
        command = [*prefix, python, "-W", "error", str(program), str(path), *arguments]
        super().__init__(command, begin=begin, env={**os.environ, **(env or {})})
        self.host, self.port = "", 0

    def wait_until_listening(self) -> Self:
        match = _LISTENING.search(self.wait_for("listening on "))
        assert match
        self.host, self.port = match[1].strip("[]"), int(match[2])
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.send_signal(signal.SIGTERM)
            self.send_signal(signal.SIGINT)  # and do not wait for what the test left behind
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.end()
            raise
        if exc_type is None:
            assert "Traceback" not in self.log, self.log

    def rewrite(self, text: str) -> None:
        """Replace the configuration as careful programs do: whole, with one rename."""
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(text)
        new.replace(self.path)

    def reload(self, text: str) -> None:
        """Rewrite the configuration and wait until the new one is in force."""
        times = self.count("Configuration hot-reloaded") + 1
        self.rewrite(text)
        self.wait_for("Configuration hot-reloaded", times=times)

    def settle(self) -> None:
        """Wait until all threads and descriptors are there that it always has."""
        times = self.count("configuration unchanged") + 1
        self.send_signal(signal.SIGHUP)
        self.wait_for("configuration unchanged", times=times)

    def client(self, timeout: float = DEADLINE) -> Client:
        return Client(self.port, timeout=timeout)

    def get(self, target: str = "/", **fields: str) -> Answer:
        """Ask once, on a connection of its own."""
        with self.client() as client:
            return client.get(target, **fields)

    def read_status(self, key: str) -> int:
        """A figure of the process from the system: VmHWM in KB, Threads."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
        assert match
        return int(match[1])

    @property
    def threads(self) -> int:
        return self.read_status("Threads")

    @property
    def peak_memory(self) -> int:
        """The most memory that the process ever used, in bytes."""
        return self.read_status("VmHWM") * 1024

    @property
    def cpu(self) -> int:
        """CPU time of the process so far, in ticks of 10 ms."""
        figures = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(figures[11]) + int(figures[12])

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@dataclass(frozen=True)
class Answer:
    """An answer as a client received it."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes = b""

    def get(self, name: str) -> str:
        """The value of a field; empty when it is missing."""
        values = [value for known, value in self.fields if known.lower() == name.lower()]
        return ", ".join(values)

    @property
    def text(self) -> str:
        return self.body.decode()


class Cut(Exception):
    """The connection ended before the answer did."""


class Client:
    """One connection to Atlas, which the test drives by hand."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        source: str = "",
        timeout: float = DEADLINE,
        tls: ssl.SSLContext | None = None,
        name: str | None = "atlas.test",
        session: ssl.SSLSession | None = None,
    ) -> None:
        """`source` is an address of this machine to come from.

        With `tls` it asks for the certificate of `name`, and may go on with a `session`.
        """
        self.sock = socket.create_connection((host, port), timeout, (source, 0) if source else None)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(
                self.sock, server_hostname=name, session=session, suppress_ragged_eofs=False
            )
        self._reader = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_head(self, method: str = "GET", target: str = "/", **fields: str) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: example.test"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def get(self, target: str = "/", **fields: str) -> Answer:
        self.send_head("GET", target, **fields)
        return self.read_answer()

    def post(self, body: bytes, target: str = "/") -> Answer:
        self.send_head("POST", target, Content_Length=str(len(body)))
        self.send(body)
        return self.read_answer()

    def read_head(self) -> Answer:
        """Read an answer up to its empty line. Raises `Cut`."""
        lines = []
        while (line := self._read_line()) != "":
            lines.append(line)
        pairs = (line.partition(":") for line in lines[1:])
        fields = tuple((name, value.strip()) for name, _, value in pairs)
        return Answer(int(lines[0].split(" ")[1]), fields)

    def read_answer(self) -> Answer:
        """Read a whole answer. Raises `Cut` when it ends too early."""
        head = self.read_head()
        return Answer(head.status, head.fields, b"".join(self.read_body(head)))

    def read_body(self, head: Answer) -> Iterator[bytes]:
        """Yield the body of the answer that began with `head`, decoded, as it comes."""
        if head.get("Transfer-Encoding") == "chunked":
            while size := int(self._read_line(), 16):
                yield from self._read(size)
                self._read_line()
            self._read_line()
        elif length := head.get("Content-Length"):
            yield from self._read(int(length))
        elif head.status not in (204, 304):
            while piece := self._reader.read1(65536):
                yield piece

    def is_closed(self, within: float = DEADLINE) -> bool:
        """Does Atlas close this connection in time, without saying another word?"""
        self.sock.settimeout(within)
        try:
            return not self._reader.read(1)
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def _read_line(self) -> str:
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            raise Cut(f"in a line: {line!r}")
        return line.rstrip(b"\r\n").decode("latin-1")

    def _read(self, count: int) -> Iterator[bytes]:
        while count:
            piece = self._reader.read1(min(262144, count))
            if not piece:
                raise Cut(f"{count} bytes are missing")
            count -= len(piece)
            yield piece


class Threads:
    """Runs functions at once and hands back what they returned, or raised."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._results: list[Any] = []

    def start(self, function: Callable[..., object], *arguments: object) -> None:
        index = len(self._results)
        self._results.append(None)

        def run() -> None:
            try:
                self._results[index] = function(*arguments)
            except Exception as error:  # noqa: BLE001 - handed back to the test
                self._results[index] = error

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, timeout: float = 60.0) -> list[Any]:
        """Wait for all; raises the first exception among the results."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a thread of the test does not end"
        for result in self._results:
            if isinstance(result, BaseException):
                raise result
        return self._results


def find_program(name: str) -> str | None:
    """The path of a program, also where only administrators look."""
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"]
    found = (Path(place) / name for place in places)
    return next((str(path) for path in found if os.access(path, os.X_OK)), None)
