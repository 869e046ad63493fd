"""Upstreams made for tests: real sockets, and answers that the test spells out byte by byte.

A `Scripted` upstream says in a line what is done for a request: answer, send these bytes, hold,
reset. `named` is the upstream of most tests: it answers with its name and counts. Where a script
does not say enough, an `Upstream` runs a function for each connection, in a thread of its own.

`python -m tests.fakes NAME PORT` is such an upstream as a process, for tests that kill it.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PIECE = 256 * 1024

# Longer than anything takes; it only keeps a broken test from hanging.
PATIENCE = 30.0


@dataclass(frozen=True)
class Request:
    """A request as an upstream received it, without its body."""

    line: str
    fields: tuple[tuple[str, str], ...]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def get(self, name: str) -> str:
        """The value of a field; empty when it is missing."""
        values = [value for known, value in self.fields if known.lower() == name.lower()]
        return ", ".join(values)


class Conversation:
    """The upstream's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = sock.makefile("rb")

    def read_head(self) -> Request | None:
        """Read a request up to its empty line; None at the end of input."""
        lines: list[str] = []
        while (line := self._reader.readline().rstrip(b"\r\n").decode("latin-1")) or lines:
            if not line:
                break
            lines.append(line)
        if not lines:
            return None
        pairs = (line.partition(":") for line in lines[1:])
        return Request(lines[0], tuple((name, value.strip()) for name, _, value in pairs))

    def read_body(self, request: Request) -> Iterator[bytes]:
        """Yield the body in pieces, decoded."""
        if request.get("Transfer-Encoding") == "chunked":
            while size := int(self._reader.readline(), 16):
                yield from self._read(size)
                self._reader.readline()
            self._reader.readline()
        else:
            yield from self._read(int(request.get("Content-Length") or 0))

    def _read(self, count: int) -> Iterator[bytes]:
        while count:
            piece = self._reader.read(min(PIECE, count))
            if not piece:
                raise ConnectionError("the body was cut")
            count -= len(piece)
            yield piece

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.sock.sendall(part)

    def wait_for_end(self) -> bool:
        """Wait until Atlas has closed the connection; False when it says something instead."""
        try:
            return not self._reader.read(1)
        except ConnectionError:
            return True

    def reset(self) -> None:
        """Close so that the other side sees a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._reader.close()
        self.sock.close()


class Upstream:
    """A listening socket, and `serve` run on every connection until it returns."""

    def __init__(
        self,
        serve: Callable[[Conversation], None],
        *,
        name: str = "a",
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """`address` may be that of a socket file, "unix:" and a path."""
        self.name = name
        self.address = address
        self.port = 0
        if address.startswith("unix:"):
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(address[5:])
            self._listener.listen()
        else:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._listener = socket.create_server((address, port), family=family, backlog=1024)
            self.port = self._listener.getsockname()[1]
        self.accepted = 0
        self.requests = 0
        self._serve = serve
        self.tls: ssl.SSLContext | None = None  # what it speaks with, for connections from then on
        # Guards _open and the counters.
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, name=f"{name}-accept", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def connected(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._open)

    def count(self) -> int:
        """Count one request; returns its number."""
        with self._lock:
            self.requests += 1
            return self.requests

    def table(self, **more: object) -> dict[str, object]:
        """What the configuration says of this upstream."""
        port = {"port": self.port} if self.port else {}
        return {"name": self.name, "address": self.address, **port, **more}

    def close(self) -> None:
        """Stop listening and cut all connections."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._accepting.join(PATIENCE)
        with self._lock:
            for sock in self._open:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            threads = list(self._threads)
        for thread in threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            if self.port:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._run, args=(sock,), daemon=True)
            with self._lock:
                self.accepted += 1
                self._open.add(sock)
                self._threads = [known for known in self._threads if known.is_alive()]
                thread.start()
                self._threads.append(thread)

    def _run(self, plain: socket.socket) -> None:
        conversation, sock = None, plain
        try:
            if self.tls is not None:
                sock = self.tls.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._open.add(sock)
            conversation = Conversation(sock)
            self._serve(conversation)
        except (OSError, ValueError):
            pass  # Atlas or the test has cut the connection
        finally:
            with self._lock:
                self._open -= {plain, sock}
            sock.close() if conversation is None else conversation.close()


@contextlib.contextmanager
def black_hole(address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port on which connecting takes for ever; 0 = any.

    The backlog is full, so the kernel drops what comes, as a machine that is gone would.
    """
    with socket.create_server((address, port), backlog=0) as hole, contextlib.ExitStack() as stack:
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        yield hole.getsockname()[1]


def build_answer(body: bytes = b"", *, status: str = "200 OK", fields: str = "") -> bytes:
    """An answer with a length; `fields` are whole lines."""
    return f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


# The beginning of an answer, and of one that streams; both lack their end.
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
# The answer that makes a connection a tunnel.
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n"

Step = bytes | int | float | str | Callable[[Conversation, Request], object]
Script = Step | tuple[Step, ...]


class Scripted(Upstream):
    """An upstream that follows a script for each request, and remembers what it was sent.

    A script is one step or several:

    * a number answers with this status, and the upstream's name as the body;
    * bytes are sent as they are;
    * "hold" waits until the test calls `let_go`, "wait" until Atlas closes or says more, and "next"
      for the next request of this connection; `0.1` lets this time pass;
    * "reset" and "close" end the connection;
    * "unread", the first of several, leaves the body where it is: otherwise it is read before;
    * a function is called with the conversation and the request.

    The script may be changed at any time; `targets` has those of some targets. Probes of `/health`
    are answered with `health` where none is said for them, and are not counted as requests.
    """

    def __init__(
        self,
        name: str = "a",
        script: Script = 200,
        *,
        targets: Mapping[str, Script] | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.script = script
        self.targets = dict(targets or {})
        self.health = 200
        self.probes = 0
        self.seen: list[Request] = []
        self.bodies: list[bytes] = []
        self._turns = threading.Semaphore(0)
        super().__init__(self._converse, name=name, address=address, port=port)

    def let_go(self, count: int = 1) -> None:
        """Let so many of those that are held go on."""
        self._turns.release(count)

    def tokens(self) -> list[str]:
        """The tokens of all requests that came in whole or in part."""
        return [request.get("X-Token") for request in self.seen]

    def close(self) -> None:
        self.let_go(1000)
        super().close()

    def _converse(self, conversation: Conversation) -> None:
        while request := conversation.read_head():
            if request.target == "/health" and "/health" not in self.targets:
                self.probes += 1
                conversation.send(build_answer(status=f"{self.health} Whatever"))
            elif not self._follow(conversation, request):
                return

    def _follow(self, conversation: Conversation, request: Request) -> bool:
        """Do what the script says; False when the connection is over."""
        self.seen.append(request)
        self.count()
        script = self.targets.get(request.target, self.script)
        steps = script if isinstance(script, tuple) else (script,)
        if steps[0] != "unread":
            self.bodies.append(b"".join(conversation.read_body(request)))
        for step in steps:
            match step:
                case bytes():
                    conversation.send(step)
                case int():
                    status = f"{step} Whatever"
                    conversation.send(build_answer(self.name.encode(), status=status))
                case float():
                    time.sleep(step)
                case "hold":
                    self._turns.acquire(timeout=PATIENCE)
                case "wait":
                    conversation.wait_for_end()
                case "next":
                    if not (following := conversation.read_head()):
                        return False
                    request = following
                    self.seen.append(request)
                    self.count()
                case "reset":
                    conversation.reset()
                case "unread" | "close":
                    pass
                case word if isinstance(word, str):
                    raise AssertionError(f"not a word of a script: {word}")
                case function:
                    function(conversation, request)
        return steps[-1] not in ("close", "reset", "wait")


def named(name: str, *, delay: float = 0.0, address: str = "127.0.0.1", port: int = 0) -> Scripted:
    """An upstream that answers every request with its name, `delay` seconds later."""
    return Scripted(name, (delay, 200), address=address, port=port)


def answering(*answers: bytes, name: str = "a") -> Scripted:
    """An upstream that gives `answers` in turn on each connection, then closes it."""
    first, *others = answers
    return Scripted(
        name, (first, *(step for answer in others for step in ("next", answer)), "close")
    )


def silent(name: str = "a") -> Scripted:
    """An upstream that reads a request and never answers."""
    return Scripted(name, ("unread", "wait"))


def digesting(name: str = "a") -> Scripted:
    """An upstream that answers with the SHA-256 of the body it was sent."""

    def answer(conversation: Conversation, request: Request) -> None:
        digest = hashlib.sha256()
        for piece in conversation.read_body(request):
            digest.update(piece)
        conversation.send(build_answer(digest.hexdigest().encode()))

    return Scripted(name, ("unread", answer))


def echoing_fields(name: str = "a", address: str = "127.0.0.1") -> Scripted:
    """An upstream that answers with the head it was sent, a line per field."""

    def answer(conversation: Conversation, request: Request) -> None:
        lines = [request.line, *(f"{key}: {value}" for key, value in request.fields)]
        conversation.send(build_answer("\n".join(lines).encode()))

    return Scripted(name, answer, address=address)


if __name__ == "__main__":
    with named(sys.argv[1], port=int(sys.argv[2])) as process:
        print(process.port, flush=True)
        threading.Event().wait()
