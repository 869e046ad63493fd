"""The command line: what it accepts, what it says, and with which status it ends."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import atlas_pkg
from tests.fakes import echoing_fields
from tests.functional.conftest import Start
from tests.toolkit import (
    ATLAS,
    ROOT,
    Atlas,
    Client,
    Program,
    build_config,
    find_program,
    wait_until,
)

# Nothing here depends on the engine.
pytestmark = pytest.mark.engines("lane")

GOOD = build_config({"name": "a", "address": "127.0.0.1", "port": 3000, "weight": 2})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "atlas.toml"
    path.write_text(GOOD)
    return path


def run(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Atlas until it ends by itself."""
    command = [sys.executable, "-W", "error", str(ATLAS), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)


def test_check_accepts_a_good_file_and_says_what_it_would_do(config: Path) -> None:
    result = run("--check", config)

    assert result.returncode == 0
    assert "valid" in result.stdout
    assert "127.0.0.1:3000" in result.stdout
    assert result.stderr == ""


def test_check_tells_who_would_get_the_first_requests(config: Path) -> None:
    config.write_text(GOOD + "[[upstreams]]\nname = 'b'\naddress = '127.0.0.1'\nport = 3001\n")

    result = run("--check", config)

    assert "  round_robin\n    a b a b a b a b a b\n  without a\n    b b" in result.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[listen", ":1: not TOML"),
        ("", "is empty"),
        (
            GOOD.replace("weight", "weigth"),
            'upstreams[0].weigth: unknown key, did you mean "weight"',
        ),
        (GOOD.replace("3000", "70000"), "upstreams[0].port"),
    ],
    ids=["not TOML", "empty", "unknown key", "bad value"],
)
@pytest.mark.parametrize("arguments", [["--check"], []], ids=["check", "run"])
def test_a_bad_file_is_2_with_its_errors(
    arguments: list[str], text: str, words: str, config: Path
) -> None:
    config.write_text(text)

    result = run(*arguments, config)

    assert result.returncode == 2
    assert words in result.stderr
    assert str(config) in result.stderr
    assert "Traceback" not in result.stderr


def test_all_errors_of_a_file_come_together(config: Path) -> None:
    config.write_text(GOOD.replace("weight = 2", "weight = -1\ncolour = 3").replace("3000", '"x"'))

    lines = run("--check", config).stderr.splitlines()

    assert len(lines) == 3


def test_check_tells_what_is_hardly_meant(config: Path) -> None:
    result = run("--check", config)

    assert result.returncode == 0
    assert "upstream a: weight 2 has no effect with round_robin" in result.stdout


@pytest.mark.parametrize("arguments", [["--check"], []], ids=["check", "run"])
def test_an_access_log_in_a_folder_that_is_missing_is_1(arguments: list[str], config: Path) -> None:
    config.write_text(f'{GOOD}[log]\naccess = "missing/access.log"\n')

    result = run(*arguments, config)

    path = config.parent / "missing" / "access.log"
    assert result.returncode == 1
    assert f"log.access: cannot open {path}: No such file or directory\n" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_check_prints_what_the_terminal_has_no_letter_for(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    config.write_text(f'{GOOD}[[routes]]\npath = "/x"\nstatus = 404\n')

    result = run("--check", config)

    assert (result.returncode, result.stderr) == (0, "")
    assert r"   1  /x \u2192 404" in result.stdout


def test_check_makes_no_access_log(config: Path) -> None:
    config.write_text(f'{GOOD}[log]\naccess = "access.log"\n')

    assert run("--check", config).returncode == 0
    assert not (config.parent / "access.log").exists()


@pytest.mark.parametrize("arguments", [["--check"], []], ids=["check", "run"])
def test_a_missing_file_and_a_directory_are_2_in_one_line(
    arguments: list[str], tmp_path: Path
) -> None:
    missing, directory = run(*arguments, tmp_path / "no.toml"), run(*arguments, tmp_path)

    assert (missing.returncode, directory.returncode) == (2, 2)
    assert missing.stderr == f"{tmp_path / 'no.toml'}: no such file\n"
    assert directory.stderr == f"{tmp_path}: is a directory, not a file\n"


def test_version() -> None:
    result = run("--version")

    assert (result.returncode, result.stdout) == (0, f"atlas {atlas_pkg.__version__}\n")


def test_help_names_every_argument() -> None:
    result = run("--help")

    assert result.returncode == 0
    for word in ("config", "--check", "--demo", "--version", "SIGHUP"):
        assert word in result.stdout


@pytest.mark.parametrize("arguments", [["--no-such"], ["--check", "--demo"], ["a", "b"]])
def test_wrong_arguments_are_2(arguments: list[str]) -> None:
    result = run(*arguments)

    assert result.returncode == 2
    assert "usage: atlas" in result.stderr


def test_without_an_argument_the_file_in_this_folder_is_used(config: Path) -> None:
    result = run("--check", cwd=config.parent)

    assert result.returncode == 0
    assert result.stdout.startswith("atlas.toml: valid")


@pytest.mark.parametrize("option", ["-c", "--config"])
def test_the_file_may_be_named_by_an_option(option: str, config: Path) -> None:
    result = run("--check", option, config)

    assert result.returncode == 0
    assert result.stdout.startswith(f"{config}: valid")


def test_a_file_given_twice_is_2(config: Path) -> None:
    result = run(config, "-c", config)

    assert result.returncode == 2
    assert "given twice" in result.stderr


@pytest.mark.parametrize("words", [["-t"], ["check"], ["-t", "-c"]])
def test_who_wants_to_check_is_told_how(words: list[str], config: Path) -> None:
    result = run(*words, config)

    assert result.returncode == 2
    assert result.stderr.endswith("to check a configuration: --check FILE\n")


def test_without_its_packages_it_names_ways_to_get_them() -> None:
    command = [sys.executable, "-S", str(ATLAS), "--version"]

    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert result.returncode == 1
    assert "atlas: the package tomli is missing" in result.stderr
    for way in ("uv run atlas.py", "pipx run atlas.py", "python3 -m venv .venv", "atlas.pyz"):
        assert way in result.stderr


def test_the_start_is_written_in_words_that_old_pythons_know() -> None:
    """Even Python 2 must come as far as the line that says which is needed."""
    text = ATLAS.read_bytes().decode("ascii")  # Python 2 takes nothing else without being told
    known = (
        *(ast.Module, ast.Import, ast.ImportFrom, ast.alias, ast.If, ast.Compare, ast.Lt),
        *(ast.Eq, ast.NotIn, ast.Expr, ast.Assign, ast.Call, ast.Attribute, ast.Name, ast.Starred),
        *(ast.Subscript, ast.Slice, ast.Tuple, ast.Constant, ast.BinOp, ast.Add, ast.Load),
        *(ast.Store, ast.Try, ast.ExceptHandler, ast.Raise),
    )

    foreign = [ast.dump(node) for node in ast.walk(ast.parse(text)) if not isinstance(node, known)]

    assert foreign == []
    assert text.index("sys.version_info < (3, 11)") < text.index("from atlas_pkg")


def blocked_signals(pid: int) -> int:
    found = re.search(r"SigBlk:\s*(\S+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1], 16) if found else 0


@pytest.mark.skipif(sys.platform != "linux", reason="which signals wait is asked of Linux")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_during_the_start_is_heard_after_it(workers: int, tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(build_config(listen={"workers": workers}))

    for _ in range(9):  # who is stopped by the machine looks too late
        with Atlas(path) as atlas:
            bit = 1 << (signal.SIGHUP - 1)
            wait_until(lambda: atlas.lines or blocked_signals(atlas.pid) & bit, "the first line")  # noqa: B023
            if not atlas.lines:
                atlas.send_signal(signal.SIGHUP)
                atlas.wait_for("configuration unchanged", times=workers)
                return
    raise AssertionError("no signal is blocked during the start")


def can_unshare() -> bool:
    unshare = find_program("unshare")
    command = [str(unshare), "--pid", "--fork", "true"]
    return unshare is not None and subprocess.run(command, check=False).returncode == 0


# Becomes process 1 of a container, after it has left two orphans to itself: one ends before Atlas
# starts, and one later.
INIT = """
import os, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(2)
    elif os.fork() == 0:
        pass
    os._exit(0)
os.wait()
time.sleep(0.2)
os.execv(sys.executable, sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs containers")
@pytest.mark.parametrize("workers", [1, 2])
def test_as_process_1_it_leaves_no_zombies(workers: int, tmp_path: Path) -> None:
    if not can_unshare():
        pytest.skip("no process may become process 1 of a container here")
    path = tmp_path / "atlas.toml"
    path.write_text(build_config(listen={"workers": workers}))
    prefix = (str(find_program("unshare")), "--pid", "--fork", sys.executable, "-c", INIT)

    with Atlas(path, prefix=prefix) as atlas:
        atlas.wait_until_listening()
        (init,) = children(atlas.pid)
        try:
            wait_until(lambda: len(children(init)) == (workers > 1) * workers, "the orphans to end")
        finally:
            os.kill(init, signal.SIGTERM)
        assert atlas.wait() == 0


def children(pid: int) -> list[int]:
    """The children of a process, zombies too."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_without_an_argument_and_a_file_it_says_which_is_missing(tmp_path: Path) -> None:
    result = run(cwd=tmp_path)

    assert (result.returncode, result.stderr) == (2, "atlas.toml: no such file\n")


def test_it_runs_as_a_module_too(config: Path) -> None:
    atlas = Program([sys.executable, "-m", "atlas_pkg", config], cwd=ROOT)
    try:
        atlas.wait_for("listening on http://127.0.0.1:")
        atlas.send_signal(signal.SIGTERM)

        assert atlas.wait() == 0
    finally:
        atlas.end()


def test_the_level_of_the_log_can_be_given(start: Start) -> None:
    atlas = start(f'{GOOD}[log]\nlevel = "error"\n', "--log-level", "debug")

    atlas.wait_for("DEBUG")


def assert_fails_in_one_line(text: str, words: str, config: Path, *prefix: str) -> None:
    config.write_text(text)
    command = [*prefix, sys.executable, str(ATLAS), str(config)]

    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert result.returncode == 1, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert f"ERROR   atlas: cannot listen on {words}" in result.stderr


def test_a_port_in_use_is_1_in_one_line(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        assert_fails_in_one_line(
            build_config(listen={"port": port}),
            f"127.0.0.1:{port}: the port is in use by another program",
            config,
        )


def test_an_unknown_listen_host_is_1_in_one_line(config: Path) -> None:
    assert_fails_in_one_line(
        build_config(listen={"address": "no-such-host.invalid"}),
        "no-such-host.invalid:0: the host name is unknown",
        config,
    )


def test_an_address_of_another_machine_is_1_in_one_line(config: Path) -> None:
    assert_fails_in_one_line(
        build_config(listen={"address": "192.0.2.1"}),
        "192.0.2.1:0: this machine does not have that address",
        config,
    )


def test_a_privileged_port_is_1_in_one_line(config: Path) -> None:
    start_of_free_ports = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if start_of_free_ports.exists() and int(start_of_free_ports.read_text()) < 2:
        pytest.skip("this system has no privileged ports")
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        setpriv = find_program("setpriv")
        if setpriv is None:
            pytest.skip("setpriv is not installed, and root may use every port")
        prefix = (setpriv, "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    assert_fails_in_one_line(
        build_config(listen={"port": 1}),
        "127.0.0.1:1: no permission (ports below 1024 need privileges)",
        config,
        *prefix,
    )


@pytest.fixture
def ipv6() -> None:
    """Skip where this machine has no IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("this machine has no IPv6")


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("address", ["::1", "[::1]"])
def test_it_listens_on_ipv6(address: str, upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(echoing_fields())
    atlas = start(build_config(upstream.table(), listen={"address": address}))

    assert atlas.host == "::1"
    with Client(atlas.port, host="::1") as client:
        assert "X-Forwarded-For: ::1" in client.get().text.splitlines()


@pytest.mark.usefixtures("ipv6")
def test_an_ipv4_client_of_an_ipv6_listener_shows_as_ipv4(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(echoing_fields())
    atlas = start(build_config(upstream.table(), listen={"address": "::"}))

    with Client(atlas.port, host="::1") as client:
        assert "X-Forwarded-For: ::1" in client.get().text.splitlines()
    assert "X-Forwarded-For: 127.0.0.1" in atlas.get().text.splitlines()


def test_a_host_name_may_be_listened_on(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(echoing_fields())
    atlas = start(build_config(upstream.table(), listen={"address": "localhost"}))

    assert atlas.get().status == 200


def test_the_start_is_told(start: Start) -> None:
    atlas = start(GOOD)

    assert f"Atlas {atlas_pkg.__version__}" in atlas.log
    assert "upstream a at 127.0.0.1:3000, weight 2" in atlas.log
    assert "strategy round_robin" in atlas.log
    assert "upstream a: weight 2 has no effect with round_robin" in atlas.log
