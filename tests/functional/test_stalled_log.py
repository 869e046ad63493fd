"""Whoever reads the log may stop reading, or leave: Atlas serves on, and ends when told to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import named
from tests.toolkit import ATLAS, DEADLINE, Client, build_config

ENGINES = pytest.mark.parametrize(
    "listen",
    [{"lanes": 1}, {"lanes": 0}, {"workers": 2}],
    ids=["lane", "road", "workers"],
)


@contextlib.contextmanager
def running(
    tmp_path: Path, upstreams: contextlib.ExitStack, listen: dict[str, int]
) -> Iterator[tuple[subprocess.Popen[bytes], int, int, int]]:
    """An Atlas that logs into a small pipe: the process, its port, and the pipe's two ends."""
    path = tmp_path / "atlas.toml"
    upstream = upstreams.enter_context(named("A"))
    path.write_text(build_config(upstream.table(), listen=listen, log={"level": "debug"}))
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    command = [sys.executable, "-W", "error", str(ATLAS), str(path)]
    with subprocess.Popen(command, stderr=writer) as process:
        try:
            log = b""
            while not (found := re.search(rb"listening on http://127.0.0.1:(\d+)", log)):
                log += os.read(reader, 4096)
            yield process, int(found[1]), reader, writer
        finally:
            process.kill()
            os.close(writer)
            with contextlib.suppress(OSError):
                os.close(reader)


def fill(writer: int) -> None:
    """Leave no room in the pipe."""
    poller = select.poll()
    poller.register(writer, select.POLLOUT)
    while poller.poll(0):
        os.write(writer, b"." * select.PIPE_BUF)


def ask_and_be_refused(port: int) -> None:
    """What Atlas has something to say about, and what it has not."""
    for number in range(20):
        with Client(port) as client:
            client.send(b"GET /%d\x01 HTTP/1.1\r\n\r\n" % number)
            assert client.read_answer().status == 400
        with Client(port) as client:
            assert client.get().text == "A"


@ENGINES
def test_a_log_whose_reader_stalls_stops_nobody(
    tmp_path: Path, upstreams: contextlib.ExitStack, listen: dict[str, int]
) -> None:
    with running(tmp_path, upstreams, listen) as (process, port, _, writer):
        with Client(port) as client:
            assert client.get().text == "A"
        fill(writer)

        ask_and_be_refused(port)
        process.send_signal(signal.SIGHUP)
        ask_and_be_refused(port)
        process.send_signal(signal.SIGTERM)

        assert process.wait(DEADLINE) == 0


@ENGINES
def test_a_log_whose_reader_leaves_stops_nobody(
    tmp_path: Path, upstreams: contextlib.ExitStack, listen: dict[str, int]
) -> None:
    with running(tmp_path, upstreams, listen) as (process, port, reader, _):
        os.close(reader)

        ask_and_be_refused(port)
        process.send_signal(signal.SIGTERM)

        assert process.wait(DEADLINE) == 0


def test_a_wrong_configuration_is_told_whoever_reads(tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text("[listen]\nport = true\n")

    run = subprocess.run(
        [sys.executable, str(ATLAS), str(path)],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        text=True,
    )

    assert (run.returncode, "listen.port" in run.stderr) == (2, True)
