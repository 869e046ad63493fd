"""Servers that others have written, run beside Atlas.

Each is optional: where it is not installed, the tests that want it are skipped.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toolkit import Program, find_program, wait_until

# What nginx needs to run in a folder as whoever runs the tests.
_NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ {server} }}
}}
"""


def need(name: str) -> str:
    """The path of a program; skips the test where it is not installed."""
    path = find_program(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextlib.contextmanager
def running(program: Program, pattern: str) -> Iterator[int]:
    """Keep a server running; yields the port that it tells on either output."""

    def look() -> re.Match[str] | None:
        assert program.process.poll() is None, program.log
        return re.search(pattern, "\n".join([*program.lines, *program.printed]))

    try:
        found = wait_until(look, "the server to listen")
        assert found
        yield int(found[1])
    finally:
        program.end(signal.SIGTERM)


@contextlib.contextmanager
def serving(port: int, *command: str | Path) -> Iterator[None]:
    """Keep a server running that listens on `port`."""
    server = Program(command)

    def is_listening() -> bool:
        assert server.process.poll() is None, server.log
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    try:
        wait_until(is_listening, "the server to listen")
        yield
    finally:
        server.end()


@contextlib.contextmanager
def nginx(folder: Path, port: int, server: str) -> Iterator[None]:
    """Keep an nginx running in `folder` whose one `server` listens on `port`."""
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, server=server))
    with serving(port, need("nginx"), "-p", folder, "-c", config):
        yield
