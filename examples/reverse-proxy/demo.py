"""Shows what one upstream behind Atlas sees and answers, as this folder's README says.

Starts Python's own file server and then `upstream.py` behind Atlas, on free ports and with a copy
of `atlas.toml`: a large file down, a large body up, several requests on one connection, the fields
that Atlas adds, and a connection that changes its protocol. Run it from anywhere:
`python examples/reverse-proxy/demo.py`. Exit status 0 when all was as it should be, else 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support

HERE = Path(__file__).resolve().parent

PIECE = 256 * 1024
PIECES = 128  # 32 MiB, far more than fits into any buffer on the way


def main() -> None:
    """Go through the walkthrough of the README, one step after the other."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atlas-files-")))
        files = support.Program("-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(folder))
        stack.enter_context(files)
        app = stack.enter_context(support.start_upstream("app"))
        configuration = configure(files.wait_until_listening())
        atlas = stack.enter_context(support.Atlas(configuration))

        show_download(atlas, folder)

        port = app.wait_until_listening()
        atlas.path.write_text(configure(port), encoding="utf-8")
        print("    " + atlas.wait_until_said("Configuration hot-reloaded"))
        show_upload(atlas)
        show_fields(atlas)
        show_keep_alive(atlas)
        show_upgrade(atlas)
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)


def configure(upstream_port: int) -> str:
    """The example's configuration with the ports of this run."""
    configuration = (HERE / "atlas.toml").read_text(encoding="utf-8")
    configuration = configuration.replace("port = 8080\n", "port = 0\n")
    return configuration.replace("port = 3000\n", f"port = {upstream_port}\n")


def pieces() -> Iterator[bytes]:
    """The same large body each time, piece by piece."""
    for number in range(PIECES):
        yield number.to_bytes(4, "big") * (PIECE // 4)


def show_download(atlas: support.Atlas, folder: Path) -> None:
    """A file from `python -m http.server` arrives byte for byte."""
    with (folder / "large.bin").open("wb") as file:
        file.writelines(pieces())
    digest, total = hashlib.sha256(), 0
    with support.OPENER.open(f"{atlas.url}/large.bin", timeout=support.PATIENCE) as answer:
        while piece := answer.read(PIECE):
            digest.update(piece)
            total += len(piece)
    support.expect("bytes of a large file down", total, PIECES * PIECE)
    support.expect("its SHA-256 is that of the file", digest.hexdigest(), digest_of_pieces())


def show_upload(atlas: support.Atlas) -> None:
    """A large body arrives whole, whether its length is known beforehand or it comes in chunks."""
    wanted = f"app read {PIECES * PIECE} bytes, sha256 {digest_of_pieces()}"
    for framing in ({"Content-Length": str(PIECES * PIECE)}, {"Transfer-Encoding": "chunked"}):
        connection = connect(atlas)
        is_chunked = "Transfer-Encoding" in framing
        connection.request(
            "PUT", "/large.bin", body=pieces(), headers=framing, encode_chunked=is_chunked
        )
        said = connection.getresponse().read().decode().strip()
        support.expect(f"a large body up, {' '.join(*framing.items())}", said, wanted)
        connection.close()


def show_fields(atlas: support.Atlas) -> None:
    """The upstream hears who asked, and by which name; what a client claims is not believed."""
    connection = connect(atlas)
    claimed = {"Host": "www.example.com", "X-Forwarded-For": "192.0.2.1"}
    connection.request("GET", "/head", headers=claimed)
    head = connection.getresponse().read().decode().splitlines()
    for line in (
        "Host: www.example.com",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: www.example.com",
        "Via: 1.1 atlas",
    ):
        support.expect("the upstream is told", line if line in head else head, line)
    connection.close()


def show_keep_alive(atlas: support.Atlas) -> None:
    """One connection to Atlas carries many requests."""
    connection = connect(atlas)
    used = set()
    for _ in range(10):
        connection.request("GET", "/")
        connection.getresponse().read()
        used.add(connection.sock)
    support.expect("client connections that 10 requests took", len(used), 1)
    connection.close()


def show_upgrade(atlas: support.Atlas) -> None:
    """A connection that switches protocols, as WebSockets do, becomes a tunnel."""
    with socket.create_connection(("127.0.0.1", atlas.port), support.PATIENCE) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\n"
            b"Host: www.example.com\r\n"
            b"Connection: Upgrade\r\n"
            b"Upgrade: echo\r\n\r\n"
        )
        stream = client.makefile("rwb")
        support.expect("status of an upgrade", stream.readline().split()[1], b"101")
        while stream.readline() != b"\r\n":
            pass
        stream.write(b"no longer HTTP\n")
        stream.flush()
        support.expect("through the tunnel and back", stream.readline(), b"no longer HTTP\n")


def connect(atlas: support.Atlas) -> http.client.HTTPConnection:
    """A client connection to Atlas that is kept open between requests."""
    return http.client.HTTPConnection("127.0.0.1", atlas.port, timeout=support.PATIENCE)


def digest_of_pieces() -> str:
    """The SHA-256 of the large body, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in pieces():
        digest.update(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(support.run(main))
