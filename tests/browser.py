"""Pages in a real Chromium, told what to do over its DevTools protocol.

A start costs a second of CPU time, so one Chromium has many tabs, one after the other. What a tab
stores, caches and sets is its own, and goes with it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

# Chromium takes orders on file descriptor 3 and answers on 4. It ends when nobody is at the other
# end, so also when we are killed.
START = """exec "$0" --headless --no-sandbox --disable-gpu --hide-scrollbars --no-startup-window \
    --user-data-dir="$1" --remote-debugging-pipe 3<&0 4>&0 </dev/null"""

# Longer than anything takes.
PATIENCE = 30.0


class BrowserFailed(Exception):
    """The browser is not there, or does not do as it is told."""


def find_browser() -> str | None:
    """The path of a Chromium, if one is installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """A Chromium without a window. Raises `BrowserFailed`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._unread = b""
        self._numbers = itertools.count(1)

    def ask(self, method: str, **more: object) -> Any:
        """Have something done, and wait for what comes of it."""
        order = {"id": next(self._numbers), "method": method, **more}
        self._sock.sendall(json.dumps(order).encode() + b"\0")
        while (answer := json.loads(self._read())).get("id") != order["id"]:
            pass  # an event, which nobody has asked for
        if "error" in answer:
            raise BrowserFailed(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self) -> bytes:
        while b"\0" not in self._unread:
            piece = self._sock.recv(1 << 16)
            if not piece:
                raise BrowserFailed("Chromium has ended")
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return message

    @contextlib.contextmanager
    def open_tab(self) -> Iterator[Tab]:
        """Open a tab that shares nothing with any other, and close it."""
        context = self.ask("Target.createBrowserContext")
        try:
            target = self.ask("Target.createTarget", params={"url": "about:blank", **context})
            attached = self.ask("Target.attachToTarget", params={"flatten": True, **target})
            yield Tab(self, attached["sessionId"])
        finally:
            self.ask("Target.disposeBrowserContext", params=context)


class Tab:
    """One page. Raises `BrowserFailed`."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def order(self, method: str, **parameters: object) -> Any:
        """Have something done, and wait for what comes of it."""
        return self._browser.ask(method, params=parameters, sessionId=self._session)

    def resize(self, width: int, height: int) -> None:
        """Give the window another size; a narrow one is a telephone's."""
        self.order(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def go(self, address: str) -> None:
        """Open another page."""
        self.order("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.order("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def wait_for(self, expression: str, complaint: str = "") -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(f"!!({expression})"):
            if time.monotonic() > deadline:
                raise BrowserFailed(complaint or f"waited in vain for {expression}")
            time.sleep(0.05)


@contextlib.contextmanager
def start_browser() -> Iterator[Browser]:
    """Start a Chromium, and end it."""
    program = find_browser()
    if program is None:
        raise BrowserFailed("Chromium is not installed")
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with theirs:
            process = subprocess.Popen(
                ["sh", "-c", START, program, folder],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            ours.settimeout(PATIENCE)
            yield Browser(ours)
        finally:
            # With all that it has started: some stay for long when they are asked to end.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
