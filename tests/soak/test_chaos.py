"""Upstreams that fall ill at random cost no request that they do not have to cost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.soak.chaos import play


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "seconds", [3.0, pytest.param(60.0, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_ill_upstreams_cost_what_they_must_and_no_more(seconds: float, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")

    figures = play(tmp_path, seconds, seed=seed)

    print("\n".join(figures.lines()))
    assert list(figures.findings()) == [], figures.log
    assert figures.heard["GET 200"] > 20  # on any machine
