"""Experiments with step 7: what breaks if a line is left out."""

from __future__ import annotations

import sys
import threading
import time

from lab import SOON, Experiment, Handler, Scene, Upstream, run, wait_until

IMPATIENT = [
    ("PATIENCE = 10.0  # seconds that a client", "PATIENCE = 0.5  # seconds that a client")
]


def a_client_drips(scene: Scene) -> str:
    """A client sends a byte of its head now and then, and never all of it."""
    with Upstream() as one, scene.start(one, setup=IMPATIENT) as step, step.connect() as client:
        deadline = time.monotonic() + scene.limit + 1.0
        try:
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
            while time.monotonic() < deadline:
                client.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            return "patience with it ends"
        return "it stays for as long as it likes"


def a_client_is_ahead(scene: Scene) -> str:
    """A client asks again before it is answered; then others ask."""
    gate = threading.Event()

    def wait(handler: Handler) -> None:
        gate.wait(SOON)
        handler.greet()

    with Upstream(behave=wait) as one, scene.start(one) as step, step.connect() as client:
        client.sendall(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: "GET /first" in one.requests)
        client.sendall(b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: "KeyError" in "".join(step.said), 1.0)
        gate.set()
        status, _ = step.ask(timeout=scene.limit)
        return "everybody is served" if status else "the lane is gone, and nobody is served"


EXPERIMENTS = [
    Experiment(
        "A client that drips",
        "        if not client.buffered:  # a byte now and then buys no time",
        "        if True:",
        a_client_drips,
    ),
    Experiment(
        "A client that asks before it is answered",
        "ONCE = select.EPOLLIN | select.EPOLLONESHOT",
        "ONCE = select.EPOLLIN",
        a_client_is_ahead,
    ),
]

if __name__ == "__main__":
    sys.exit(run(__file__, EXPERIMENTS))
