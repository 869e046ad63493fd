"""What the wire tests share: one Atlas for each configuration, started on first use and kept.

Every test is counted for the rule that it stands for; `pytest -m wire` prints the counts.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.wire.arena import MOST_CUTS, Arena, deliveries_of
from tests.wire.corpus import Case
from tests.wire.proxies import run_atlas

HERE = Path(__file__).parent

_RULE = pytest.StashKey[int]()
_COUNTS = pytest.StashKey[dict[str, Counter[int]]]()


class Stage:
    """Plays cases through Atlas, in the configuration that each wants."""

    def __init__(self, stack: contextlib.ExitStack, lanes: int) -> None:
        self._stack = stack
        self._lanes = lanes
        self._running: dict[str, tuple[Arena, int]] = {}

    def play(self, case: Case) -> list[str]:
        """Deliver `case` in every way; returns what went wrong."""
        arena, port = self.get(case.config)
        # Heads are read by the same code with both engines, so each place of a cut is tried with
        # one, and some of them with the other.
        most_cuts = MOST_CUTS if self._lanes else 8
        return arena.play(case, port, list(deliveries_of(case, most_cuts=most_cuts)))

    def get(self, config: str) -> tuple[Arena, int]:
        """The arena and the port of Atlas in this configuration."""
        if config not in self._running:
            arena = self._stack.enter_context(contextlib.closing(Arena()))
            program = run_atlas(arena.port, config, lanes=self._lanes)
            self._running[config] = arena, self._stack.enter_context(program)
        return self._running[config]


@pytest.fixture(scope="session", params=[1, 0], ids=["lane", "road"])
def lanes(request: pytest.FixtureRequest) -> int:
    """Both engines: whatever wants this runs with either."""
    number: int = request.param
    return number


@pytest.fixture(scope="session")
def stage(lanes: int) -> Iterator[Stage]:
    """The program, running."""
    with contextlib.ExitStack() as stack:
        yield Stage(stack, lanes)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, and note the rule of each test."""
    config.stash[_COUNTS] = {"passed": Counter(), "failed": Counter()}
    for item in items:
        if HERE not in item.path.parents:
            continue
        rule = item.get_closest_marker("rule")
        case = getattr(getattr(item, "callspec", None), "params", {}).get("case")
        number = rule.args[0] if rule else case.rule if isinstance(case, Case) else 0
        item.stash[_RULE] = number
        item.add_marker("wire")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Count the outcome for the rule."""
    report = yield
    number = item.stash.get(_RULE, 0)
    if number and (report.when == "call" or report.failed):
        item.config.stash[_COUNTS]["passed" if report.passed else "failed"][number] += 1
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print how many cases there were for each rule, where the wire tests were asked for."""
    counts = config.stash.get(_COUNTS, None)
    if counts is None or "wire" not in (config.option.markexpr or ""):
        return
    passed, failed = counts["passed"], counts["failed"]
    terminalreporter.section("wire rules")
    for rule in sorted(passed | failed):
        failures = f", {failed[rule]} FAILED" if failed[rule] else ""
        terminalreporter.line(f"rule {rule:2}: {passed[rule]:3} cases passed{failures}")
    total = f"{passed.total()} cases passed, {failed.total()} failed"
    terminalreporter.line(f"{len(passed | failed)} rules, {total}")
