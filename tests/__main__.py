"""The test command: `python3 -m tests`, on a fresh machine with Python alone.

It makes `.venv` beside `pyproject.toml` and installs the development packages into it, unless the
interpreter it was started with has them all. Then it runs what CI runs: format, lint, types, and
the tests. A failed step does not keep the others from running. Arguments are passed on to pytest:
`python3 -m tests -k reload`, or `--cov --cov-branch` for coverage, which takes half as long again.
The last line counts the checks and the tests together; the exit status is 0 when none failed.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"

# Eight tests at a time, also on two CPUs: most of them wait for programs and clocks. Each process
# is given tests that stand together, so what they have in common is made once; who is done takes
# over from others.
DISTRIBUTION = ["-n", "8", "--dist", "worksteal"]

CHECKS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy", "--strict", "atlas_pkg", "atlas.py"],
}


def has_development_packages() -> bool:
    """Has this interpreter every package that the project and its `dev` extra name?"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        try:
            metadata.version(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
        except metadata.PackageNotFoundError:
            return False
    return True


def prepare_venv() -> str:
    """Make `.venv` where it is missing or out of date, and return its interpreter."""
    python = VENV / "bin" / "python"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = VENV / "installed-for"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    print(f"preparing {VENV.name} ...", flush=True)
    if not python.exists():
        venv.create(VENV, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "-e", ".[dev]"], cwd=ROOT, check=True)
    stamp.write_text(wanted)
    return str(python)


def run_step(name: str, command: list[str]) -> bool:
    """Run one step and say how it went."""
    print(f"\n--- {name}: {' '.join(command[1:])}", flush=True)
    began = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    verdict = "ok" if status == 0 else f"FAILED (exit status {status})"
    print(f"--- {name}: {verdict}, {time.monotonic() - began:.1f} s", flush=True)
    return status == 0


def read_counts(report: Path) -> tuple[int, int, int]:
    """Read how many tests passed, failed and were skipped; all 0 where pytest wrote no report."""
    passed = failed = skipped = 0
    if report.exists():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            left_out = int(suite.get("skipped", 0))
            passed += int(suite.get("tests", 0)) - bad - left_out
            failed += bad
            skipped += left_out
    return passed, failed, skipped


def main(arguments: list[str]) -> int:
    """Run every step, print the summary and return the exit status."""
    try:
        python = sys.executable if has_development_packages() else prepare_venv()
    except subprocess.CalledProcessError as error:
        print(f"the development packages cannot be installed (exit status {error.returncode})")
        return 1
    # Tests that start `ruff` or `gunicorn` find those of the same interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])

    results = {name: run_step(name, [python, "-m", *command]) for name, command in CHECKS.items()}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = [*DISTRIBUTION, f"--junitxml={report}", *arguments]
        results["tests"] = run_step("tests", [python, "-m", "pytest", *options])
        passed, failed, skipped = read_counts(report)

    print()
    for name, is_good in results.items():
        print(f"{name:>8}: {'ok' if is_good else 'FAILED'}")
    checks = [is_good for name, is_good in results.items() if name != "tests"]
    passed += checks.count(True)
    failed += checks.count(False)
    if not results["tests"] and failed == 0:
        failed = 1  # pytest itself went wrong, or found no test
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
