"""The sessions in the READMEs: typed into a shell, in copies of what they need.

Blocks of `console` are taken word for word. A line that begins with `$ ` is a command, and what
follows is what it says; `...` stands for anything. All blocks of a page are one session, on ports
of its own. Commands that only look are given again until they say what they should, as a reader
would do.

Blocks of `sh` in the other examples need several terminals, and hands that edit files in between.
So they are only run, one after the other, with what serves in the background: all must succeed.
Left out are blocks with a remark before them: they change the machine, or want a person.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.toolkit import ROOT, find_program, free_port

EXAMPLE = ROOT / "examples" / "monitoring"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/**/README.md"))]
PORTS = (
    *("8080", "8081", "8443", "9191"),
    *("3000", "3001", "3002", "3003", "3004", "3005", "6001", "6002"),
)

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,]\d{3}")

# What programs in the background may say at any time, and shells of those that were killed.
BACKGROUND = re.compile(r"^.*(?: listens on http|Terminated).*\n", re.MULTILINE)

# A block of commands, unless a remark before it says that it is for a person.
COMMANDS = re.compile(r"(?<! -->\n\n)^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What serves until it is ended: an Atlas, or an upstream at a port.
SERVES = re.compile(r"python3? (atlas\.py|(?:-m http\.server|\S+/upstream\.py \w+) \d+)|^node ")

# What changes nothing, so that it may be given twice.
LOOKS = re.compile(r"(?:tail|grep|curl -s (?:--retry \S+ --retry-connrefused )?'?http)\b")

TIME_LIMIT = 30.0  # a machine may be busy with other things


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
            [find_program("bash") or "/bin/sh"],
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
    return {port: str(free_port()) for port in PORTS}


@pytest.fixture
def shell(tmp_path: Path, ports: dict[str, str]) -> Iterator[Shell]:
    """A shell in a copy of the project after the README's first command."""
    shutil.copy(ROOT / "atlas.py", tmp_path)
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "screenshots")
    for folder in ("atlas_pkg", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unwanted)
    for path in tmp_path.glob("examples/*/*.toml"):
        path.write_text(replace_ports(path.read_text(encoding="utf-8"), ports), encoding="utf-8")
    for name in ("LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
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


class Background:
    """What serves in other terminals; another one at its place takes the place."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._taken: dict[str, str] = {}  # a variable with the process, by the port

    def serve(self, command: str) -> None:
        """Start what a reader would start in a terminal of its own."""
        port = re.findall(r"\d{4,}", command)[-1] if "atlas.py" not in command else "atlas"
        if port in self._taken:
            self._shell.give(f"kill -9 ${self._taken[port]}; wait ${self._taken[port]}")
        name = self._taken[port] = f"server{len(self._taken)}"
        self._shell.give(f"{command} & {name}=$!")


@pytest.mark.parametrize(
    "page",
    [page for page in sorted(ROOT.glob("examples/*/README.md")) if not read_steps(page)],
    ids=lambda page: page.parent.name,
)
def test_the_commands_of_the_example_succeed(
    page: Path, shell: Shell, ports: dict[str, str]
) -> None:
    commands = COMMANDS.findall(page.read_text(encoding="utf-8"))
    for name in re.findall(r"\b(?:bash|curl|node|openssl)\b", "bash\n" + "".join(commands)):
        if find_program(name) is None:
            pytest.skip(f"{name} is not installed")
    background = Background(shell)
    shell.give("set -o pipefail")
    for block in commands:
        text = replace_ports(block, ports)
        lines = [text] if "<<" in text else text.splitlines()
        for line in lines:
            if line.endswith("/demo.py"):
                continue  # test_examples.py runs it
            if SERVES.search(line) and "&" not in line:
                background.serve(line)
                continue
            deadline = time.monotonic() + TIME_LIMIT
            # 141: an upstream may answer an upload that it does not read. And Atlas logs in the
            # background, so its lines may come behind.
            while not re.search(
                r"^status (0|141)$",
                said := shell.give(f"{line}\nprintf '\\nstatus %d\\n' $?"),
                re.MULTILINE,
            ):
                assert "curl" in line, f"$ {line}\n{said}"
                assert time.monotonic() < deadline, f"$ {line}\n{said}"
                time.sleep(0.1)
            if line.startswith("kill $"):  # what comes next may want its port
                shell.give(f"wait {line.removeprefix('kill ')}")


def test_the_example_shows_a_session() -> None:
    assert read_steps(EXAMPLE / "README.md")
