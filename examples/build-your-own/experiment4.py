"""Experiments with step 4: what breaks if a line is left out."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from lab import SOON, Experiment, Handler, Scene, Upstream, run, wait_until

# Between choosing and counting there is hardly any time, so others seldom come in between. Here
# there is some.
SLOWLY = [
    ("import threading\n", "import threading\nimport time\n"),
    ("            self.turn += 1\n", "            time.sleep(0.2)\n            self.turn += 1\n"),
]


def many_ask_at_once(scene: Scene) -> str:
    """Six clients ask at the same time; nobody is answered before all have asked."""
    gate = threading.Event()

    def wait(handler: Handler) -> None:
        gate.wait(SOON)
        handler.greet()

    with (
        Upstream("one", wait) as one,
        Upstream("two", wait) as two,
        Upstream("three", wait) as three,
        scene.start(one, two, three, strategy="least_connections", setup=SLOWLY) as step,
        ThreadPoolExecutor(6) as clients,
    ):
        for _ in range(6):
            clients.submit(step.ask)
        wait_until(lambda: sum(len(each.requests) for each in (one, two, three)) == 6)
        shares = [len(each.requests) for each in (one, two, three)]
        gate.set()
    return "each upstream has two" if shares == [2, 2, 2] else "some have more than others"


def one_is_busy(scene: Scene) -> str:
    """Each of two has four requests that take long; one finishes its own; then six others come."""
    gates = {"one": threading.Event(), "two": threading.Event()}

    def wait_for_slow(handler: Handler) -> None:
        if handler.path == "/slow":
            gates[handler.server.name].wait(SOON)
        handler.greet()

    with (
        Upstream("one", wait_for_slow) as one,
        Upstream("two", wait_for_slow) as two,
        scene.start(one, two, strategy="least_connections") as step,
        ThreadPoolExecutor(8) as clients,
    ):
        slow = [clients.submit(step.ask, "GET /slow") for _ in range(8)]
        wait_until(lambda: len(one.requests) == len(two.requests) == 4)
        gates["two"].set()
        wait_until(lambda: sum(each.done() for each in slow) == 4)
        names = [step.ask()[1].split()[-1] for _ in range(6)]
        gates["one"].set()
    return f"{names.count('one')} of 6 are sent to the one that is busy"


EXPERIMENTS = [
    Experiment(
        "Six who ask at the same time",
        "        with self.lock:\n            upstream = self.choose(",
        "        if True:\n            upstream = self.choose(",
        many_ask_at_once,
    ),
    Experiment(
        "A lease that is not given back",
        "        balancer.release(upstream)",
        "        pass",
        one_is_busy,
    ),
]

if __name__ == "__main__":
    sys.exit(run(__file__, EXPERIMENTS))
