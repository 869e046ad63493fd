"""An Atlas that was forked is like one that was started, or the tests would prove nothing."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.toolkit import Atlas, Forked, build_config, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


def without_numbers(texts: Iterable[str]) -> list[str]:
    return [re.sub(r"\d+", "", text) for text in texts]


def observe(atlas: Atlas) -> dict[str, object]:
    """What the system knows of a process, without numbers that are its own."""
    process = Path(f"/proc/{atlas.pid}")
    try:
        return {
            "folder": (process / "cwd").readlink(),
            "group": os.getpgid(atlas.pid),
            "limits": (process / "limits").read_text(),
            "signals": re.findall(r"Sig(?:Blk|Ign|Cgt).*", (process / "status").read_text()),
            "threads": sorted(name.read_text() for name in process.glob("task/*/comm")),
            "files": sorted(without_numbers(map(os.readlink, process.glob("fd/*")))),
        }
    except FileNotFoundError:
        return {"changes at this moment": atlas.pid}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_like_one_that_was_started(number: int, tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(build_config(admin={"address": "127.0.0.1", "port": 0}))

    with Atlas(path) as started, Atlas(path, begin=Forked) as forked:
        for atlas in (started, forked):
            assert atlas.wait_until_listening().get().status == 503
        wait_until(lambda: observe(started) == observe(forked), "all threads to be there")

        for atlas in (started, forked):
            atlas.send_signal(number)
        assert started.wait() == forked.wait()
    assert without_numbers(started.lines) == without_numbers(forked.lines)


def test_it_ends_like_one_that_was_started(tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text("[listne]\n")

    with Atlas(path) as started, Atlas(path, begin=Forked) as forked:
        assert started.wait() == forked.wait() == 2
    assert started.lines == forked.lines != []
