"""Hostile clients: `python -m tests.soak.attacks PORT SECONDS [KIND ...]`, all kinds at once.

Each attack is one connection's life, from connecting until Atlas or time ends it; `KINDS` says how
many of each are kept going. They share one loop in one thread of a process of its own, on raw
sockets, so that what is not to be read is not read by some library either. Everything is bounded:
an "endless" line ends after `MOST_BYTES`, and Atlas having swallowed it all is a finding.

Prints, as JSON, how often each attack was made and how it ended, by status or word.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import resource
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field

HEAD = b"Host: example.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

# No limit of Atlas is near this, so what goes on for so long would go on for ever.
MOST_BYTES = 32 * 1024 * 1024

# The beginning of what a browser says when it takes the port for one with TLS.
CLIENT_HELLO = bytes.fromhex("16030102000100 01fc0303") + bytes(range(32)) + b"\x20" * 470

# The option that makes closing a reset.
_RESET = struct.pack("ii", 1, 0)

PIPELINED = 100_000
TINY_CHUNKS = 1_000_000

# Longer than any patience of Atlas in a siege.
PATIENCE = 30.0

# An answer is left unread for so long. Its end cannot be seen from here, behind bytes that nobody
# reads.
UNREAD = 15.0

# A connection that only waits is looked at so often.
TICK = 1.0


@dataclass
class Siege:
    """What all attacks share."""

    port: int
    until: float  # an instant
    outcomes: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )

    def is_over(self) -> bool:
        """Is time up, or so nearly that a wait cut short by it may have ended already?"""
        return time.monotonic() >= self.until - 0.1


class Line:
    """One connection to Atlas, without a buffer of its own."""

    def __init__(self, sock: socket.socket, siege: Siege) -> None:
        self.sock = sock
        self._siege = siege
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send, for as long as the siege goes on; `TimeoutError` then."""
        left = self._siege.until - time.monotonic()
        await asyncio.wait_for(self._loop.sock_sendall(self.sock, data), max(0.001, left))

    async def receive(self) -> bytes:
        """The next bytes; empty at the end of input. `TimeoutError` when none come."""
        left = min(PATIENCE, self._siege.until - time.monotonic())
        return await asyncio.wait_for(self._loop.sock_recv(self.sock, 65536), max(0.001, left))

    async def read_status(self) -> str:
        """How Atlas answers: a status, or "closed"."""
        data = await self.receive()
        return data[9:12].decode("latin-1") if data.startswith(b"HTTP/1.1 ") else "closed"

    def has_ended(self) -> bool:
        """Has Atlas closed the connection? What it said before that is thrown away."""
        try:
            return not self.sock.recv(65536)
        except BlockingIOError:
            return False


Attack = Callable[[Line, Siege], Awaitable[str]]


@contextlib.contextmanager
def connecting() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.setblocking(False)
        yield sock


async def send_half_a_head(line: Line, _: Siege) -> str:
    await line.send(b"GET /half HTTP/1.1\r\nHost: exa")
    return await line.read_status()


async def send_a_head_slowly(line: Line, siege: Siege) -> str:
    for number in range(1000):
        await line.send(GET[number : number + 1] or b"x")
        await asyncio.sleep(TICK)
        if siege.is_over() or line.has_ended():
            break
    return "cut"


async def send_a_body_slowly(line: Line, siege: Siege) -> str:
    await line.send(b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 1000000\r\n\r\n")
    while not siege.is_over() and not line.has_ended():
        await line.send(b"x")
        await asyncio.sleep(TICK)
    return "cut"


async def leave_an_answer_unread(line: Line, siege: Siege) -> str:
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await line.send(b"GET /large HTTP/1.1\r\n" + HEAD + b"\r\n")
    await asyncio.sleep(max(0.0, min(UNREAD, siege.until - time.monotonic())))
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return "left"


async def send_without_end(line: Line, begin: bytes, piece: bytes) -> str:
    """Send `piece` until Atlas objects; says how."""
    await line.send(begin)
    sent = 0
    status = "closed"
    try:
        while sent < MOST_BYTES:
            await line.send(piece)
            sent += len(piece)
            with contextlib.suppress(BlockingIOError):
                return line.sock.recv(65536)[9:12].decode("latin-1") or "closed"
        status = "swallowed"
    except ConnectionError:
        with contextlib.suppress(ConnectionError):
            status = await line.read_status()
    return status


async def send_an_endless_extension(line: Line, _: Siege) -> str:
    return await send_without_end(line, CHUNKED + b"1;", b"name=value;" * 100)


async def send_endless_trailers(line: Line, _: Siege) -> str:
    return await send_without_end(line, CHUNKED + b"0\r\n", b"X-Trailer: value\r\n" * 100)


async def send_an_endless_head(line: Line, _: Siege) -> str:
    return await send_without_end(line, b"GET / HTTP/1.1\r\n", b"X-Field: value\r\n" * 100)


async def send_tiny_chunks(line: Line, _: Siege) -> str:
    await line.send(CHUNKED)
    for _number in range(TINY_CHUNKS // 1000):
        await line.send(b"1\r\nx\r\n" * 1000)
    await line.send(b"0\r\n\r\n")
    return await line.read_status()


async def pipeline(line: Line, _: Siege) -> str:
    async def send() -> None:
        for _number in range(PIPELINED // 1000):
            await line.send(GET * 1000)

    sending = asyncio.create_task(send())
    count, rest = 0, b""
    try:
        while count < PIPELINED:
            data = await line.receive()
            if not data:
                return f"{count} answers"
            data = rest + data
            count += data.count(b"HTTP/1.1 200 OK")
            rest = data[data.rfind(b"HTTP/1.1 200 OK") + 15 :][-14:]
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await sending
    return "all answered"


async def ask_for_endless_1xx(line: Line, _: Siege) -> str:
    await line.send(b"GET /endless HTTP/1.1\r\n" + HEAD + b"\r\n")
    while data := await line.receive():
        if b"HTTP/1.1 502" in data:
            return "502"
    return "closed"


async def follow_events(line: Line, _: Siege) -> str:
    await line.send(b"GET /events HTTP/1.1\r\n" + HEAD + b"\r\n")
    if (status := await line.read_status()) != "200":
        return status
    while await line.receive():  # until the siege is over
        pass
    return "lost"


async def wait_for_news(line: Line, _: Siege) -> str:
    await line.send(b"GET /news HTTP/1.1\r\n" + HEAD + b"\r\n")
    return await line.read_status()


async def send_garbage(line: Line, _: Siege) -> str:
    await line.send(random.randbytes(random.randint(1, 4000)) + b"\r\n\r\n")
    line.sock.shutdown(socket.SHUT_WR)
    return await line.read_status()


async def say_hello_in_tls(line: Line, _: Siege) -> str:
    await line.send(CLIENT_HELLO)
    return await line.read_status()


async def reset(line: Line, _: Siege) -> str:
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return "reset"


@dataclass(frozen=True)
class Kind:
    """An attack, how many go on at once, and the pause after each."""

    attack: Attack
    count: int
    pause: float


# The two that hold a thread each, and those that keep one busy, stay well below max_threads. Those
# that wait for an upstream are many times as many.
KINDS = (
    Kind(send_half_a_head, 2500, 1.0),
    Kind(send_a_head_slowly, 500, 1.0),
    Kind(send_a_body_slowly, 60, 1.0),
    Kind(leave_an_answer_unread, 40, 1.0),
    Kind(send_an_endless_extension, 4, 0.5),
    Kind(send_endless_trailers, 4, 0.5),
    Kind(send_an_endless_head, 4, 0.5),
    Kind(send_tiny_chunks, 1, 1.0),
    Kind(pipeline, 1, 1.0),
    Kind(ask_for_endless_1xx, 2, 0.5),
    Kind(follow_events, 400, 0.5),
    Kind(wait_for_news, 200, 0.5),
    Kind(send_garbage, 4, 0.1),
    Kind(say_hello_in_tls, 4, 0.1),
    Kind(reset, 4, 0.05),
)


async def keep_attacking(kind: Kind, siege: Siege, delay: float) -> None:
    """One hostile client: the same attack again and again."""
    loop = asyncio.get_running_loop()
    outcomes = siege.outcomes[kind.attack.__name__]
    await asyncio.sleep(delay)
    while not siege.is_over():
        with connecting() as sock:
            try:
                await asyncio.wait_for(loop.sock_connect(sock, ("127.0.0.1", siege.port)), 10)
                outcome = await kind.attack(Line(sock, siege), siege)
            except TimeoutError:
                outcome = "over" if siege.is_over() else "no answer"
            except ConnectionError:
                outcome = "closed"
        outcomes[outcome] += 1
        await asyncio.sleep(min(kind.pause, max(0.0, siege.until - time.monotonic())))


def open_files() -> int:
    """Take as many open files as the system grants; Atlas does the same. Returns how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most if most != resource.RLIM_INFINITY else 1_000_000


async def attack(port: int, seconds: float, names: Collection[str]) -> dict[str, dict[str, int]]:
    """Attack for so long; returns how often each kind ended how. No names: all kinds."""
    siege = Siege(port, time.monotonic() + seconds)
    ramp = seconds / 10  # a siege that begins all at once measures nothing but its beginning
    share = min(1.0, open_files() / (2 * sum(kind.count for kind in KINDS)))
    async with asyncio.TaskGroup() as group:
        for kind in KINDS:
            if names and kind.attack.__name__ not in names:
                continue
            count = max(1, int(kind.count * share))
            for number in range(count):
                group.create_task(keep_attacking(kind, siege, ramp * number / count))
    return {name: dict(outcomes) for name, outcomes in siege.outcomes.items()}


if __name__ == "__main__":
    outcomes = asyncio.run(attack(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
    print(json.dumps(outcomes), flush=True)
