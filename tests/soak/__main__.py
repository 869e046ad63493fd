"""Long runs, in search of what nobody thought of: `python -m tests.soak [KIND]`, or all three.

* `hostile`: clients that send slowly, read nothing or hang on, and one polite client beside them.
  Prints memory, threads and descriptors of Atlas as they develop, how each attack ended, and what
  the polite client felt. A figure that goes on growing, a polite request that failed, or a p99 of
  over 100 ms is a finding.
* `chaos`: upstreams die, hang, answer 500 and cut their answers in turn. Prints what clients heard.
* `fuzz`: input that breaks a promise of a parser, searched for with the seeds of the wire corpus.

The status is 1 when something was found. Short runs of each are part of the suite.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.soak import chaos, fuzz, hostile

LATENCY_LIMIT = 0.1

# How many seconds each takes unless told otherwise.
SECONDS = {"hostile": 120, "chaos": 60, "fuzz": 60}


def run_hostile(seconds: int, attacks: list[str]) -> list[str]:
    """Besiege Atlas, with some attacks or all of them; returns what was found."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = hostile.besiege(
            Path(folder), seconds, lambda line: print(line, flush=True), attacks
        )
    for name, outcomes in outcome.attacks.items():
        counts = ", ".join(f"{count} × {word}" for word, count in sorted(outcomes.items()))
        print(f"{name}: {counts}")
    print(f"polite, to the upstream itself: {outcome.direct.describe()}")
    print(f"polite, through Atlas: {outcome.through.describe()}")
    return outcome.problems(LATENCY_LIMIT)


def run_chaos(seconds: int, seed: int) -> list[str]:
    """Make upstreams ill; returns what was found."""
    with tempfile.TemporaryDirectory() as folder:
        figures = chaos.play(Path(folder), seconds, seed=seed)
    print("\n".join(figures.lines()))
    return list(figures.findings())


def main(arguments: list[str]) -> int:
    """Run what `arguments` name; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", nargs="?", choices=list(SECONDS), help="one of them; all if absent")
    parser.add_argument("--seconds", type=int, help=f"how long; otherwise {SECONDS}")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument(
        "--attack", action="append", default=[], help="hostile: only this one, such as pipeline"
    )
    options = parser.parse_args(arguments)
    found = []
    for kind in [options.kind] if options.kind else SECONDS:
        seconds = options.seconds or SECONDS[kind]
        print(f"--- {kind}: {seconds} s, seed {options.seed}", flush=True)
        if kind == "hostile":
            found += run_hostile(seconds, options.attack)
        elif kind == "chaos":
            found += run_chaos(seconds, options.seed)
        else:
            found += fuzz.run(seconds, options.seed)
    for finding in found:
        print(f"FOUND: {finding}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
