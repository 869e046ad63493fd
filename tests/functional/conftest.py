"""What functional tests are given: a way to start Atlas that also ends it.

`start(build_config(...))` writes the configuration into the test's own folder, starts the program
and returns once it listens. Processes that a test forgot are ended, and a traceback in a log
fails the test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.toolkit import Atlas

Start = Callable[..., Atlas]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Atlas with a configuration; all of them end with the test."""
    with contextlib.ExitStack() as running:

        def start_atlas(
            text: str,
            *arguments: str,
            env: Mapping[str, str] | None = None,
            prefix: tuple[str, ...] = (),
        ) -> Atlas:
            path = tmp_path / "atlas.toml"
            path.write_text(text)
            atlas = running.enter_context(Atlas(path, *arguments, env=env, prefix=prefix))
            return atlas.wait_until_listening()

        yield start_atlas


@pytest.fixture(params=["gate", "portable gate"])
def gate(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that chooses a gate: a test that asks for it runs with both kinds."""
    return {"ATLAS_PORTABLE": "1"} if request.param == "portable gate" else {}


@pytest.fixture
def upstreams() -> Iterator[contextlib.ExitStack]:
    """Takes upstreams that are to be closed after Atlas has ended: `upstreams.enter_context`."""
    with contextlib.ExitStack() as stack:
        yield stack
