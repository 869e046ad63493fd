"""The siege as tests: three seconds in every run, two minutes with `-m slow`.

The short one holds on any machine: it counts, and asks for no figure that a busy one would spoil.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.attacks import KINDS
from tests.soak.hostile import besiege


@pytest.mark.timeout(240)
def test_hostile_clients_do_not_make_others_suffer(tmp_path: Path) -> None:
    outcome = besiege(tmp_path, 3.0, print)

    assert outcome.findings() == []
    assert outcome.through.latencies  # it was asked, and everything was answered
    assert outcome.attacks.keys() == {kind.attack.__name__ for kind in KINDS}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_hostile_clients_do_not_wear_atlas_out(tmp_path: Path) -> None:
    outcome = besiege(tmp_path, 120.0, print)

    assert outcome.problems(0.1) == []
