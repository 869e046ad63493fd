"""Shows that clients come back to their upstream, as this folder's README says.

Starts two upstreams and Atlas on free ports, with a copy of `atlas.toml`. Clients with a cookie jar
stay where they are: from request to request, while their upstream takes no new clients, over a
restart of Atlas. Only when their upstream is gone do they move, and then for good. Run it from
anywhere: `python examples/sticky-sessions/demo.py`. Exit status 0 when all was as it should be,
else 1.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import sys
import urllib.request
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support

HERE = Path(__file__).resolve().parent

RELOADED = "Configuration hot-reloaded"


class Browser:
    """A client that keeps its cookies."""

    def __init__(self) -> None:
        self._jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self._jar)
        )

    def fetch(self, url: str) -> str:
        """Fetch `url`; returns the first line of the answer."""
        return support.fetch(url, self._opener)

    def fetch_often(self, url: str) -> dict[str, int]:
        """Fetch `url` ten times, and count the different answers."""
        return dict(Counter(self.fetch(url) for _ in range(10)))

    @property
    def cookies(self) -> list[str]:
        """The cookies of this browser, as they are sent."""
        return [f"{cookie.name}={cookie.value}" for cookie in self._jar]


def main() -> None:
    """Go through the walkthrough of the README, one step after the other."""
    with contextlib.ExitStack() as stack:
        names = ("one", "two")
        programs = {name: stack.enter_context(support.start_upstream(name)) for name in names}
        ports = {name: program.wait_until_listening() for name, program in programs.items()}
        configuration = configure(ports)
        atlas = stack.enter_context(support.Atlas(configuration))

        guest = show_cookie(atlas)
        show_weight_0(atlas, guest)
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)

        atlas = stack.enter_context(support.Atlas(configuration))
        support.expect("after a restart", guest.fetch_often(atlas.url), {"Hello from two": 10})
        show_move(atlas, guest, programs["two"])
        stack.enter_context(support.start_upstream("two", ports["two"])).wait_until_listening()
        support.expect("two is back", guest.fetch_often(atlas.url), {"Hello from one": 10})
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)


def configure(ports: dict[str, int]) -> str:
    """The example's configuration with the ports of this run."""
    configuration = (HERE / "atlas.toml").read_text(encoding="utf-8")
    changes = {8080: 0, 3001: ports["one"], 3002: ports["two"]}
    for old, new in changes.items():
        configuration = configuration.replace(f"port = {old}\n", f"port = {new}\n")
    return configuration


def show_cookie(atlas: support.Atlas) -> Browser:
    """Without cookies everybody is asked in turn, with them always the same one.

    Returns a browser that belongs to `two`.
    """
    shares = {"Hello from one": 5, "Hello from two": 5}
    found = support.fetch_often(atlas.url, 10)
    support.expect("10 requests without cookies", dict(found), shares)
    guest = Browser()
    while guest.fetch(atlas.url) != "Hello from two":
        guest = Browser()  # the next one will be luckier
    print(f"    a browser was sent to two, and given {guest.cookies}")
    support.expect("10 of its requests", guest.fetch_often(atlas.url), {"Hello from two": 10})
    guest_head = read_head(atlas.url, {"Cookie": f"{guest.cookies[0]}; theme=dark"})
    support.expect("the upstream's share of the cookies", guest_head["Cookie"], "theme=dark")
    return guest


def show_weight_0(atlas: support.Atlas, guest: Browser) -> None:
    """An upstream that is to be emptied takes no new clients and keeps those it has."""
    before, mark, after = atlas.path.read_text(encoding="utf-8").partition('name = "two"\n')
    atlas.path.write_text(before + mark + after.replace("weight = 1\n", "weight = 0\n"))
    print("    " + atlas.wait_until_said(RELOADED))
    found = support.fetch_often(atlas.url, 10)
    support.expect("10 new clients", dict(found), {"Hello from one": 10})
    support.expect("the browser", guest.fetch_often(atlas.url), {"Hello from two": 10})


def show_move(atlas: support.Atlas, guest: Browser, two: support.Program) -> None:
    """The client's own upstream is gone: it is taken elsewhere at once, and belongs there now."""
    before = guest.cookies
    two.kill()
    support.expect("two is killed", guest.fetch_often(atlas.url), {"Hello from one": 10})
    support.expect("the browser has another cookie", guest.cookies != before, True)


def read_head(url: str, fields: dict[str, str]) -> dict[str, str]:
    """Ask with `fields`, and return those that the upstream has seen."""
    request = urllib.request.Request(url + "/head", headers=fields)
    with support.OPENER.open(request, timeout=support.PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.partition(": ") for line in lines)
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    sys.exit(support.run(main))
