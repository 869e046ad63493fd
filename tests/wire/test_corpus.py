"""Plays every case of the corpus through the program, in every delivery.

See `corpus.py` for the format of a case and `arena.py` for how it is delivered.
"""

from __future__ import annotations

import pytest

from tests.wire.conftest import Stage
from tests.wire.corpus import Case, load_cases

CASES = load_cases()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case(case: Case, stage: Stage) -> None:
    problems = stage.play(case)

    assert not problems, "\n".join([case.title, f"{len(problems)} problems", *problems[:5]])


@pytest.mark.parametrize("rule", range(1, 30))
def test_every_rule_has_cases_for_both_verdicts(rule: int) -> None:
    verdicts = {case.header["verdict"] for case in CASES if case.rule == rule}

    assert "pass" in verdicts
    assert verdicts & {"repair", "refuse"}
