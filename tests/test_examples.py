"""Every example's `demo.py` does what it promises, started as its README says.

A demo checks itself and says so by its exit status. It runs in a process group of its own, so
that one that hangs is ended together with what it has started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_pkg.config.loader import load_config

ROOT = Path(__file__).resolve().parent.parent
# The reference is there to be read; tests/config/ has its tests.
EXAMPLES = sorted(
    path.parent for path in ROOT.glob("examples/*/atlas.toml") if path.parent.name != "reference"
)

TIME_LIMIT = 110.0


def name_of(example: Path) -> str:
    return example.name


def test_there_are_examples() -> None:
    assert {"load-balancing", "reverse-proxy"} <= {example.name for example in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_has_all_its_parts(example: Path) -> None:
    parts = {path.name for path in example.iterdir()}

    assert {"atlas.toml", "README.md", "demo.py"} <= parts


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_configuration_of_example_is_valid(example: Path) -> None:
    config = load_config(example / "atlas.toml", environ={})

    assert config.listen.address == "127.0.0.1"  # trying something out must not open a machine


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_demo_succeeds(example: Path) -> None:
    with subprocess.Popen(
        [sys.executable, f"examples/{example.name}/demo.py"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        try:
            output, _ = demo.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(demo.pid, signal.SIGKILL)
            output, _ = demo.communicate()

    assert demo.returncode == 0, output
