"""What the demos share: start programs, read what they say, compare, and clear everything away.

A demo uses free ports and a copy of its `atlas.toml` in a temporary folder, so it disturbs nothing
that runs on this machine and may run twice at once. Every waiting has an end. Only the standard
library is used; Atlas itself is started as a user would start it, as a program of its own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parent

# How long anything may take that happens at once on a machine with nothing else to do.
PATIENCE = 50.0

# Demos talk to this machine alone, whatever proxy the environment names.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_ADDRESS = re.compile(r"[a-z]+://[^/\s]*:(\d+)")


class DemoFailed(Exception):
    """What was seen is not what should have been seen."""


class Program:
    """A Python program under way, and what it has said; a context manager that ends it."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # Guards _lines and _has_ended; notified of every change.
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._has_ended = False
        self._reader = threading.Thread(target=self._collect, name="output", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def wait_until_said(self, text: str, *, times: int = 1) -> str:
        """Wait for a line with `text` in it, or the nth such line, and return that line."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                found = [line for line in self._lines if text in line]
                if len(found) >= times:
                    return found[times - 1]
                if self._has_ended or not self._changed.wait(deadline - time.monotonic()):
                    said = "\n".join(self._lines)
                    raise DemoFailed(f"waited in vain for {text!r}; the program said:\n{said}")

    def wait_until_listening(self) -> int:
        """Wait for the line that names the address, and return its port."""
        found = _ADDRESS.search(self.wait_until_said("://127.0.0.1:"))
        if found is None:
            raise DemoFailed("the program names no port")
        return int(found[1])

    def send_signal(self, number: signal.Signals) -> None:
        """Send the program a signal, as `kill -NAME PID` does."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """Hold the program where it is, as `kill -STOP PID` does, until it is sent SIGCONT."""
        self.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # busy threads take a moment to stop

    def terminate(self) -> int:
        """Ask the program to end, as `kill PID` does, and return its exit status."""
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """End the program at once, and wait until it is gone."""
        self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)

    def _collect(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                with self._changed:
                    self._lines.append(line.rstrip())
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


class Atlas(Program):
    """Atlas with a copy of an example's configuration, which may be edited while it runs."""

    def __init__(self, configuration: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="atlas-example-")
        self.path = Path(self._folder.name) / "atlas.toml"
        self.path.write_text(configuration, encoding="utf-8")
        super().__init__("atlas.py", str(self.path))
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self.port = self.wait_until_listening()
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        super().kill()
        self._folder.cleanup()

    @property
    def url(self) -> str:
        """Where Atlas answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"


def start_upstream(name: str, port: int = 0) -> Program:
    """Start `upstream.py` under `name`, by default on a free port."""
    return Program(str(EXAMPLES / "upstream.py"), name, str(port))


def fetch(url: str, opener: urllib.request.OpenerDirector = OPENER) -> str:
    """Fetch `url` on a connection of its own; returns the body's first line, or "502" and so on."""
    try:
        with opener.open(url, timeout=PATIENCE) as answer:
            return str(answer.read().decode().partition("\n")[0])
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code)


def fetch_often(url: str, times: int) -> Counter[str]:
    """Fetch `url` again and again, and count the different answers."""
    return Counter(fetch(url) for _ in range(times))


def wait_until_fetched(url: str, answer: str) -> float:
    """Fetch `url` until somebody gives `answer`; returns how long that took."""
    began = time.monotonic()
    while fetch(url) != answer:
        if time.monotonic() - began > PATIENCE:
            raise DemoFailed(f"nobody answered {answer!r}")
        time.sleep(0.01)
    return time.monotonic() - began


def expect(what: str, found: object, expected: object) -> None:
    """Print what was found, and end the demo if it is not what was expected."""
    if found != expected:
        raise DemoFailed(f"{what}: expected {expected}, found {found}")
    print(f"ok  {what}: {found}")


def run(demo: Callable[[], None]) -> int:
    """Run a demo; returns the exit status, and says why where it is not 0."""
    try:
        demo()
    except (DemoFailed, OSError) as error:
        print(f"FAILED  {error}")
        return 1
    print("all as it should be")
    return 0
