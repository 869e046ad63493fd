"""An upstream to play with: `python examples/upstream.py NAME PORT`.

It stands in for an application behind Atlas and needs nothing but Python. Port 0 takes any free
port; the first line of output says which.

    GET  /          says its name, so that one sees who answered; so do all other paths
    GET  /head      shows the request head as it arrived, which is what Atlas made of it
    GET  /wait/2    says its name after so many seconds
    POST, PUT       counts the body and says how many bytes came, and their SHA-256
    PUT  /status    gives all answers from now on the status in the body, such as 500
    Upgrade: echo   switches protocols and then sends back every byte, like a small WebSocket

It keeps connections open between requests (HTTP/1.1), as application servers do.
"""

import contextlib
import hashlib
import http.server
import sys
import time
from collections.abc import Iterator

PIECE = 64 * 1024


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection's requests; `name` is filled in by `main`, `status` by PUT."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    name = ""
    status = 200

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # nobody waits for the answer any more
            super().handle()

    def do_GET(self) -> None:
        if self.headers.get("Upgrade", "").lower() == "echo":
            self._echo()
        elif self.path == "/head":
            self._answer(f"{self.requestline}\n{self.headers}".encode())
        else:
            if self.path.startswith("/wait/"):
                time.sleep(float(self.path.removeprefix("/wait/").partition("?")[0]))
            word = "Hello" if self.status == 200 else self.status
            self._answer(f"{word} from {self.name}\n".encode(), self.status)

    def do_POST(self) -> None:
        digest, total = hashlib.sha256(), 0
        for piece in self._body():
            digest.update(piece)
            total += len(piece)
        self._answer(f"{self.name} read {total} bytes, sha256 {digest.hexdigest()}\n".encode())

    def do_PUT(self) -> None:
        if self.path != "/status":
            self.do_POST()
            return
        status = int(b"".join(self._body()))
        type(self).status = status  # for all connections
        self._answer(f"{self.name} answers {status} from now on\n".encode())

    def _body(self) -> Iterator[bytes]:
        """Read the request's body, whose length is known or which comes in chunks."""
        if self.headers.get("Transfer-Encoding") is None:
            yield from self._pieces(int(self.headers.get("Content-Length", 0)))
            return
        while length := int(self.rfile.readline(), 16):
            yield from self._pieces(length)
            self.rfile.readline()  # the line end after the data
        while self.rfile.readline().strip():
            pass  # trailers, up to the empty line

    def _pieces(self, remaining: int) -> Iterator[bytes]:
        while remaining and (piece := self.rfile.read(min(PIECE, remaining))):
            remaining -= len(piece)
            yield piece

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _echo(self) -> None:
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "echo")
        self.end_headers()
        self.close_connection = True  # once this is over: it is no longer HTTP
        while piece := self.rfile.read1(PIECE):
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing: the terminal belongs to whoever tries Atlas."""


def main(arguments: list[str]) -> int:
    """Serve until Ctrl-C; returns the exit status."""
    if len(arguments) != 2 or not arguments[1].isdecimal():
        print(__doc__, file=sys.stderr)
        return 2
    handler = type("Named", (Handler,), {"name": arguments[0]})
    address = ("127.0.0.1", int(arguments[1]))
    with http.server.ThreadingHTTPServer(address, handler) as server:
        print(f"{arguments[0]} listens on http://127.0.0.1:{server.server_address[1]}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
