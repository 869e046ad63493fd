"""The README tells the truth: its tables, its links, and the commands it gives.

The reference of the configuration is compared with the dataclasses, the list of what is missing
with what the configuration refuses, the rooms with the files. The commands are run as they stand,
in a copy of the project whose `.venv/bin/python` is the interpreter of the tests.

`python -m tests.test_readme` writes the reference into the README anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_pkg.config import loader, model
from tests.config import reference
from tests.toolkit import Atlas, wait_until

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("examples/*/README.md"))]

LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")

TIME_LIMIT = 30.0


def section(title: str) -> str:
    """Return what stands between a heading and the next one of any level."""
    text = README.read_text(encoding="utf-8")
    found = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", BLOCK.sub("", text), re.MULTILINE | re.DOTALL
    )
    assert found is not None, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def blocks(language: str) -> list[str]:
    """Return the code blocks of one language."""
    text = README.read_text(encoding="utf-8")
    return [body for name, body in BLOCK.findall(text) if name == language]


def anchors(page: Path) -> set[str]:
    """Return what `#...` can lead to, made from the headings as forges make it."""
    headings = re.findall(
        r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_reference_is_that_of_the_dataclasses() -> None:
    text = README.read_text(encoding="utf-8")

    assert reference.REFERENCE.search(text)
    assert text == reference.write_table(text), "run: python -m tests.test_readme"


def test_what_is_missing_is_what_the_configuration_refuses() -> None:
    reserved = [key for row in rows("What it does not do yet") for key in CODE.findall(row[1])]

    assert sorted(reserved) == sorted(model.NOT_YET)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if link.startswith(("http://", "https://")):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_every_room_is_listed_once_and_exists() -> None:
    listed = [link for row in rows("The rooms") for link in LINK.findall(row[0])]
    existing = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "atlas_pkg").rglob("*.py")
        if not path.name.startswith("__")
    }

    assert sorted(listed) == sorted(existing)


def test_every_example_is_listed() -> None:
    linked = set(LINK.findall(section("Examples")))

    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} <= linked


def test_glossary_is_in_order_and_has_the_words_of_the_code() -> None:
    words = [row[0] for row in rows("Glossary")]

    assert words == sorted(words)
    assert {"exchange", "lease", "generation", "deadline", "pool", "app", "lane"} <= set(words)


def test_learners_hour_has_sixty_minutes() -> None:
    assert sum(int(row[0]) for row in rows("How to read the code")) == 60


@pytest.mark.parametrize("block", blocks("toml"))
def test_configurations_are_valid(block: str) -> None:
    loader.parse_config(block.encode(), Path("README.md"), environ={"ATLAS_TOKEN": "secret"})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project after the README's first command, but for the demo."""
    folder = tmp_path_factory.mktemp("readme") / "atlas"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "dist", "build", "*.egg-info", "venv")
    shutil.copytree(ROOT, folder, ignore=unwanted)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    toml = blocks("toml")[0]
    (folder / "atlas.toml").write_text(toml.replace("port = 8080", "port = 0"), encoding="utf-8")
    return folder


@contextlib.contextmanager
def serving(command: str, folder: Path) -> Iterator[int]:
    """Start a command that serves, hand over its port, and end it as Ctrl-C does."""
    with subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "listening on" in line)
            yield int(line.rpartition(":")[2])
            process.send_signal(signal.SIGINT)
            assert process.wait(TIME_LIMIT) == 0
        finally:
            process.kill()


def run_line(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one line in a shell, as it was typed."""
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )


def is_run_elsewhere(line: str) -> bool:
    """Is this the test command itself, an example's demo, or one that a test below runs?"""
    others = ("python3 -m tests", "python3 -m venv", "curl ")
    return line.startswith(others) or line.endswith("/demo.py")


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block[:50].split("\n")[0])
def test_commands_run(block: str, project: Path) -> None:
    for line in block.splitlines():
        if is_run_elsewhere(line):
            continue
        if line == ".venv/bin/python atlas.py atlas.toml":
            with serving(line, project) as port:
                assert port
            continue

        done = run_line(line, project)

        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_demo_answers_as_shown(project: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    first = blocks("sh")[0]
    found = re.search(r"\{ (.+) & (curl .+); \}", first)
    assert found is not None
    start, ask = found.groups()

    with serving(start, project) as port:
        answer = run_line(ask.replace("8080", str(port)), project)

    assert answer.stdout == blocks("text")[0]


def test_the_admin_address_answers_as_shown(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    lines = [line for line in "".join(blocks("sh")).splitlines() if line.startswith("curl ")]
    path = tmp_path / "atlas.toml"
    text = "".join(blocks("toml")[:2]).replace("port = 8080", "port = 0")
    path.write_text(text.replace("port = 9090", "port = 0"), encoding="utf-8")

    with Atlas(path, env={"ATLAS_TOKEN": "secret"}) as atlas:
        port = atlas.wait_for("admin address").rpartition(":")[2]
        commands = [line.replace("9090", port).replace("$ATLAS_TOKEN", "secret") for line in lines]
        wait_until(lambda: not run_line(f"{commands[0]} -f", tmp_path).returncode, "readiness")
        answers = [run_line(f"{command} -f", tmp_path) for command in commands]

    assert [answer.returncode for answer in answers] == [0] * len(lines), answers
    assert len(lines) == 5


def test_every_demo_named_here_exists(project: Path) -> None:
    demos = [line for line in "".join(blocks("sh")).split() if line.endswith("/demo.py")]

    assert demos
    assert all((project / demo).exists() for demo in demos)


@pytest.mark.slow
def test_first_command_works_on_a_machine_with_python_alone(project: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8080)) == 0:
            pytest.skip("port 8080 is taken")
    fresh = tmp_path / "atlas"
    shutil.copytree(project, fresh, ignore=shutil.ignore_patterns(".venv", "dist"))

    # The demo stays in the background, as the README says, and would keep a pipe open.
    said = tmp_path / "said.txt"
    with said.open("w") as output:
        shell = subprocess.Popen(
            ["/bin/sh", "-c", blocks("sh")[0]],
            cwd=fresh,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status = shell.wait(55)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        raise
    os.killpg(shell.pid, signal.SIGTERM)

    assert status == 0
    assert said.read_text().endswith(blocks("text")[0])


if __name__ == "__main__":
    reference.main()
