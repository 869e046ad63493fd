"""`python -m tests.chaos [SECONDS [SEED]]`: upstreams fall ill, and the figures are printed."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.scene import play


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    parser.add_argument("seed", type=int, nargs="?", default=random.randrange(1_000_000))
    options = parser.parse_args(arguments)
    seconds, seed = options.seconds, options.seed
    print(f"{seconds:g} s, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = play(Path(folder), seconds, seed=seed)
    print("\n".join(figures.lines()))
    return 1 if figures.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
