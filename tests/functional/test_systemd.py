"""What systemd hands over and hears: a counterpart of it, made of a datagram socket and `exec`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import Upstream, named
from tests.functional.conftest import Start
from tests.toolkit import DEADLINE, Client, Program, build_config, free_port, wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="systemd knows no other system"),
    pytest.mark.engines("lane"),
]

# Stands before the command that it is the prefix of: opens descriptor 3, and becomes that command.
ACTIVATE = """
import os, socket, sys
kind, address, port, meant_for = sys.argv[1:5]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
sock = socket.socket(family, getattr(socket, kind))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind((address, int(port)))
if kind == "SOCK_STREAM":
    sock.listen()
if sock.fileno() != 3:
    os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
pid = os.getpid() if meant_for == "us" else 1
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(pid), LISTEN_FDNAMES="atlas.socket")
os.execv(sys.argv[5], sys.argv[5:])
"""


def activate(
    address: str, port: int, *, kind: str = "SOCK_STREAM", meant_for: str = "us"
) -> tuple[str, ...]:
    return (sys.executable, "-c", ACTIVATE, kind, address, str(port), meant_for)


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("A"))


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("given", "wanted"), [("127.0.0.1", "127.0.0.1"), ("::", "0.0.0.0")])
def test_a_socket_that_was_handed_over_is_adopted(
    given: str, wanted: str, workers: int, port: int, a: Upstream, start: Start
) -> None:
    listen = {"address": wanted, "port": port, "workers": workers}
    atlas = start(build_config(a.table(), listen=listen), prefix=activate(given, port))

    assert atlas.get().text == "A"
    assert "not in the configuration" not in atlas.log
    if given == "::":
        with Client(port, host="::1") as client:
            assert client.get().text == "A"


def test_who_comes_before_it_serves_waits_and_is_served(
    port: int, a: Upstream, tmp_path: Path
) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(build_config(a.table(), listen={"port": port}))
    command = [*activate("127.0.0.1", port), sys.executable, "atlas.py", str(path)]
    program = Program(command)

    try:
        client = wait_until(lambda: connect(port), "the socket")
        with client:
            assert client.get().text == "A"
    finally:
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0


def connect(port: int) -> Client | None:
    with contextlib.suppress(ConnectionRefusedError):
        return Client(port)
    return None


def test_one_that_the_file_does_not_want_is_closed_and_told(
    port: int, a: Upstream, start: Start
) -> None:
    atlas = start(build_config(a.table()), prefix=activate("127.0.0.1", port))

    atlas.wait_for(f"127.0.0.1:{port} is open but not in the configuration: closed")
    assert connect(port) is None
    assert atlas.get().text == "A"


def test_what_is_meant_for_another_process_is_left_alone(
    port: int, a: Upstream, start: Start
) -> None:
    prefix = activate("127.0.0.1", port, meant_for="another")
    atlas = start(build_config(a.table()), prefix=prefix)

    assert atlas.get().text == "A"
    assert "not in the configuration" not in atlas.log


def test_what_cannot_serve_is_told(port: int, tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(build_config())
    prefix = activate("127.0.0.1", port, kind="SOCK_DGRAM")

    program = Program([*prefix, sys.executable, "atlas.py", str(path)])

    assert program.wait() == 1
    assert "LISTEN_FDS: descriptor 3 does not listen for TCP connections" in program.log


class Manager:
    """What a service manager hears."""

    def __init__(self, address: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(address)
        self._sock.settimeout(0.05)
        self.heard: list[str] = []

    def hear(self) -> list[str]:
        """All that was told so far, but for signs of life and how it is."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.heard += self._sock.recv(4096).decode().splitlines()
        return [line.partition("=")[0] for line in self.heard if is_rare(line)]

    def wait_for(self, *states: str) -> None:
        wait_until(lambda: self.hear() == list(states), f"{states}, not {self.heard}")

    def find(self, name: str) -> list[str]:
        self.hear()
        return [line.partition("=")[2] for line in self.heard if line.startswith(f"{name}=")]

    def close(self) -> None:
        self._sock.close()


def is_rare(line: str) -> bool:
    return not line.startswith(("WATCHDOG", "STATUS", "MONOTONIC_USEC"))


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the manager listens: a path, or a name in no folder (`abstract`)."""
    if getattr(request, "param", "") == "abstract":
        return f"@atlas-test-{os.getpid()}-{time.monotonic_ns()}"
    return str(tmp_path / "notify")


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address.replace("@", "\0"))
    yield manager
    manager.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_manager_hears_of_a_whole_life(
    workers: int, a: Upstream, address: str, manager: Manager, start: Start
) -> None:
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    atlas = start(build_config(a.table(), listen={"workers": workers}), env=env)

    manager.wait_for("READY")
    assert atlas.get().text == "A"
    assert manager.find("STATUS")[-1].startswith("serving: ")
    wait_until(lambda: len(manager.find("WATCHDOG")) > 3, "signs of life")

    atlas.send_signal(signal.SIGHUP)
    manager.wait_for("READY", "RELOADING", "READY")
    assert abs(int(manager.find("MONOTONIC_USEC")[0]) / 1e6 - time.monotonic()) < DEADLINE
    assert atlas.count("configuration unchanged") == workers

    atlas.send_signal(signal.SIGTERM)
    assert atlas.wait() == 0
    manager.wait_for("READY", "RELOADING", "READY", "STOPPING")


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_takeover_the_manager_knows_the_new_process(
    workers: int, a: Upstream, address: str, manager: Manager, start: Start
) -> None:
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    text = build_config(a.table(), listen={"workers": workers}, timeouts={"drain": 0.5})
    atlas = start(text, env={**env, "WATCHDOG_PID": ""})
    manager.wait_for("READY")

    atlas.send_signal(signal.SIGUSR2)
    # The old one says that it is ready: the new one would not be believed yet.
    manager.wait_for("READY", "MAINPID", "READY")
    pid = int(manager.find("MAINPID")[0])
    match = re.search(r"process (\d+) serves", atlas.wait_for("serves: this one ends"))
    assert match
    assert pid == int(match[1])
    assert atlas.process.wait(DEADLINE) == 0
    signs = len(manager.find("WATCHDOG"))
    wait_until(lambda: len(manager.find("WATCHDOG")) > signs + 3, "signs of the new one's life")

    os.kill(pid, signal.SIGTERM)
    manager.wait_for("READY", "MAINPID", "READY", "STOPPING")


@pytest.mark.parametrize("address", ["abstract"], indirect=True)
def test_signs_of_life_that_are_wanted_of_another_process_are_not_given(
    a: Upstream, address: str, manager: Manager, start: Start
) -> None:
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    atlas = start(build_config(a.table()), env=env)
    manager.wait_for("READY")

    assert atlas.get().text == "A"
    atlas.send_signal(signal.SIGTERM)
    manager.wait_for("READY", "STOPPING")

    assert manager.find("WATCHDOG") == []


def test_a_descriptor_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(build_config())
    given = 'os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))'
    become = f"import os, sys; {given}; os.closerange(3, 9); os.execv(sys.argv[1], sys.argv[1:])"

    program = Program([sys.executable, "-c", become, sys.executable, "atlas.py", str(path)])

    assert program.wait() == 1
    assert "LISTEN_FDS: descriptor 3 is no open socket" in program.log
    assert "Traceback" not in program.log
