"""Experiments with step 1: what breaks if a line is left out."""

from __future__ import annotations

import sys

from lab import Experiment, Handler, Scene, Upstream, reset, run

IMPATIENT = [("PATIENCE = 10.0", "PATIENCE = 0.3")]


def a_client_says_nothing(scene: Scene) -> str:
    """One client connects and is silent; another one asks."""
    with Upstream() as one, scene.start(one, setup=IMPATIENT) as step, step.connect():
        status, _ = step.ask(timeout=scene.limit)
        return "the next client is served" if status else "nobody else is ever served"


def a_client_hangs_up(scene: Scene) -> str:
    """One client connects and is gone at once; another one asks."""
    with Upstream() as one, scene.start(one) as step:
        reset(step.connect())
        status, _ = step.ask()
        return "the next client is served" if status else "the balancer itself has ended"


def an_answer_is_large(scene: Scene) -> str:
    """An answer of a megabyte, which does not come in one piece."""

    def be_large(handler: Handler) -> None:
        handler.answer(b"x" * 1_000_000)
        handler.close_connection = True

    with Upstream(behave=be_large) as one, scene.start(one) as step:
        status, _ = step.ask()
        return "all of it arrives" if status else "a part of it arrives"


EXPERIMENTS = [
    Experiment(
        "A client that says nothing",
        "            client.settimeout(PATIENCE)\n",
        "",
        a_client_says_nothing,
    ),
    Experiment(
        "A client that hangs up",
        "with client, contextlib.suppress(OSError):",
        "with client:",
        a_client_hangs_up,
    ),
    Experiment(
        "An answer of a megabyte",
        "while data := upstream.recv(65536):",
        "if data := upstream.recv(65536):",
        an_answer_is_large,
    ),
]

if __name__ == "__main__":
    sys.exit(run(__file__, EXPERIMENTS))
