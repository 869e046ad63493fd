"""Experiments with step 5: what breaks if a line is left out."""

from __future__ import annotations

import sys

from lab import Experiment, Scene, Upstream, ask, run, wait_until, write_config


def twenty_clients_meet_a_reload(scene: Scene) -> str:
    """Twenty clients have a kept connection each; the file changes; all of them ask again."""
    with Upstream() as one, scene.start(one) as step:
        clients = [step.client() for _ in range(20)]
        for client in clients:
            ask(client, "GET /")
        before = one.opened
        write_config(step.config, [one], "least_connections")
        step.wait_until_said("hot-reloaded")
        for client in clients:
            ask(client, "GET /")
            client.close()
        return f"{one.opened - before} connections to the upstream are opened anew"


def a_file_is_broken(scene: Scene) -> str:
    """Somebody saves half a file, sees it, and saves the whole one."""
    with Upstream("one") as one, Upstream("two") as two, scene.start(one) as step:
        step.config.write_text("[[upstreams]]\nname =", encoding="utf-8")
        step.wait_until_said("TOMLDecodeError")
        write_config(step.config, [two], "round_robin")
        is_taken_over = wait_until(lambda: step.ask()[1] == "Hello from two", scene.limit)
        return "the whole one is taken over" if is_taken_over else "no file is ever looked at again"


EXPERIMENTS = [
    Experiment(
        "A reload that thunders",
        "known.get(identity) or Upstream(*identity)",
        "Upstream(*identity)",
        twenty_clients_meet_a_reload,
    ),
    Experiment(
        "Half a file",
        "except (OSError, ValueError, LookupError, TypeError) as error:",
        "except OSError as error:",
        a_file_is_broken,
    ),
]

if __name__ == "__main__":
    sys.exit(run(__file__, EXPERIMENTS))
