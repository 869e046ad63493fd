"""`--demo`: three small upstreams, a configuration for them, and what to try.

The demo writes its configuration into a new temporary folder, so it can be edited while
Atlas runs. The upstreams are the standard library's HTTP server, in threads of this process;
each says its name. Everything is gone when the demo ends.
"""

from __future__ import annotations

import http.server
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

NAMES = ("red", "green", "blue")
WEIGHTS = (3, 2, 1)
PREFERRED_PORT = 8080

_CONFIGURATION = """\
# Edit and save this file while Atlas runs: the change is in force a moment later.
[listen]
address = "127.0.0.1"
port = {port}

{upstreams}
[routing]
strategy = "weighted_round_robin"
"""

_UPSTREAM = """\
[[upstreams]]
name = "{name}"
address = "127.0.0.1"
port = {port}
weight = {weight}

"""

_INVITATION = """
Atlas is balancing three upstreams: red, green and blue, with the weights 3, 2 and 1.

  Open       http://127.0.0.1:{port}/
  Or try     for i in 1 2 3 4 5 6; do curl -s http://127.0.0.1:{port}/; done
  Then edit  {path}
             give blue the weight 3, save, and run the loop again
  End        Ctrl-C
"""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers every GET with the name of its server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are written apart: else each waits for an ACK
    name = ""

    def do_GET(self) -> None:
        body = f"Hello from {self.name}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing: the terminal belongs to Atlas's own log."""


class _Upstream(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


class Demo:
    """Upstreams and their configuration file; a context manager that clears both away."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="atlas-demo-")
        self._upstreams = [
            _Upstream(("127.0.0.1", 0), type(f"_{name}", (_Handler,), {"name": name}))
            for name in NAMES
        ]
        self.path = Path(self._folder.name) / "atlas.toml"
        blocks = [
            _UPSTREAM.format(name=name, port=upstream.server_address[1], weight=weight)
            for name, weight, upstream in zip(NAMES, WEIGHTS, self._upstreams, strict=True)
        ]
        self.path.write_text(
            _CONFIGURATION.format(port=_free_port(), upstreams="".join(blocks)), encoding="utf-8"
        )

    def __enter__(self) -> Self:
        for name, upstream in zip(NAMES, self._upstreams, strict=True):
            threading.Thread(
                target=upstream.serve_forever, name=f"demo-{name}", daemon=True
            ).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for upstream in self._upstreams:
            upstream.shutdown()
            upstream.server_close()
        self._folder.cleanup()

    def invitation(self, port: int) -> str:
        """What to open and what to try, for the terminal."""
        return _INVITATION.format(port=port, path=self.path)


def _free_port() -> int:
    """The usual port if nobody has it, else 0, which lets the system choose."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PREFERRED_PORT))
        except OSError:
            return 0
    return PREFERRED_PORT
