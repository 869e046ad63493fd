"""Step 7: a lane, at which ten thousand idle clients cost one thread. Linux only.

Run it: `python3 step7.py balancer.toml`

What step 6 can do stays as it is. Only who waits where is new.
"""

import contextlib
import queue
import resource
import select
import socket
import sys
import time
import tomllib
from pathlib import Path

from message import LARGEST_HEAD, MalformedMessage, Stream
from step6 import Balancer, Upstream, check_health, serve, start, watch

PATIENCE = 10.0  # seconds that a client may take until the next bytes
THREADS = 32  # requests that are served at the same time
ONCE = select.EPOLLIN | select.EPOLLONESHOT


class Client(Stream):
    """A client, and when patience with it ends."""

    deadline = 0.0


class Lane:
    """One thread, at which all clients wait that have not said enough to be served."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.parked: dict[int, Client] = {}  # by descriptor; taking one out makes it yours
        self.work: queue.SimpleQueue[Client] = queue.SimpleQueue()

    def park(self, client: Client) -> None:
        """Let a client wait until it has said enough. For any thread, which gives it up."""
        if b"\r\n\r\n" in client.buffered or len(client.buffered) > LARGEST_HEAD:
            self.work.put(client)
            return
        if not client.buffered:  # a byte now and then buys no time
            client.deadline = time.monotonic() + PATIENCE
        fd = client.sock.fileno()
        self.parked[fd] = client  # before the kernel may tell of it
        try:
            self.epoll.modify(fd, ONCE)
        except FileNotFoundError:  # it is new here
            self.epoll.register(fd, ONCE)

    def run(self) -> None:
        """Take in what clients say, and wait for none of them. Never ends."""
        next_sweep = 0.0
        while True:
            for fd, _ in self.epoll.poll(0.5):
                client = self.parked.pop(fd)
                with contextlib.suppress(OSError):
                    if client.receive():
                        self.park(client)
                        continue
                client.sock.close()
            if time.monotonic() > next_sweep:
                next_sweep = time.monotonic() + 0.5
                for fd, client in list(self.parked.items()):
                    if client.deadline < time.monotonic():
                        self.parked.pop(fd).sock.close()


def work(lane: Lane, balancer: Balancer) -> None:
    """Serve one request after the other, whosever it is. Never ends."""
    pool: dict[Upstream, list[Stream]] = {}
    while True:
        client = lane.work.get()
        # Whatever goes wrong with this client, it costs nobody else.
        with contextlib.suppress(OSError, MalformedMessage):
            if serve(client, balancer, pool):
                lane.park(client)
                continue
        client.sock.close()


def main(file: str) -> None:
    """Put each client at the lane. Never ends."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each client is an open file
    path = Path(file)
    data = path.read_bytes()
    config = tomllib.loads(data.decode())
    balancer = Balancer(config)
    start(watch, path, data, balancer)
    start(check_health, balancer)
    lane = Lane()
    start(lane.run)
    for _ in range(THREADS):
        start(work, lane, balancer)
    listen = config["listen"]
    with socket.create_server((listen["address"], listen["port"]), backlog=1024) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            client, _ = listener.accept()
            lane.park(Client(client, PATIENCE))


if __name__ == "__main__":
    main(*sys.argv[1:])
