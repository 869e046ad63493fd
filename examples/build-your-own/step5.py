"""Step 5: a configuration that may change while requests are under way.

Run it: `python3 step5.py balancer.toml`
"""

import contextlib
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attempt import ask, pass_back
from message import MalformedMessage, Stream, read_request, refuse

PATIENCE = 10.0  # seconds that a client may take until the next bytes
LOOK_EVERY = 0.2  # seconds from one look at the configuration to the next


@dataclass(eq=False)  # each is itself, whatever it holds, and may be a key
class Upstream:
    """One server, and what is true of it now."""

    name: str
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
    """Chooses an upstream for each request, whatever configuration is in force."""

    def __init__(self, config: dict) -> None:
        self.lock = threading.Lock()  # guards what follows, and all counts
        self.upstreams: list[Upstream] = []
        self.turn = 0
        self.apply(config)

    def apply(self, config: dict) -> None:
        """Put a configuration in force, whole or not at all. Upstreams that stay are the same."""
        choose = STRATEGIES[config["routing"]["strategy"]]
        listed = [(each["name"], (each["address"], each["port"])) for each in config["upstreams"]]
        known = {(each.name, each.address): each for each in self.upstreams}
        upstreams = [known.get(identity) or Upstream(*identity) for identity in listed]
        with self.lock:
            self.choose, self.upstreams = choose, upstreams

    def lease(self) -> Upstream | None:
        """Choose and count, in one step; None if there is nobody. Whoever leases gives back."""
        with self.lock:
            if not self.upstreams:
                return None
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
    if upstream is None:
        return refuse(client, b"503 Service Unavailable")
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


def watch(path: Path, seen: bytes, balancer: Balancer) -> None:
    """Take over what is written to the file. Never ends."""
    while True:
        time.sleep(LOOK_EVERY)
        try:
            data = path.read_bytes()
            if data == seen:
                continue
            seen = data
            balancer.apply(tomllib.loads(data.decode()))
            print("Configuration hot-reloaded", flush=True)
        except (OSError, ValueError, LookupError, TypeError) as error:
            print(f"{path}: {error!r}; what is in force stays", flush=True)


def main(file: str) -> None:
    """Give each client a thread. Never ends."""
    path = Path(file)
    data = path.read_bytes()
    config = tomllib.loads(data.decode())
    balancer = Balancer(config)
    start(watch, path, data, balancer)
    listen = config["listen"]
    with socket.create_server((listen["address"], listen["port"])) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            client, _ = listener.accept()
            start(serve_client, Stream(client, PATIENCE), balancer)


if __name__ == "__main__":
    main(*sys.argv[1:])
