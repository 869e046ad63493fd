"""Step 4: several upstreams, and strategies behind a lock.

Run it: `python3 step4.py 8080 least_connections 127.0.0.1:3001 127.0.0.1:3002`
"""

import contextlib
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from attempt import ask, pass_back
from message import MalformedMessage, Stream, read_request, refuse

PATIENCE = 10.0  # seconds that a client may take until the next bytes


@dataclass(eq=False)  # each is itself, whatever it holds, and may be a key
class Upstream:
    """One server, and what is true of it now."""

    address: tuple[str, int]
    in_flight: int = 0  # requests that it has not answered yet


def round_robin(upstreams: Sequence[Upstream], turn: int) -> Upstream:
    """One after the other."""
    return upstreams[turn % len(upstreams)]


def least_connections(upstreams: Sequence[Upstream], turn: int) -> Upstream:
    """The one with the least to do; among equals, in turns."""
    first = turn % len(upstreams)
    return min([*upstreams[first:], *upstreams[:first]], key=lambda each: each.in_flight)


STRATEGIES = {"round_robin": round_robin, "least_connections": least_connections}


class Balancer:
    """Chooses an upstream for each request."""

    def __init__(self, strategy: str, upstreams: Sequence[Upstream]) -> None:
        self.lock = threading.Lock()  # guards what follows, and all counts
        self.upstreams = upstreams
        self.choose = STRATEGIES[strategy]
        self.turn = 0

    def lease(self) -> Upstream:
        """Choose and count, in one step. Whoever leases gives back."""
        with self.lock:
            upstream = self.choose(self.upstreams, self.turn)
            self.turn += 1
            upstream.in_flight += 1
            return upstream

    def release(self, upstream: Upstream) -> None:
        """Give a lease back."""
        with self.lock:
            upstream.in_flight -= 1


def serve(client: Stream, balancer: Balancer, pool: dict[Upstream, list[Stream]]) -> bool:
    """Answer one request; may the client ask again?"""
    try:
        request = read_request(client)
    except MalformedMessage:
        return refuse(client, b"400 Bad Request")
    upstream = balancer.lease()
    idle = pool.setdefault(upstream, [])
    try:
        connection, response = ask(client, request, upstream.address, idle)
    except (OSError, MalformedMessage):
        return refuse(client, b"502 Bad Gateway")
    else:
        return pass_back(client, request, connection, response, idle)
    finally:
        balancer.release(upstream)


def serve_client(client: Stream, balancer: Balancer) -> None:
    """Serve a client from its first request to its last."""
    pool: dict[Upstream, list[Stream]] = {}
    # Whatever goes wrong with this client, it costs nobody else.
    with client.sock, contextlib.suppress(OSError, MalformedMessage):
        while serve(client, balancer, pool):
            pass


def start(target, *arguments) -> None:
    """Have a thread of its own do something; it ends with the program."""
    threading.Thread(target=target, args=arguments, daemon=True).start()


def main(port: str, strategy: str, *upstreams: str) -> None:
    """Give each client a thread. Never ends."""
    parts = [upstream.rpartition(":") for upstream in upstreams]
    balancer = Balancer(strategy, [Upstream((host, int(number))) for host, _, number in parts])
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            client, _ = listener.accept()
            start(serve_client, Stream(client, PATIENCE), balancer)


if __name__ == "__main__":
    main(*sys.argv[1:])
