"""`python -m tests.chaos [SECONDS [SEED]]`: upstreams fall ill, and the figures are printed."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.scene import play


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else 60.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1_000_000)
    print(f"{seconds:g} s, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = play(Path(folder), seconds, seed=seed)
    print("\n".join(figures.lines()))
    return 1 if figures.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
