"""The sessions in the READMEs, word for word: blocks of `console`, typed into a shell.

A line that begins with `$ ` is a command, and what follows is what it says; `...` stands for
anything. All blocks of a page are one session, in a copy of what it needs, on ports of its own.
Commands that only look are given again until they say what they should, as a reader would do.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.toolkit import ROOT, find_program

EXAMPLE = ROOT / "examples" / "monitoring"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/**/README.md"))]
PORTS = ("8080", "9191", "3001", "3002", "3003")

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,]\d{3}")

# What programs in the background may say at any time, and shells of those that were killed.
BACKGROUND = re.compile(r"^.*(?: listens on http|Terminated).*\n", re.MULTILINE)

# What changes nothing, so that it may be given twice.
LOOKS = re.compile(r"(?:tail|grep|curl -s (?:--retry \S+ --retry-connrefused )?'?http)\b")

TIME_LIMIT = 10.0


class Step(NamedTuple):
    """A command, and what it says."""

    command: str
    expected: str


def read_steps(page: Path) -> list[Step]:
    """Return the session of a page. Where no answer is shown, any will do."""
    text = "".join(BLOCK.findall(page.read_text(encoding="utf-8")))
    first, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert first == ""
    return [Step(*part.partition("\n")[::2]) for part in parts]


def is_said(expected: str, said: str) -> bool:
    """Is `said` what was to be expected? All instants are equal."""
    pattern = re.escape(TIME.sub("TIME", expected)).replace(re.escape("..."), ".*")
    said = TIME.sub("TIME", BACKGROUND.sub("", said))
    return not expected or re.fullmatch(pattern, said, re.DOTALL) is not None


class Shell:
    """A shell that is given one command after the other."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._given = 0

    def give(self, command: str) -> str:
        """Give a command and return what it said, or what was said meanwhile in the background."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._given += 1
        end = f"-- end of {self._given} --\n"
        self._process.stdin.write(f"{command}\necho '{end.strip()}'\n")
        self._process.stdin.flush()
        said = ""
        while not said.endswith(end):
            line = self._process.stdout.readline()
            assert line, said
            said += line
        return said.removesuffix(end)

    def end(self) -> None:
        """End the shell and all that it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.communicate()


@pytest.fixture
def ports() -> dict[str, str]:
    """Free ports, by those that the pages name."""
    free = {}
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    for port, listener in zip(PORTS, listeners, strict=True):
        free[port] = str(listener.getsockname()[1])
        listener.close()
    return free


@pytest.fixture
def shell(tmp_path: Path, ports: dict[str, str]) -> Iterator[Shell]:
    """A shell in a copy of the project after the README's first command."""
    shutil.copy(ROOT / "atlas.py", tmp_path)
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "screenshots")
    for folder in ("atlas_pkg", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unwanted)
    path = tmp_path / "examples" / "monitoring" / "atlas.toml"
    path.write_text(replace_ports(path.read_text(encoding="utf-8"), ports), encoding="utf-8")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    shell = Shell(tmp_path)
    yield shell
    shell.end()


def replace_ports(text: str, ports: dict[str, str]) -> str:
    return re.sub("|".join(ports), lambda found: ports[found[0]], text)


@pytest.mark.skipif(find_program("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if read_steps(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_session_goes_as_shown(page: Path, shell: Shell, ports: dict[str, str]) -> None:
    for step in read_steps(page):
        command, expected = (replace_ports(text, ports) for text in step)
        deadline = time.monotonic() + TIME_LIMIT
        while not is_said(expected, said := shell.give(command)):
            assert LOOKS.match(command), f"$ {command}\n{said}"
            assert time.monotonic() < deadline, f"$ {command}\n{said}\nexpected:\n{expected}"
            time.sleep(0.1)


def test_the_example_shows_a_session() -> None:
    assert read_steps(EXAMPLE / "README.md")
