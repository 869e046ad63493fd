"""Takes the pictures in `screenshots/`: `.venv/bin/python examples/monitoring/screenshots.py`.

For developers, after the page has changed. It wants Chromium, and the ports of `atlas.toml` free.
Three upstreams and Atlas run for a minute with some forty requests a second, so that the curves
have something to show; then one upstream is killed, which has some requests sent elsewhere, comes
back, and a configuration is refused. It all takes a minute and a half.

Chromium is told what to do over its DevTools protocol, since its command line can neither make a
narrow window nor take a picture of a part of a page. The demo and Atlas itself need none of this.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import math
import random
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import _support as support

from tests.browser import Tab, start_browser

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "screenshots"

UPSTREAMS = {"one": 3001, "two": 3002, "three": 3003}
PAGE = "http://127.0.0.1:9191/"

CLIENTS = 12
REQUESTS_A_SECOND = 40.0
MINUTE = 62.0  # and a little more, so that the history is full

TOKEN = "open-sesame"  # that of atlas.toml

# The page's own script has drawn all curves and rows.
IS_DRAWN = "document.querySelectorAll('.spark path').length > 6"

# Opens an exchange of whose two choices the candidates are known, and brings it in sight.
OPEN = """(() => {
  const closed = [...document.querySelectorAll("#exchanges details:not([open])")];
  const found = closed.find((item) => item.querySelectorAll(".candidates").length > 1);
  if (!found) return false;
  found.open = true;
  const list = document.getElementById("exchanges");
  list.scrollTop = found.offsetTop - list.offsetTop;
  return true;
})()"""
# What is above the exchanges, which have a picture of their own; and these.
NUMBERS = """(() => {
  const {top} = document.getElementById("thinking").getBoundingClientRect();
  return {x: 0, y: 0, width: document.documentElement.clientWidth, height: top, scale: 1};
})()"""
EXCHANGES = """(() => {
  const {x, y, width, height} = document.getElementById("thinking").getBoundingClientRect();
  return {x: x - 16, y: y - 16, width: width + 32, height: height + 32, scale: 1};
})()"""


class View(NamedTuple):
    """A window, and what its user likes."""

    width: int = 1280
    scheme: str = "light"


class Camera:
    """Takes pictures of the page."""

    def __init__(self, tab: Tab) -> None:
        self._tab = tab

    def take_picture(self, name: str, view: View) -> None:
        """Open the page afresh and keep a picture of its numbers, whole."""
        self._show(view)
        self._keep(name, NUMBERS)
        wide = self._tab.evaluate("document.documentElement.scrollWidth") - view.width
        if wide > 0:
            print(f"{name}.png is {wide} pixels too wide")

    def take_picture_of_exchanges(self, name: str) -> None:
        """Keep a picture of the part that tells why requests went where they went."""
        self._show(View())
        self._tab.wait_for(OPEN, "no exchange with a retry is explained")
        self._keep(name, EXCHANGES)

    def _show(self, view: View) -> None:
        """Open the page afresh in a window that is as high as the page."""
        features = [{"name": "prefers-color-scheme", "value": view.scheme}]
        self._tab.order("Emulation.setEmulatedMedia", features=features)
        # Lower than the page, so that its own height can be measured.
        self._tab.resize(view.width, 400)
        self._tab.go(PAGE)
        self._tab.wait_for(IS_DRAWN, "the page's script has drawn nothing")
        height = self._tab.evaluate("document.documentElement.scrollHeight")
        self._tab.resize(view.width, height)

    def _keep(self, name: str, part: str) -> None:
        clip = self._tab.evaluate(part)
        answer = self._tab.order("Page.captureScreenshot", format="png", clip=clip)
        picture = base64.b64decode(answer["data"])
        (PICTURES / f"{name}.png").write_bytes(picture)
        print(f"{name}.png: {len(picture) / 1024:.0f} KB")


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


def explain_some() -> None:
    """Have the candidates of every other exchange noted from now on."""
    request = urllib.request.Request(f"{PAGE}-/explain", b"one_in=2")
    request.add_header("Authorization", f"Bearer {TOKEN}")
    support.OPENER.open(request, timeout=support.PATIENCE).close()


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
        browser = stack.enter_context(start_browser())
        camera = Camera(stack.enter_context(browser.open_tab()))
        time.sleep(MINUTE)
        camera.take_picture("healthy", View())
        camera.take_picture("dark", View(scheme="dark"))

        explain_some()
        programs["two"].kill()
        atlas.wait_until_said("upstream two is down")
        camera.take_picture_of_exchanges("explained")
        time.sleep(8.0)
        camera.take_picture("one-down", View())
        camera.take_picture("narrow", View(width=400))

        stack.enter_context(support.start_upstream("two", UPSTREAMS["two"]))
        atlas.wait_until_said("upstream two is up")
        time.sleep(8.0)
        atlas.path.write_text(f"{text}weigth = 2\n", encoding="utf-8")
        atlas.wait_until_said("Configuration refused")
        time.sleep(4.0)
        camera.take_picture("refused-reload", View())


if __name__ == "__main__":
    sys.exit(support.run(main))
