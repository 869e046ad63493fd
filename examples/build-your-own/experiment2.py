"""Experiments with step 2: what breaks if a line is left out."""

from __future__ import annotations

import sys

from lab import Experiment, Scene, Upstream, read_all, run, wait_until

# It says twice where it ends: after the last chunk, and after four bytes. Who believes the second
# finds another request behind them.
INNER = b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"
DISPUTED = (
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%02x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)
)

FIVE_BYTES = [("data = self.sock.recv(65536)", "data = self.sock.recv(5)")]


def two_readers_disagree(scene: Scene) -> str:
    """One request, which the upstream may take for two."""
    with Upstream() as one, scene.start(one) as step, step.connect() as client:
        client.sendall(DISPUTED)
        read_all(client)
        wait_until(lambda: len(one.requests) > 1, 1.0)
        return f"the upstream has seen {' and '.join(one.requests) or 'nothing'}"


def a_head_comes_in_pieces(scene: Scene) -> str:
    """A head comes over a network that delivers five bytes at a time."""
    with Upstream() as one, scene.start(one, setup=FIVE_BYTES) as step:
        status, _ = step.ask()
        return "it is served" if status == 200 else "it is refused"


def a_head_never_ends(scene: Scene) -> str:
    """Four megabytes of a head, and no end in sight."""
    with Upstream() as one, scene.start(one) as step, step.connect() as client:
        try:
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(64):
                client.sendall(b"x" * 65536)
        except OSError:
            return "the client is shown the door"
        is_closed = wait_until(lambda: read_all(client, 0.2) or is_gone(client), scene.limit)
        return "the client is shown the door" if is_closed else "all of it is kept in memory"


def is_gone(client) -> bool:
    """Has the other side closed?"""
    try:
        client.sendall(b"x")
    except OSError:
        return True
    return False


EXPERIMENTS = [
    Experiment(
        "Two readers who disagree where a request ends",
        "        if len(lengths + codings) > 1:\n"
        '            raise MalformedMessage("it says twice where it ends")\n',
        "",
        two_readers_disagree,
    ),
    Experiment(
        "A head in pieces",
        "while end not in self.buffered:",
        "if end not in self.buffered:",
        a_head_comes_in_pieces,
    ),
    Experiment(
        "A head that never ends",
        "            if len(self.buffered) > LARGEST_HEAD:\n"
        '                raise MalformedMessage("it does not end")\n',
        "",
        a_head_never_ends,
    ),
]

if __name__ == "__main__":
    sys.exit(run(__file__, EXPERIMENTS))
