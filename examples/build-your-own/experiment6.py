"""Experiments with step 6: what breaks if a line is left out."""

from __future__ import annotations

import sys
import threading

from lab import SOON, TIMES, Experiment, Handler, Scene, Upstream, run, wait_until

IMPATIENT = [
    ("PATIENCE = 10.0  # seconds that an upstream", "PATIENCE = 0.3  # seconds that an upstream"),
    ("PROBE_EVERY = 2.0", "PROBE_EVERY = 0.1"),
    ("socket.create_connection(address, 1.0)", "socket.create_connection(address, 0.2)"),
]


def an_upstream_dies_over_an_order(scene: Scene) -> str:
    """Whoever gets the order first carries it out, and dies before it answers."""
    orders: list[str] = []

    def carry_out(handler: Handler) -> None:
        if handler.command == "POST":
            orders.append(handler.server.name)
        if orders and handler.server.name == orders[0]:
            handler.close_connection = True
        else:
            handler.greet()

    with (
        Upstream("one", carry_out) as one,
        Upstream("two", carry_out) as two,
        scene.start(one, two, retries=1) as step,
    ):
        status, _ = step.ask("POST /order")
        return f"{status}, and ordered {TIMES[len(orders)]}"


def an_upstream_hangs(scene: Scene) -> str:
    """One of two takes every request and answers none."""
    gate = threading.Event()

    def hang(_: Handler) -> None:
        gate.wait(SOON)

    with (
        Upstream("one", hang) as one,
        Upstream("two") as two,
        scene.start(one, two, retries=1, setup=IMPATIENT) as step,
    ):
        wait_until(lambda: one.requests.count("GET /") > 4, scene.limit)  # probes
        answers = [step.ask("GET /work") for _ in range(4)]
        assert answers == [(200, "Hello from two")] * 4
        gate.set()
        return f"{one.requests.count('GET /work')} of 4 requests wait for it in vain"


EXPERIMENTS = [
    Experiment(
        "An upstream that dies over an order",
        "may_retry = isinstance(error, ConnectFailed) or may_go_again(request)",
        "may_retry = True",
        an_upstream_dies_over_an_order,
    ),
    Experiment(
        "An upstream that hangs",
        "    start(check_health, balancer)\n",
        "",
        an_upstream_hangs,
    ),
]

if __name__ == "__main__":
    sys.exit(run(__file__, EXPERIMENTS))
