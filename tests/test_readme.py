"""The READMEs tell the truth: their tables, their links, and the commands they give.

What is missing is compared with what the configuration refuses, what happens on failures with the
failure table, each room's page with its files and locks, the ladder and the learner's hour with the
code. The commands are run as they stand, in a copy of the project whose `.venv/bin/python` is the
interpreter of the tests. Those that take minutes are marked in the page, and only asked for
`--help`; sessions that depend on one another are in `functional/test_monitoring_walkthrough.py`.

`python -m tests.ladder --write` and `python -m tests.config.reference` write what is out of date.
"""

from __future__ import annotations

import ast
import contextlib
import functools
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

from atlas_pkg.config import loader
from atlas_pkg.serving.failures import FAILURES
from tests import ladder
from tests.config.reference import entries, read_strategies
from tests.toolkit import ROOT

README = ROOT / "README.md"
CODE_README = ROOT / "atlas_pkg" / "README.md"
TESTS_README = ROOT / "tests" / "README.md"
PAGES = [README, *sorted(ROOT.glob("[!.]*/**/README.md"))]
ROOMS = sorted(path.parent for path in ROOT.glob("atlas_pkg/*/README.md"))

# The recipe for a strategy of one's own.
RECIPE = ROOT / "atlas_pkg" / "balancing" / "strategies" / "README.md"

# Sessions, in which one command needs the others: those are typed into a shell elsewhere.
SESSIONS = [RECIPE, *sorted(ROOT.glob("examples/**/README.md"))]

LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")

# A block of commands, and whether a remark before it says that they take long.
MARKED = re.compile(r"(<!--[^>]*--help -->\n\n)?^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)

TIME_LIMIT = 50.0  # some commands load a lot of Python, on a machine that may be busy


def section(title: str, page: Path = README) -> str:
    """Return what stands between a heading and the next one of any level."""
    text = page.read_text(encoding="utf-8")
    found = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", BLOCK.sub("", text), re.MULTILINE | re.DOTALL
    )
    assert found is not None, title
    return found[1]


def rows(title: str, page: Path = README) -> list[list[str]]:
    """Return the cells of the tables under a heading, without their heads."""
    found: list[list[str]] = []
    for line in section(title, page).splitlines():
        cells = [cell.strip() for cell in line.removesuffix("|")[1:].split("|")]
        if re.fullmatch(r"[|: -]+", line):
            found.pop()  # what stands above it is a head
        elif line.startswith("|"):
            found.append(cells)
    return found


def blocks(language: str, page: Path = README) -> list[str]:
    """Return the code blocks of one language."""
    text = page.read_text(encoding="utf-8")
    return [body for name, body in BLOCK.findall(text) if name == language]


def anchors(page: Path) -> set[str]:
    """Return what `#...` can lead to, made from the headings as forges make it."""
    headings = re.findall(
        r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_readme_is_no_longer_than_a_reader_has_patience_for() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 300


def test_keys_that_are_shown_exist() -> None:
    places = {entry.place for entry in entries()}
    ours = [row[1] for row in rows("What it can do")]
    ours += [row[2] for row in rows("Words of nginx and HAProxy", CODE_README)]
    shown = [key for cell in ours for key in CODE.findall(cell) if not key.endswith(".py")]
    tables = {key.strip("[]") for key in shown if key.startswith("[")}
    keys = {key for key in shown if re.fullmatch(r"[a-z_]+\.[a-z_]+", key)}

    assert keys <= places
    assert tables <= {place.rpartition(".")[0] for place in places}


def test_every_strategy_that_is_offered_is_shown() -> None:
    shown = {text.strip('"') for row in rows("What it can do") for text in CODE.findall(row[2])}

    assert read_strategies() <= shown


def test_what_fails_is_told_as_the_failure_table_has_it() -> None:
    told = {row[2].strip("`"): row for row in rows("When something fails") if len(row) == 4}

    assert list(told) == [end.value for end in FAILURES]
    for end, failure in FAILURES.items():
        row = told[end.value]
        assert bool(row[3]) == failure.reaches_breaker, row
        if failure.status and not (failure.closes and failure.reaches_breaker):
            assert str(failure.status) in row[1], row


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


def test_every_page_can_be_reached_from_the_first() -> None:
    found, waiting = {README}, [README]
    while waiting:
        page = waiting.pop()
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.name == "README.md" and target not in found:
                found.add(target)
                waiting.append(target)

    assert found == set(PAGES)


# The code's own pages


def test_every_room_has_a_page() -> None:
    folders = [path.parent for path in ROOT.glob("atlas_pkg/*/__init__.py")]

    assert sorted(folders) == ROOMS


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_lists_its_files_once_each(room: Path) -> None:
    text = (room / "README.md").read_text(encoding="utf-8")
    head = text.partition("**Locks.**")[0]
    listed = [link for row in head.splitlines() if row[:1] == "|" for link in LINK.findall(row)]
    # A folder in it has a page of its own.
    pages = [path for path in room.rglob("*/README.md") if path.parent != room]
    existing = [path.relative_to(room).as_posix() for path in pages] + [
        path.relative_to(room).as_posix()
        for path in room.rglob("*.*")
        if path.suffix in {".py", ".html", ".css", ".js"} and path.name != "__init__.py"
        if not any(page.parent in path.parents for page in pages)
    ]

    assert sorted(listed) == sorted(existing)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_tells_its_promise_its_locks_and_what_it_leaves_to_others(room: Path) -> None:
    text = (room / "README.md").read_text(encoding="utf-8")
    locks = text.partition("**Locks.**")[2].partition("**What it does not do.**")[0]
    with_locks = {
        path.name
        for path in room.rglob("*.py")
        if re.search(r"threading\.(?:R?Lock|Condition)\(\)", path.read_text(encoding="utf-8"))
    }

    assert "**Promise.**" in text
    assert "**What it does not do.**" in text
    assert set(re.findall(r"`(\w+\.py)`", locks)) == with_locks
    about_itself = text.partition("\n## ")[0]
    assert 20 <= len(about_itself.splitlines()) <= 45


def test_the_ladder_and_the_size_of_the_hour_are_those_of_the_code() -> None:
    page = CODE_README.read_text(encoding="utf-8")

    assert ladder.LADDER.search(page)
    assert ladder.SUM.search(page)
    assert page == ladder.write_page(page), "run: python -m tests.ladder --write"


def test_the_hour_is_one() -> None:
    page = CODE_README.read_text(encoding="utf-8")
    stops = ladder.read_hour(page)
    lines, words = ladder.measure_hour(page)

    assert sum(stop.minutes for stop in stops) == 60
    assert all(stop.question.endswith((".", "?")) for stop in stops)
    assert lines <= 2500
    assert words <= 8000


def test_glossary_is_in_order_and_has_the_words_of_the_code() -> None:
    words = [row[0] for row in rows("Glossary", CODE_README)]

    assert words == sorted(words)
    assert {"exchange", "lease", "generation", "deadline", "pool", "app", "lane"} <= set(words)


def test_places_where_something_is_decided_exist() -> None:
    tables = [*rows("Where is it decided ...?", CODE_README)]
    tables += rows("Words of nginx and HAProxy", CODE_README)
    named = [path for row in tables for path in re.findall(r"`([\w/]+(?:\.py|/))`", row[-1])]

    assert named
    assert [path for path in named if not (ROOT / "atlas_pkg" / path).exists()] == []


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", TESTS_README.read_text(encoding="utf-8")))
    missing = [f"{file}::{name}" for file, name in sorted(named) if name not in functions_of(file)]

    assert len(named) > 100
    assert missing == []


@functools.cache
def functions_of(file: str) -> frozenset[str]:
    path = ROOT / "tests" / file
    tree = ast.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


# Configurations and commands


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks("toml", page)])
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
    """Run one line in a shell, as it was typed by somebody who runs no tests."""
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=folder,
        env={name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )


def command_blocks() -> list[tuple[Path, str, bool]]:
    """Every block of commands outside of sessions: its page, itself, and whether it takes long."""
    return [
        (page, block, bool(mark))
        for page in PAGES
        if page not in SESSIONS
        for mark, block in MARKED.findall(page.read_text(encoding="utf-8"))
    ]


def is_run_elsewhere(line: str) -> bool:
    """Is this the test command itself, or one that a test below runs?"""
    return line == "python3 -m tests" or line.startswith("python3 -m venv")


@pytest.mark.parametrize(
    ("page", "block", "takes_long"),
    command_blocks(),
    ids=lambda value: value[:50].split("\n")[0] if isinstance(value, str) else "",
)
def test_commands_run(page: Path, block: str, takes_long: bool, project: Path) -> None:
    for line in block.splitlines():
        if is_run_elsewhere(line):
            continue
        if line == ".venv/bin/python atlas.py atlas.toml":
            with serving(line, project) as port:
                assert port
            continue
        if takes_long:
            line += " --help"
        elif " -m pytest " in line:
            line += " --collect-only"  # it is part of the suite, or left out of it on purpose
        if line.startswith("python3 -m tests"):
            line = line.replace("python3", ".venv/bin/python", 1)  # it would make an environment

        done = run_line(line, project)

        assert done.returncode == 0, f"{page}: {line}\n{done.stdout}{done.stderr}"


def test_a_strategy_of_ones_own_takes_the_two_files_of_the_recipe(project: Path) -> None:
    names = re.findall(r"Write `([\w/]+\.py)`", RECIPE.read_text(encoding="utf-8"))
    files = dict(zip(names, blocks("python", RECIPE), strict=True))
    assert len(files) == 2
    ask, run = blocks("sh", RECIPE)
    for name, text in files.items():
        (project / name).write_text(text, encoding="utf-8")
    try:
        found = run_line(ask, project)
        lint = run_line(f".venv/bin/python -m ruff check {' '.join(files)}", project)
        tests = run_line(f"{run.strip()} -k fill_up -n 0 -p no:cacheprovider", project)
    finally:
        for name in files:
            (project / name).unlink()

    assert 'did you mean "fill_up"?' in found.stderr
    assert lint.returncode == 0, lint.stdout
    assert tests.returncode == 0, tests.stdout
    assert int(re.findall(r"(\d+) passed", tests.stdout)[0]) > 5  # its own, and those of all


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_demo_answers_as_shown(project: Path) -> None:
    first = blocks("sh")[0]
    found = re.search(r"\{ (.+) & (curl .+); \}", first)
    assert found is not None
    start, ask = found.groups()

    with serving(start, project) as port:
        answer = run_line(ask.replace("8080", str(port)), project)

    assert answer.stdout == blocks("text")[0]


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
