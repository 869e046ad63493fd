"""The one-file form of Atlas, run by a Python that has no other package at hand."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from atlas_pkg import __version__, bundle
from atlas_pkg.balancing.strategies import STRATEGIES

CONFIG = """\
[listen]
address = "127.0.0.1"
port = 0

[[upstreams]]
name = "one"
address = "127.0.0.1"
port = 3000
"""


@pytest.fixture(scope="module")
def whole() -> bytes:
    return bundle.build_bundle()


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    path = tmp_path / "atlas.pyz"
    bundle.write_bundle(path)
    return path


def run_alone(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python without site-packages, without environment and with nothing on its path."""
    return subprocess.run(
        [sys.executable, "-I", "-S", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={},
        cwd="/",
    )


def test_version_is_told_by_python_alone(atlas: Path) -> None:
    result = run_alone(atlas, "--version")

    assert result.returncode == 0, result.stderr
    assert __version__ in result.stdout


def test_configuration_is_checked_by_python_alone(atlas: Path, tmp_path: Path) -> None:
    config = tmp_path / "atlas.toml"
    config.write_text(CONFIG)

    result = run_alone(atlas, "--check", config)

    assert result.returncode == 0, result.stderr


def test_bad_configuration_is_refused_by_python_alone(atlas: Path, tmp_path: Path) -> None:
    config = tmp_path / "atlas.toml"
    config.write_text(CONFIG + "weigth = 1\n")

    result = run_alone(atlas, "--check", config)

    assert result.returncode == 2
    assert "weigth" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_every_strategy_is_found_in_the_file(atlas: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(atlas)!r})\n"
        "from atlas_pkg.balancing.strategies import STRATEGIES\n"
        "from atlas_pkg.config.rules import find_strategies\n"
        "print(sorted(STRATEGIES), find_strategies(), sep='\\n')\n"
    )

    result = run_alone("-c", code)

    assert result.stdout == f"{sorted(STRATEGIES)}\n" * 2, result.stderr


def test_file_runs_under_another_name(atlas: Path) -> None:
    renamed = atlas.rename(atlas.with_name("atlas.py"))

    result = run_alone(renamed, "--version")

    assert result.returncode == 0, result.stderr
    assert __version__ in result.stdout


def test_file_is_executable_on_its_own(atlas: Path) -> None:
    folder = str(Path(sys.executable).parent)

    result = subprocess.run(
        [atlas, "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.pathsep.join([folder, "/usr/bin", "/bin"])},
    )

    assert result.returncode == 0, result.stderr
    assert __version__ in result.stdout


def test_both_packages_come_from_the_file(atlas: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tomli, watchdog.observers;"
        "print(tomli.__file__, watchdog.observers.__file__, tomli.loads('a = 1'))"
    )

    result = run_alone("-c", code, atlas)

    assert result.stdout.split() == [
        str(atlas / "tomli" / "__init__.py"),
        str(atlas / "watchdog" / "observers" / "__init__.py"),
        "{'a':",
        "1}",
    ], result.stderr


def test_same_sources_give_the_same_bytes(whole: bytes) -> None:
    assert bundle.build_bundle() == whole


def test_nothing_in_it_is_bound_to_a_platform_or_a_python(whole: bytes) -> None:
    names = zipfile.ZipFile(io.BytesIO(whole)).namelist()

    bound = [name for name in names if name.endswith((".so", ".pyd", ".dylib", ".pyc"))]

    assert bound == []
    assert "atlas_pkg/main.py" in names


def test_licences_travel_along(whole: bytes) -> None:
    names = zipfile.ZipFile(io.BytesIO(whole)).namelist()

    assert {"licences/tomli/LICENSE", "licences/watchdog/LICENSE"} <= set(names)


def test_command_writes_where_it_is_told(tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "atlas.pyz"

    status = bundle.main(["--output", str(output)])

    assert status == 0
    assert [path.name for path in output.parent.iterdir()] == ["atlas.pyz"]
    assert output.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_place_that_cannot_be_written_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    status = bundle.main(["--output", str(tmp_path / "file" / "atlas.pyz")])

    assert status == 1
    assert capsys.readouterr().err.startswith("bundle: ")
