"""Shows that connections and files are served as this folder's README says.

Starts two stores and Atlas on free ports, with a copy of `atlas.toml`, then Atlas once more with
`files.toml`. Run it from anywhere: `python examples/tcp/demo.py`. Exit status 0 when all was as it
should be, else 1.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support

HERE = Path(__file__).resolve().parent


class Client:
    """A connection to a store, over which lines are sent and answers read."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), support.PATIENCE)
        self._reader = self._sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; harmless when it has ended already."""
        self._reader.close()
        self._sock.close()

    def ask(self, line: str) -> str:
        """Send a line, and return the answer without its marks; empty if the connection ends."""
        self._sock.sendall(f"{line}\r\n".encode())
        answer = self._reader.readline()
        if answer.startswith(b"$") and not answer.startswith(b"$-"):
            answer = b"+" + self._reader.readline()
        return answer[1:].decode().strip()

    def has_ended(self) -> bool:
        """Wait until the other side closes."""
        return not self._reader.read(1)


def main() -> None:
    """Go through the walkthrough of the README, one step after the other."""
    with contextlib.ExitStack() as stack:
        names = ("one", "two")
        stores = {name: stack.enter_context(start_store(name)) for name in names}
        ports = {name: store.wait_until_listening() for name, store in stores.items()}
        atlas = stack.enter_context(support.Atlas(configure(ports)))

        clients = [stack.enter_context(Client(atlas.port)) for _ in range(6)]
        served = [client.ask("NAME") for client in clients]
        support.expect(
            "six connections, each its own choice", sorted(served), ["one"] * 3 + ["two"] * 3
        )
        counts = [clients[0].ask("INCR visits") for _ in range(3)]
        support.expect("one connection stays with its store", counts, ["1", "2", "3"])

        stores["two"].kill()
        pairs = list(zip(served, clients, strict=True))
        ended = [client.has_ended() for name, client in pairs if name == "two"]
        support.expect("two is killed: its connections end", ended, [True] * 3)
        answers = [client.ask("PING") for name, client in pairs if name == "one"]
        support.expect("and the others go on", answers, ["PONG"] * 3)
        names_now = []
        for _ in range(4):
            with Client(atlas.port) as client:
                names_now.append(client.ask("NAME"))
        support.expect("new ones are all served by one", names_now, ["one"] * 4)
        print("    " + atlas.wait_until_said("upstream two is down"))
        for client in clients:
            client.close()
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)

    show_files()


def show_files() -> None:
    """The second part: files of a folder."""
    text = (HERE / "files.toml").read_text(encoding="utf-8")
    text = text.replace('root = "files"', f'root = "{HERE / "files"}"')
    with support.Atlas(text.replace("port = 8081\n", "port = 0\n")) as atlas:
        support.expect("the index of a folder", support.fetch(f"{atlas.url}/"), "<!DOCTYPE html>")
        request = urllib.request.Request(f"{atlas.url}/style.css", headers={"Range": "bytes=0-3"})
        with support.OPENER.open(request, timeout=support.PATIENCE) as answer:
            support.expect("a range", (answer.status, answer.read()), (206, b"body"))
            tag = answer.headers["ETag"]
        request = urllib.request.Request(f"{atlas.url}/style.css", headers={"If-None-Match": tag})
        try:
            support.OPENER.open(request, timeout=support.PATIENCE).close()
        except urllib.error.HTTPError as error:
            support.expect("what the client has is not sent again", error.code, 304)
            error.close()
        support.expect("nothing outside", support.fetch(f"{atlas.url}/%2e%2e/demo.py"), "404")
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)


def start_store(name: str) -> support.Program:
    """Start `store.py` on a free port."""
    return support.Program(str(HERE / "store.py"), name, "0")


def configure(ports: dict[str, int]) -> str:
    """The example's configuration with the ports of this run."""
    configuration = (HERE / "atlas.toml").read_text(encoding="utf-8")
    for old, new in {8080: 0, 6001: ports["one"], 6002: ports["two"]}.items():
        configuration = configuration.replace(f"port = {old}\n", f"port = {new}\n")
    return configuration


if __name__ == "__main__":
    sys.exit(support.run(main))
