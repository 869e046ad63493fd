"""Takes the pictures in `screenshots/`: `.venv/bin/python examples/monitoring/screenshots.py`.

For developers, after the page has changed. It wants Chromium, the development packages (for
`websockets`), and the ports of `atlas.toml` free. Three upstreams and Atlas run for a minute with
some forty requests a second, so that the curves have something to show; then one upstream is
killed, comes back, and a configuration is refused. All of it takes a minute and a half.

Chromium is told what to do over its DevTools protocol, since its command line can neither make a
narrow window nor take a picture of a whole page. The demo and Atlas itself need none of this.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from websockets.sync.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

UPSTREAMS = {"one": 3001, "two": 3002, "three": 3003}
PAGE = "http://127.0.0.1:9191/"

CLIENTS = 12
REQUESTS_A_SECOND = 40.0
MINUTE = 62.0  # and a little more, so that the history is full

# The page's own script has drawn all curves and rows.
IS_DRAWN = "document.querySelectorAll('.spark path').length > 6"


class View(NamedTuple):
    """A window, and what its user likes."""

    width: int = 1280
    scheme: str = "light"


class Browser:
    """A Chromium without a window, and one page in it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        target = self._order("Target.createTarget", url="about:blank")["targetId"]
        attached = self._order("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def take_picture(self, name: str, view: View) -> None:
        """Open the page afresh and keep a picture of all of it."""
        features = [{"name": "prefers-color-scheme", "value": view.scheme}]
        self._order("Emulation.setEmulatedMedia", features=features)
        self._resize(view, 400)  # lower than the page, so that its own height can be measured
        self._order("Page.navigate", url=PAGE)
        deadline = time.monotonic() + support.PATIENCE
        while not self._evaluate(IS_DRAWN):
            if time.monotonic() > deadline:
                raise support.DemoFailed("the page's script has drawn nothing")
            time.sleep(0.1)
        self._resize(view, int(self._evaluate("document.documentElement.scrollHeight")))
        wide = self._evaluate("document.documentElement.scrollWidth") - view.width
        picture = base64.b64decode(self._order("Page.captureScreenshot", format="png")["data"])
        (PICTURES / f"{name}.png").write_bytes(picture)
        remark = f", {wide} pixels too wide" if wide > 0 else ""
        print(f"{name}.png: {len(picture) / 1024:.0f} KB{remark}")

    def _resize(self, view: View, height: int) -> None:
        self._order(
            "Emulation.setDeviceMetricsOverride",
            width=view.width,
            height=height,
            deviceScaleFactor=1,
            mobile=view.width < 600,
        )

    def _evaluate(self, expression: str) -> Any:
        return self._order("Runtime.evaluate", expression=expression)["result"].get("value")

    def _order(self, method: str, **parameters: object) -> dict[str, Any]:
        """Have Chromium do something, and wait for what comes of it."""
        number = next(self._numbers)
        order = {"id": number, "method": method, "params": parameters, **self._session}
        self._socket.send(json.dumps(order))
        while True:
            answer = json.loads(self._socket.recv(support.PATIENCE))
            if answer.get("id") != number:
                continue  # an event, which nobody has asked for
            if "error" in answer:
                raise support.DemoFailed(f"{method}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium, and end it."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise support.DemoFailed("Chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        process = subprocess.Popen(
            [program, *options, "--remote-debugging-port=0", f"--user-data-dir={folder}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            found = (re.search(r"ws://\S+", line) for line in process.stderr)
            address = next(filter(None, found), None)
            if address is None:
                raise support.DemoFailed("Chromium does not come up")
            with connect(address[0], max_size=None, proxy=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            process.wait(support.PATIENCE)


class Traffic:
    """Clients that ask, now more and now less, until `stop`; a context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_over = threading.Event()
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(number,), name=f"client-{number}")
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(support.PATIENCE)

    def _ask_on(self, number: int) -> None:
        lot = random.Random(number)  # the same in each run
        while not self._is_over.is_set():
            # A connection for some dozen requests; then the client goes, and comes back.
            client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=support.PATIENCE)
            with (
                contextlib.closing(client),
                contextlib.suppress(OSError, http.client.HTTPException),
            ):
                for _ in range(lot.randrange(10, 60)):
                    if self._is_over.wait(self._pause(lot)):
                        return
                    self._ask(client, lot)
            self._is_over.wait(lot.random() * 3)

    def _pause(self, lot: random.Random) -> float:
        wave = 1 + 0.5 * math.sin((time.monotonic() - self._began) / 6)
        return lot.expovariate(REQUESTS_A_SECOND * wave / CLIENTS)

    def _ask(self, client: http.client.HTTPConnection, lot: random.Random) -> None:
        kind = lot.random()
        if kind < 0.1:
            client.request("POST", "/upload", b"x" * lot.randrange(1000, 20_000))
        elif kind < 0.5:
            client.request("GET", f"/wait/{lot.lognormvariate(-4, 0.8):.3f}")
        else:
            client.request("GET", "/")
        client.getresponse().read()


def main() -> None:
    """Run it all, and take the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        programs = {}
        for name, port in UPSTREAMS.items():
            programs[name] = stack.enter_context(support.start_upstream(name, port))
            programs[name].wait_until_listening()
        text = (HERE / "atlas.toml").read_text(encoding="utf-8")
        # So many lines would fill the memory of whoever reads them.
        text = text.replace('access = "-"', 'access = "access.log"')
        atlas = stack.enter_context(support.Atlas(text))
        stack.enter_context(Traffic(atlas.port))
        browser = stack.enter_context(open_browser())
        time.sleep(MINUTE)
        browser.take_picture("healthy", View())
        browser.take_picture("dark", View(scheme="dark"))

        programs["two"].kill()
        atlas.wait_until_said("upstream two is down")
        time.sleep(8.0)
        browser.take_picture("one-down", View())
        browser.take_picture("narrow", View(width=400))

        stack.enter_context(support.start_upstream("two", UPSTREAMS["two"]))
        atlas.wait_until_said("upstream two is up")
        time.sleep(8.0)
        atlas.path.write_text(f"{text}weigth = 2\n", encoding="utf-8")
        atlas.wait_until_said("Configuration refused")
        time.sleep(4.0)
        browser.take_picture("refused-reload", View())


if __name__ == "__main__":
    sys.exit(support.run(main))
