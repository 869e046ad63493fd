"""Hostile clients against the real program: `python -m tests.hostile [seconds]`, 120 by default.

Names of attacks after the seconds choose some of them, such as `pipeline`.

Prints memory, threads and descriptors of Atlas as they develop, how each attack ended, and the
latency of one polite client. Ends with status 1 when a figure goes on growing after the ramp, when
a polite request failed, or when the polite client's p99 is over 100 ms.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.hostile.siege import besiege

LATENCY_LIMIT = 0.1


def main(arguments: list[str]) -> int:
    """Run a siege of as many seconds as `arguments` say."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=120.0)
    parser.add_argument("attacks", nargs="*", help="names of some of them; all if none is given")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        outcome = besiege(
            Path(folder),
            options.seconds,
            lambda line: print(line, flush=True),
            options.attacks,
        )
    for name, outcomes in outcome.attacks.items():
        counts = ", ".join(f"{count} × {word}" for word, count in sorted(outcomes.items()))
        print(f"{name}: {counts}")
    print(f"polite, to the upstream itself: {outcome.direct.describe()}")
    print(f"polite, through Atlas: {outcome.through.describe()}")
    problems = outcome.problems(LATENCY_LIMIT)
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
