"""Every Python that the project names starts Atlas, serves, reloads and drains."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fakes import named
from tests.toolkit import ROOT, Atlas, build_config, find_program

VERSIONS = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())


def find_python(version: str) -> str | None:
    """An interpreter of this version, by its name or where pyenv keeps its own."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for path in (find_program(f"python{version}"), *map(str, kept)):
        if (
            path
            and subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode == 0
        ):
            return path
    return None


@pytest.mark.parametrize("lanes", [1, 0], ids=["lane", "road"])
@pytest.mark.parametrize("version", VERSIONS)
def test_each_python_that_is_named_serves(
    version: str, lanes: int, upstreams: contextlib.ExitStack, tmp_path: Path
) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"Python {version} is not installed")
    spec = find_spec("watchdog")
    assert spec is not None
    assert spec.origin is not None
    packages = Path(spec.origin).parent.parent
    a, b = (upstreams.enter_context(named(name)) for name in "ab")
    path = tmp_path / "atlas.toml"
    path.write_text(build_config(a.table(), listen={"lanes": lanes}))

    with Atlas(path, python=python, env={"PYTHONPATH": str(packages)}) as atlas:
        atlas.wait_until_listening()
        with atlas.client() as client:
            assert client.get().text == "a"
            atlas.reload(build_config(b.table(), listen={"lanes": lanes}))
            assert client.post(b"hello").text == "b"
        atlas.send_signal(signal.SIGTERM)

        assert atlas.wait() == 0
        assert "Warning" not in atlas.log
