"""Upstreams made for tests: real sockets, and answers that the test spells out byte by byte.

An `Upstream` runs one function per connection, each in a thread of its own. `Conversation` is what
that function is given: read a request, send bytes. `named` is the upstream of most tests: it
answers with its name and counts.

`python -m tests.fakes NAME PORT` is such an upstream as a process, for tests that kill it.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
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

    def _run(self, sock: socket.socket) -> None:
        conversation = Conversation(sock)
        try:
            self._serve(conversation)
        except (OSError, ValueError):
            pass  # Atlas or the test has cut the connection
        finally:
            with self._lock:
                self._open.discard(sock)
            conversation.close()


@contextlib.contextmanager
def black_hole(address: str = "127.0.0.1") -> Iterator[int]:
    """A port on which connecting takes for ever.

    The backlog is full, so the kernel drops what comes, as a machine that is gone would.
    """
    with socket.create_server((address, 0), backlog=0) as hole, contextlib.ExitStack() as stack:
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        yield hole.getsockname()[1]


def build_answer(body: bytes = b"", *, status: str = "200 OK", fields: str = "") -> bytes:
    """An answer with a length; `fields` are whole lines."""
    return f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


def named(name: str, *, delay: float = 0.0, address: str = "127.0.0.1", port: int = 0) -> Upstream:
    """An upstream that answers every request with its name, `delay` seconds later."""

    def serve(conversation: Conversation) -> None:
        while request := conversation.read_head():
            for _ in conversation.read_body(request):
                pass
            upstream.count()
            time.sleep(delay)
            conversation.send(answer)

    answer = build_answer(name.encode())
    upstream = Upstream(serve, name=name, address=address, port=port)
    return upstream


def digesting(name: str = "a") -> Upstream:
    """An upstream that answers with the SHA-256 of the body it was sent."""

    def serve(conversation: Conversation) -> None:
        while request := conversation.read_head():
            digest = hashlib.sha256()
            for piece in conversation.read_body(request):
                digest.update(piece)
            conversation.send(build_answer(digest.hexdigest().encode()))

    return Upstream(serve, name=name)


def echoing_fields(name: str = "a", address: str = "127.0.0.1") -> Upstream:
    """An upstream that answers with the head it was sent, a line per field."""

    def serve(conversation: Conversation) -> None:
        while request := conversation.read_head():
            lines = [request.line, *(f"{key}: {value}" for key, value in request.fields)]
            conversation.send(build_answer("\n".join(lines).encode()))

    return Upstream(serve, name=name, address=address)


def answering(*answers: bytes, name: str = "a") -> Upstream:
    """An upstream that gives `answers` in turn on each connection, then closes it."""

    def serve(conversation: Conversation) -> None:
        for answer in answers:
            request = conversation.read_head()
            if request is None:
                return
            for _ in conversation.read_body(request):
                pass
            conversation.send(answer)

    return Upstream(serve, name=name)


def silent(name: str = "a") -> Upstream:
    """An upstream that reads a request and never answers; it counts those whose client left."""

    def serve(conversation: Conversation) -> None:
        conversation.read_head()
        upstream.count()
        conversation.wait_for_end()

    upstream = Upstream(serve, name=name)
    return upstream


if __name__ == "__main__":
    with named(sys.argv[1], port=int(sys.argv[2])) as process:
        print(process.port, flush=True)
        threading.Event().wait()
