"""What the docstrings of the room show is true.

pytest's own `--doctest-modules` would import every file below `tests/` as well, and some of them
are programs.
"""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from atlas_pkg.config import diff, document, route_rules, rules, schema


@pytest.mark.parametrize(
    "module", [diff, document, route_rules, rules, schema], ids=lambda one: one.__name__
)
def test_examples_in_docstrings_are_true(module: ModuleType) -> None:
    done = doctest.testmod(module)

    assert done.attempted
    assert not done.failed
