"""Fuzzing: input that breaks one of the promises in `targets`.

With `atheris` installed (the extra `fuzz`) the search is guided by coverage: inputs that reach new
lines of Atlas are kept and changed further. Without it, seeds are spoiled at random.
Either way the seeds come from the wire corpus. A finding is printed with its input; nothing is
written, so copy it into a test.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.http1.samples import HOT
from tests.soak.targets import check, seeds
from tests.toolkit import ROOT

# Longer inputs are slower to run and seldom say more.
MOST_BYTES = 2048


def run(seconds: int, seed: int) -> list[str]:
    """Search for so long; returns what was found."""
    if importlib.util.find_spec("atheris"):
        return run_guided(seconds, seed)
    return run_random(seconds, seed)


def run_guided(seconds: int, seed: int) -> list[str]:
    """Let atheris search, in a process of its own: it ends the process that it runs in."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, dictionary = Path(folder) / "corpus", Path(folder) / "dictionary"
        corpus.mkdir()
        for number, beginning in enumerate(sorted(set(seeds()))):
            (corpus / f"{number:05}").write_bytes(beginning)
        dictionary.write_text(
            "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in HOT)
        )
        options = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", f"-dict={dictionary}"]
        options += [f"-artifact_prefix={folder}/", "-print_final_stats=1"]
        options += [f"-seed={seed}", str(corpus)]
        command = [sys.executable, "-m", "tests.soak.guided", *options]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        return [f"atheris ended with status {status}, see above"] if status else []


def run_random(seconds: int, seed: int) -> list[str]:
    """Spoil seeds at random."""
    beginnings = sorted(set(seeds()))
    chance = random.Random(seed)
    print(f"atheris is not installed: spoiling {len(beginnings)} seeds at random")
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        data = chance.choice(beginnings)
        for _ in range(chance.randint(1, 4)):
            at = chance.randint(0, len(data))
            piece = chance.choice([*HOT, chance.randbytes(1), chance.choice(beginnings)[1:20]])
            data = data[:at] + piece + data[at + chance.choice((0, 0, 1, 2, 8)) :]
        count += 1
        try:
            check(data[:MOST_BYTES])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            return [f"after {count} inputs: {error!r}, input: {data!r}"]
    print(f"{count} inputs, no finding")
    return []
