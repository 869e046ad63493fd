"""A small upstream of our own: `python -m tests.bench.upstream PORT FOLDER`.

It does what nginx does not do as an upstream: it swallows uploads before it answers, and sends
chunks. Where nginx is not installed it serves everything else too; then it is slower than the
proxies in front of it, and small answers measure mostly this.

One thread per connection. `FOLDER` holds the large files, under the names of their paths.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from pathlib import Path

from tests.bench.metrics import SIZES

PIECE = 1 << 20
CLOSING = b"Connection: close\r\n"
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class Upstream:
    """Serves what the benchmark asks for."""

    def __init__(self, folder: Path) -> None:
        self._small = b"x" * SIZES["/1k"]
        self._files = {
            name.encode(): os.open(folder / name.strip("/"), os.O_RDONLY)
            for name in ("/10m", "/100m")
        }

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            os.close(file)

    def converse(self, sock: socket.socket) -> None:
        """Answer requests until the other side has enough."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock:
            try:
                while head := _read_request(sock):
                    is_last = b"\r\nconnection: close" in head.lower()
                    self._answer(sock, head.split(b" ", 2)[1], CLOSING if is_last else b"")
                    if is_last:
                        return
            except ConnectionError:
                return

    def _answer(self, sock: socket.socket, path: bytes, more: bytes) -> None:
        """Send the answer; `more` is another line of its head, or nothing."""
        if path == b"/chunked":
            sock.sendall(b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % more)
            _send_chunks(sock, SIZES["/chunked"])
        elif path in self._files:
            file = self._files[path]
            size = os.fstat(file).st_size
            sock.sendall(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (more, size))
            sent = 0
            while sent < size:
                sent += os.sendfile(sock.fileno(), file, sent, size - sent)
        else:
            length = len(self._small)
            head = b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (more, length)
            sock.sendall(head + self._small)


def _read_request(sock: socket.socket) -> bytes:
    """Read a head and swallow its body; the head, or nothing at the end of input."""
    data = b""
    while (end := data.find(b"\r\n\r\n") + 4) < 4:
        more = sock.recv(PIECE)
        if not more:
            return b""
        data += more
    length = _LENGTH.search(data, 0, end)
    missing = int(length[1]) - (len(data) - end) if length else 0
    if missing > 0:
        swallow(sock, missing)
    return data[:end]


def swallow(sock: socket.socket, count: int) -> None:
    """Take `count` bytes out of the kernel and drop them there: on Linux nothing is copied."""
    nowhere = bytearray(PIECE)
    while count:
        taken = sock.recv_into(nowhere, min(count, PIECE), socket.MSG_TRUNC)
        if not taken:
            raise ConnectionError("the body was cut")
        count -= taken


def _send_chunks(sock: socket.socket, size: int) -> None:
    whole, rest = divmod(size, 0x10000)
    for _ in range(whole):
        sock.sendall(CHUNK)
    sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (rest, b"x" * rest))


def main(port: int, folder: Path) -> None:
    """Serve for ever."""
    upstream = Upstream(folder)
    with socket.create_server(("127.0.0.1", port), backlog=4096) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=upstream.converse, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
