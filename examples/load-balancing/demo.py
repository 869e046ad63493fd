"""Shows that weights, hot reload and failure do what this folder's README says.

Starts four upstreams and Atlas on free ports, with a copy of `atlas.toml`, and counts who answers.
Run it from anywhere: `python examples/load-balancing/demo.py`. Exit status 0 when all was as it
should be, else 1.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support

HERE = Path(__file__).resolve().parent

# After the last write the reload rests 0.2 s for an editor to finish. The slow poll that would find
# the change without file events takes longer than this.
RELOAD_LIMIT = 2.0

FOURTH = """
[[upstreams]]
name = "four"
address = "127.0.0.1"
port = {port}
weight = 2
"""


def main() -> None:
    """Go through the walkthrough of the README, one step after the other."""
    with contextlib.ExitStack() as stack:
        names = ("one", "two", "three", "four")
        programs = {name: stack.enter_context(support.start_upstream(name)) for name in names}
        ports = {name: program.wait_until_listening() for name, program in programs.items()}
        atlas = stack.enter_context(support.Atlas(configure(ports)))

        shares = {"Hello from one": 30, "Hello from two": 20, "Hello from three": 10}
        found = support.fetch_often(atlas.url, 60)
        support.expect("60 requests, weights 3, 2, 1", dict(found), shares)

        with atlas.path.open("a", encoding="utf-8") as file:
            file.write(FOURTH.format(port=ports["four"]))
        seconds = support.wait_until_fetched(atlas.url, "Hello from four")
        print(f"    a fourth upstream, appended to the file, took part after {seconds:.1f} s")
        support.expect("that is soon enough", seconds < RELOAD_LIMIT, True)
        print("    " + atlas.wait_until_said("Configuration hot-reloaded"))
        shares = {**shares, "Hello from four": 20}
        found = support.fetch_often(atlas.url, 80)
        support.expect("80 requests, weights 3, 2, 1, 2", dict(found), shares)

        programs["two"].kill()
        shares["502"] = shares.pop("Hello from two")
        began = time.monotonic()
        found = support.fetch_often(atlas.url, 80)
        support.expect("the same with two killed: only its share fails", dict(found), shares)
        print(f"    all 80 took {time.monotonic() - began:.2f} s")
        print("    " + atlas.wait_until_said("502 for"))
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)


def configure(ports: dict[str, int]) -> str:
    """The example's configuration with the ports of this run."""
    configuration = (HERE / "atlas.toml").read_text(encoding="utf-8")
    changes = {8080: 0, 3001: ports["one"], 3002: ports["two"], 3003: ports["three"]}
    for old, new in changes.items():
        configuration = configuration.replace(f"port = {old}\n", f"port = {new}\n")
    return configuration


if __name__ == "__main__":
    sys.exit(support.run(main))
