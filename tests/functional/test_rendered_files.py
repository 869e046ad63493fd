"""A file that a program renders from a list of servers, as registries and templates do it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from tests.fakes import named
from tests.functional.conftest import Start
from tests.toolkit import ROOT, Program, build_config, wait_until

RENDER = ROOT / "examples" / "several-machines" / "render.py"


@pytest.mark.engines("lane")
def test_servers_come_and_go_with_the_list(
    tmp_path: Path, upstreams: contextlib.ExitStack, start: Start
) -> None:
    a, b = (upstreams.enter_context(named(name)) for name in "AB")
    head, listed = tmp_path / "head.toml", tmp_path / "servers"
    head.write_text(build_config())
    replace(listed, f"A 127.0.0.1 {a.port}\n")
    atlas = start(build_config())
    renderer = Program([sys.executable, RENDER, head, listed, atlas.path])

    try:
        wait_until(lambda: atlas.get().text == "A", "the first server")
        replace(listed, f"B 127.0.0.1 {b.port}\nA 127.0.0.1 {a.port}\n")
        atlas.wait_for("Configuration hot-reloaded", times=2)
        assert {atlas.get().text for _ in range(4)} == {"A", "B"}
        replace(listed, f"B 127.0.0.1 {b.port}\n")
        atlas.wait_for("Configuration hot-reloaded", times=3)
        assert {atlas.get().text for _ in range(4)} == {"B"}
    finally:
        renderer.end()
    assert renderer.log == ""


def replace(path: Path, text: str) -> None:
    """Nobody is to read half a list."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
