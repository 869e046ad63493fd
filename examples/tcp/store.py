"""A server that is no HTTP: `python examples/tcp/store.py NAME PORT` (0 = any free port).

It speaks enough of Redis's protocol for `redis-cli`: SET, GET, INCR, PING and NAME, which says who
it is. What is stored is in memory, and each of several servers has its own. A request is either an
array of words with their lengths, as Redis's clients send it, or a line of words, as people do.
"""

from __future__ import annotations

import socketserver
import sys
import threading


class Conversation(socketserver.StreamRequestHandler):
    """One client, until it has nothing more to ask."""

    server: Store

    def handle(self) -> None:
        """Answer one request after the other."""
        while words := self._read():
            self.wfile.write(self.server.answer(words))

    def _read(self) -> list[bytes]:
        """Read a request; empty at the end of input."""
        line = self.rfile.readline().strip()
        if not line.startswith(b"*"):
            return line.split()
        words = []
        for _ in range(int(line[1:])):
            length = int(self.rfile.readline()[1:])
            words.append(self.rfile.read(length + 2)[:-2])
        return words


class Store(socketserver.ThreadingTCPServer):
    """Keys and values, and what can be asked of them."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, name: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), Conversation)
        self._name = name.encode()
        self._lock = threading.Lock()  # guards the values
        self._values: dict[bytes, bytes] = {}

    def answer(self, words: list[bytes]) -> bytes:
        """Do what is asked."""
        command, *arguments = words
        with self._lock:
            match command.upper(), arguments:
                case b"PING", []:
                    return b"+PONG\r\n"
                case b"NAME", []:
                    return _show(self._name)
                case b"SET", [key, value]:
                    self._values[key] = value
                    return b"+OK\r\n"
                case b"GET", [key]:
                    return _show(self._values.get(key))
                case b"INCR", [key]:
                    count = int(self._values.get(key, b"0")) + 1
                    self._values[key] = b"%d" % count
                    return b":%d\r\n" % count
        return b"-ERR unknown command\r\n"


def _show(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


if __name__ == "__main__":
    with Store(sys.argv[1], int(sys.argv[2])) as store:
        print(f"{sys.argv[1]} listens on tcp://127.0.0.1:{store.server_address[1]}")
        store.serve_forever()
