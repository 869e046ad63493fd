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
    ("            self.turn += 1\n", "            time.sleep(0.05)\n            self.turn += 1\n"),
]


def many_ask_at_once(scene: Scene) -> str:
    """Twelve clients ask at the same time; nobody is answered before all have asked."""
    gate = threading.Event()

    def wait(handler: Handler) -> None:
        gate.wait(SOON)
        handler.greet()

    with (
        Upstream("one", wait) as one,
        Upstream("two", wait) as two,
        Upstream("three", wait) as three,
        scene.start(one, two, three, strategy="least_connections", setup=SLOWLY) as step,
        ThreadPoolExecutor(12) as clients,
    ):
        for _ in range(12):
            clients.submit(step.ask)
        wait_until(lambda: sum(len(each.requests) for each in (one, two, three)) == 12)
        shares = [len(each.requests) for each in (one, two, three)]
        gate.set()
    return "each upstream has four" if shares == [4, 4, 4] else "some have more than others"


def one_is_busy(scene: Scene) -> str:
    """One request takes long; six others come meanwhile."""
    gate = threading.Event()

    def wait_for_slow(handler: Handler) -> None:
        if handler.path == "/slow":
            gate.wait(SOON)
        handler.greet()

    with (
        Upstream("one", wait_for_slow) as one,
        Upstream("two", wait_for_slow) as two,
        scene.start(one, two, strategy="least_connections") as step,
    ):
        slow = threading.Thread(target=step.ask, args=("GET /slow",))
        slow.start()
        wait_until(lambda: one.requests or two.requests)
        names = [step.ask()[1].split()[-1] for _ in range(6)]
        busy = one.name if "GET /slow" in one.requests else two.name
        gate.set()
        slow.join()
    return f"{names.count(busy)} of 6 are sent to the one that is busy"


EXPERIMENTS = [
    Experiment(
        "Twelve who ask at the same time",
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
