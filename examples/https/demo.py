"""Shows TLS as this folder's README says.

Makes certificates in a temporary folder, starts an upstream and Atlas on free ports with a copy of
`atlas.toml`, asks under several names, follows the redirect, replaces a certificate while a client
is connected, and has another Atlas speak TLS to this one. Run it from anywhere:
`python examples/https/demo.py`. It wants the `openssl` command. Exit status 0 when all was as it
should be, else 1.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support
import certificates

HERE = Path(__file__).resolve().parent


# Another Atlas, in front of that of this example.
FRONT = """
[listen]
address = "127.0.0.1"
port = 0
[[upstreams]]
name = "inner"
address = "127.0.0.1"
port = {port}
[upstreams.tls]
ca = "{folder}/ca.pem"
server_name = "{name}"
"""


class Connection(http.client.HTTPSConnection):
    """A connection to this machine that asks for the certificate of `name`."""

    def __init__(self, port: int, name: str, context: ssl.SSLContext) -> None:
        super().__init__(name, port, timeout=support.PATIENCE, context=context)
        self._own_context = context

    def connect(self) -> None:
        """Connect to this machine, whatever the name stands for elsewhere."""
        plain = socket.create_connection(("127.0.0.1", self.port), support.PATIENCE)
        self.sock = self._own_context.wrap_socket(plain, server_hostname=self.host)

    def get(self, path: str = "/") -> str:
        """Fetch a path; returns the body."""
        self.request("GET", path)
        return self.getresponse().read().decode()

    def shown(self) -> tuple[str, str]:
        """The first name of the certificate that was shown, and its number."""
        certificate = self.sock.getpeercert()
        return certificate["subjectAltName"][0][1], certificate["serialNumber"]


def main() -> None:
    """Go through the walkthrough of the README, one step after the other."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atlas-https-")))
        certificates.make_authority(folder)
        for file in certificates.NAMES:
            certificates.make_pair(folder, file)
        trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        app = stack.enter_context(support.start_upstream("app"))
        plain_port = find_free_port()
        configuration = configure(folder, app.wait_until_listening(), plain_port)
        atlas = stack.enter_context(support.Atlas(configuration))

        show_names(atlas.port, trusting)
        show_redirect(plain_port, atlas.port, folder)
        show_upstream(folder, atlas.port)
        show_rotation(folder, atlas, trusting)
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)


def configure(folder: Path, upstream_port: int, plain_port: int) -> str:
    """The example's configuration with the ports and files of this run."""
    configuration = (HERE / "atlas.toml").read_text(encoding="utf-8")
    for ours, theirs in (
        ("port = 8443", "port = 0"),
        ("http_redirect = 8080", f"http_redirect = {plain_port}"),
        ("port = 3000", f"port = {upstream_port}"),
        *((f'"{file}"', f'"{folder}/{file}"') for file in ("one.pem", "one.key", "acme")),
        *((f'"{file}"', f'"{folder}/{file}"') for file in ("two.pem", "two.key")),
    ):
        configuration = configuration.replace(ours, theirs)
    return configuration


def find_free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def show_names(port: int, trusting: ssl.SSLContext) -> None:
    """The name that a client asks for chooses the certificate."""
    for name, expected in (
        ("one.test", "one.test"),
        ("two.test", "two.test"),
        ("api.two.test", "two.test"),
    ):
        with contextlib.closing(Connection(port, name, trusting)) as connection:
            body = connection.get("/head")
            support.expect(f"{name} is shown the certificate of", connection.shown()[0], expected)
    support.expect("the upstream hears of https", "X-Forwarded-Proto: https" in body, True)
    said = support.fetch(f"http://127.0.0.1:{port}/")
    support.expect("http on this port is answered", said, "400")


def show_redirect(plain_port: int, port: int, folder: Path) -> None:
    """The other port leads here, and serves proofs for the authority."""
    connection = http.client.HTTPConnection("127.0.0.1", plain_port, timeout=support.PATIENCE)
    connection.request("GET", "/a?b=c", headers={"Host": "one.test"})
    answer = connection.getresponse()
    answer.read()
    found = (answer.status, answer.headers["Location"])
    support.expect("http leads to", found, (308, f"https://one.test:{port}/a?b=c"))

    proofs = folder / "acme" / ".well-known" / "acme-challenge"
    proofs.mkdir(parents=True)
    (proofs / "token").write_text("token.proof", encoding="utf-8")
    connection.request("GET", "/.well-known/acme-challenge/token")
    support.expect("a proof is served", connection.getresponse().read(), b"token.proof")
    connection.close()


def show_upstream(folder: Path, port: int) -> None:
    """Another Atlas in front of this one speaks TLS to it, if that proves who it is."""
    for name, expected in (("one.test", 200), ("other.test", 502)):
        with support.Atlas(FRONT.format(port=port, folder=folder, name=name)) as front:
            connection = http.client.HTTPConnection(
                "127.0.0.1", front.port, timeout=support.PATIENCE
            )
            connection.request("GET", "/")
            status = connection.getresponse().status
            support.expect(f"with an upstream that should be {name}", status, expected)
            connection.close()


def show_rotation(folder: Path, atlas: support.Atlas, trusting: ssl.SSLContext) -> None:
    """A new pair is shown to whoever comes next; one that does not match changes nothing."""
    port = atlas.port
    with contextlib.closing(Connection(port, "one.test", trusting)) as staying:
        staying.get()
        old, began = staying.shown(), time.monotonic()
        certificates.make_pair(folder, "one")
        while show_now(port, trusting) == old:
            if time.monotonic() - began > support.PATIENCE:
                raise support.DemoFailed("the new certificate is not shown")
        support.expect("who was connected goes on", staying.get().strip(), "Hello from app")

    new = show_now(port, trusting)
    (folder / "one.key").write_bytes((folder / "two.key").read_bytes())
    atlas.wait_until_said("key values mismatch")
    support.expect("a key of another one is refused", show_now(port, trusting), new)


def show_now(port: int, trusting: ssl.SSLContext) -> tuple[str, str]:
    """What somebody is shown who comes now."""
    with contextlib.closing(Connection(port, "one.test", trusting)) as connection:
        connection.get()
        return connection.shown()


if __name__ == "__main__":
    sys.exit(support.run(main))
