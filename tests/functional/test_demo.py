"""`--demo`, the way somebody who has just found Atlas tries it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toolkit import ATLAS, Client, Program, find_program


@pytest.fixture
def demo() -> Iterator[Program]:
    program = Program([sys.executable, "-W", "error", ATLAS, "--demo"])
    yield program
    program.end()


def read_invitation(demo: Program) -> tuple[int, Path]:
    """Wait for the invitation; returns the port and the file that may be edited."""
    demo.wait_for("Ctrl-C", printed=True)
    text = "\n".join(demo.printed)
    port = re.search(r"http://127\.0\.0\.1:(\d+)/", text)
    path = re.search(r"edit +(\S+\.toml)", text)
    assert port
    assert path
    return int(port[1]), Path(path[1])


def ask(port: int, times: int) -> Counter[str]:
    with Client(port) as client:
        return Counter(client.get().text.split()[-1] for _ in range(times))


def test_the_demo_keeps_what_its_invitation_says(demo: Program) -> None:
    port, path = read_invitation(demo)
    assert ask(port, 60) == {"red": 30, "green": 20, "blue": 10}

    text = path.read_text()
    before, blue, after = text.partition('name = "blue"')
    path.write_text(before + blue + after.replace("weight = 1", "weight = 3"))
    demo.wait_for("Configuration hot-reloaded")
    assert ask(port, 80) == {"red": 30, "green": 20, "blue": 30}

    demo.send_signal(signal.SIGINT)
    assert demo.wait() == 0
    assert not path.parent.exists()
    assert "Traceback" not in demo.log


def test_the_loop_of_the_invitation_works_as_printed(demo: Program) -> None:
    if find_program("curl") is None:
        pytest.skip("curl is not installed")
    read_invitation(demo)
    line = next(line for line in demo.printed if "curl" in line)
    command = line[line.index("for ") :]

    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True
    )

    names = Counter(line.removeprefix("Hello from ") for line in result.stdout.splitlines())
    assert names == {"red": 3, "green": 2, "blue": 1}


def test_another_port_is_taken_when_8080_is_not_free() -> None:
    try:
        taken = socket.create_server(("127.0.0.1", 8080))
    except OSError:
        taken = None  # somebody else has it, which is as good
    demo = Program([sys.executable, ATLAS, "--demo"])
    try:
        port, path = read_invitation(demo)

        assert port != 8080
        assert ask(port, 6) == {"red": 3, "green": 2, "blue": 1}
        demo.send_signal(signal.SIGTERM)
        assert demo.wait() == 0
        assert not path.parent.exists()
    finally:
        demo.end()
        if taken:
            taken.close()


def test_an_early_ctrl_c_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    demo = Program([sys.executable, ATLAS, "--demo"])
    try:
        while not list(tmp_path.iterdir()):  # bounded by the test's own time limit
            assert demo.process.poll() is None
        demo.send_signal(signal.SIGINT)

        assert demo.wait() == 0
        assert "Traceback" not in demo.log
        assert list(tmp_path.iterdir()) == []
    finally:
        demo.end()
