"""What functional tests are given: a way to start Atlas that also ends it.

`start(build_config(...))` writes the configuration into the test's own folder, starts the program
and returns once it listens. Where a test does not say how to start it, it is forked from one that
has its imports behind it (forkserver.py). Processes that a test forgot are ended, and a traceback
in a log fails the test.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests import toolkit
from tests.toolkit import ATLAS, Atlas, fork

# The shortcut, and the road alone.
ENGINES = {"lane": 1, "road": 0}

Start = Callable[..., Atlas]


@pytest.fixture
def start(tmp_path: Path, lanes: int) -> Iterator[Start]:  # noqa: ARG001 - for what it sets
    """Start Atlas with a configuration; all of them end with the test."""
    with contextlib.ExitStack() as running:

        def start_atlas(
            text: str,
            *arguments: str,
            env: Mapping[str, str] | None = None,
            prefix: tuple[str, ...] = (),
            program: Path = ATLAS,
        ) -> Atlas:
            path = tmp_path / "atlas.toml"
            path.write_text(text)
            is_usual = not env and not prefix and program == ATLAS
            begin = fork if is_usual else subprocess.Popen
            atlas = Atlas(path, *arguments, env=env, prefix=prefix, program=program, begin=begin)
            return running.enter_context(atlas).wait_until_listening()

        yield start_atlas


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run whatever starts Atlas with both of its engines."""
    if "start" in metafunc.fixturenames:
        engines = metafunc.definition.get_closest_marker("engines")
        metafunc.parametrize("lanes", engines.args if engines else ENGINES, indirect=True)


@pytest.fixture
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many lanes each Atlas of this test has."""
    number: int = ENGINES.get(request.param, request.param)
    monkeypatch.setattr(toolkit, "LANES", number)
    return number


@pytest.fixture
def upstreams() -> Iterator[contextlib.ExitStack]:
    """Takes upstreams that are to be closed after Atlas has ended: `upstreams.enter_context`."""
    with contextlib.ExitStack() as stack:
        yield stack
