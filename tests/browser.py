"""A page in a real Chromium, told what to do over its DevTools protocol.

For what `--dump-dom` cannot show: a page that stays open while things happen, a window of a certain
width, a picture.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

# Longer than anything takes.
PATIENCE = 30.0


class BrowserFailed(Exception):
    """The browser is not there, or does not do as it is told."""


def find_browser() -> str | None:
    """The path of a Chromium, if one is installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Tab:
    """One page. Raises `BrowserFailed`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        target = self.order("Target.createTarget", url="about:blank")["targetId"]
        attached = self.order("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def order(self, method: str, **parameters: object) -> dict[str, Any]:
        """Have something done, and wait for what comes of it."""
        number = next(self._numbers)
        order = {"id": number, "method": method, "params": parameters, **self._session}
        self._socket.send(json.dumps(order))
        while True:
            answer = json.loads(self._socket.recv(PATIENCE))
            if answer.get("id") != number:
                continue  # an event, which nobody has asked for
            if "error" in answer:
                raise BrowserFailed(f"{method}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result

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
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise BrowserFailed(complaint or f"waited in vain for {expression}")
            time.sleep(0.1)


@contextlib.contextmanager
def open_tab() -> Iterator[Tab]:
    """Start a Chromium without a window, and end it."""
    program = find_browser()
    if program is None:
        raise BrowserFailed("Chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        process = subprocess.Popen(
            [program, *options, "--remote-debugging-port=0", f"--user-data-dir={folder}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield from _attach(process)
        finally:
            # With all that it has started: some stay for long when they are asked to end.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _attach(process: subprocess.Popen[str]) -> Iterator[Tab]:
    found = (re.search(r"ws://\S+", line) for line in process.stderr or ())
    address = next(filter(None, found), None)
    if address is None:
        raise BrowserFailed("Chromium does not come up")
    with connect(address[0], max_size=None, proxy=None) as socket:
        yield Tab(socket)
