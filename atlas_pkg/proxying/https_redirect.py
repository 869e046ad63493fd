"""The port that sends clients on from http to https (`listen.http_redirect`).

A frontend of its own, with a configuration of one route, which redirects all that comes: 308, so
that a POST stays one. It takes no part in TLS and has no upstreams.

One thing has to be had without TLS: who issues certificates by ACME looks for a proof at a path of
this port (RFC 8555 §8.3). certbot and others write it into a folder, `listen.acme_folder`, and from
there it is served, by a thread that may wait for the disk.
"""

from __future__ import annotations

import email.utils
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from atlas_pkg.balancing.pool import Pool
from atlas_pkg.config.model import Config, RouteConfig
from atlas_pkg.errors import ClientError
from atlas_pkg.observing.observers import Observers
from atlas_pkg.serving.client import FINISH
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.exchange import DONE, WAIT, Exchange, Step
from atlas_pkg.serving.frontend import Frontend
from atlas_pkg.serving.generation import ConfigHolder, Generation

# The path is fixed; a token has the letters of base64url (RFC 8555 §8.3), so it leads nowhere else.
_CHALLENGE = re.compile(rb"/(\.well-known/acme-challenge/[A-Za-z0-9_-]{1,255})")

# Threads that read proofs, or answer clients who do not read.
MAX_THREADS = 16

# How long answers under way are waited for at the end.
GRACE = 1.0


class HttpsRedirect:
    """Serves that port."""

    def __init__(
        self, config: Config, observers: Observers, *, tidy: Callable[[Pool], None]
    ) -> None:
        self._port = config.listen.port
        self._holder = ConfigHolder(Generation(self._adapt(config)))
        self._front = Frontend(
            self._holder,
            Clients(),
            _Redirector(),
            observers,
            tidy=tidy,
            lanes=min(1, config.listen.lanes),
            max_threads=MAX_THREADS,
        )

    def start(self, listeners: Sequence[socket.socket], port: int) -> None:
        """Send the clients of `listeners`, which are taken over, on to `port`."""
        self._port = port
        self.follow(self._holder.generation.config)
        self._front.start(listeners)

    def follow(self, config: Config) -> None:
        """Do as `config` says from now on."""
        self._holder.swap(Generation(self._adapt(config), self._holder.generation))

    def stop_accepting(self) -> None:
        """Answer those who are connected once more, and nobody else."""
        self._front.stop_accepting()

    def stop(self) -> None:
        """End, and cut whoever does not let go in a second. Blocks."""
        self._front.end(GRACE)

    def _adapt(self, config: Config) -> Config:
        """What of `config` holds for this port, and the one route."""
        port = "" if self._port == 443 else f":{self._port}"
        # RFC 6797 §7.2: that https is to be kept to is not said without it.
        fields = tuple(
            (name, value)
            for name, value in config.forwarding.set_response_fields
            if name.lower() != "strict-transport-security"
        )
        return replace(
            config,
            listen=replace(config.listen, mode="http", tls=None),
            upstreams=(),
            groups=(),
            forwarding=replace(config.forwarding, set_response_fields=fields),
            routes=(RouteConfig(redirect=f"https://{{host}}{port}{{uri}}"),),
        )


class _Redirector:
    """App: redirects, and serves proofs for ACME. Thread-safe."""

    def ask(self, exchange: Exchange) -> Step:
        """Answer what needs no file. Never waits. Raises `ClientError`."""
        folder = exchange.generation.config.listen.acme_folder
        if folder and _CHALLENGE.fullmatch(exchange.request.target):
            return WAIT
        exchange.answer_ours()
        return WAIT if exchange.rest else DONE

    def forward(self, exchange: Exchange) -> Step:
        """Answer. Blocks. Raises `ClientError` and `StreamError`."""
        config = exchange.generation.config
        found = _CHALLENGE.fullmatch(exchange.request.target)
        if found is None or not config.listen.acme_folder:
            self.ask(exchange)
        else:
            proof = config.path.parent / config.listen.acme_folder / found[1].decode("ascii")
            _answer_with(exchange, proof)
        exchange.send_rest()
        return DONE

    def answer(self, _: Exchange) -> Step:
        """There are no upstreams."""
        return WAIT


def _answer_with(exchange: Exchange, proof: Path) -> None:
    """Answer with what stands in a file. Blocks on the disk. Raises `ClientError`."""
    try:
        data = proof.read_bytes()
    except OSError:
        raise ClientError(404, "there is no such proof") from None
    if exchange.request.has_body:
        exchange.following = FINISH  # it would be read as a request
    head = (
        b"HTTP/1.1 200 OK\r\nDate: %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n%b\r\n"
        % (
            email.utils.formatdate(usegmt=True).encode("ascii"),
            len(data),
            exchange.persistence(),
        )
    )
    exchange.answer_whole(200, exchange.generation.forwarder.dress_answer(head + data))
