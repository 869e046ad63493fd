"""The page of a running Atlas, left open in a browser while upstreams die and come back."""

from __future__ import annotations

import contextlib

import pytest

from tests.browser import Tab
from tests.fakes import Scripted
from tests.functional.conftest import Start
from tests.toolkit import Atlas, build_config

CHECK = {"path": "/health", "interval": 0.2, "timeout": 2.0, "rise": 2, "fall": 2}


def text_of(selector: str) -> str:
    """An expression for the visible text of a part of the page, on one line."""
    return rf"document.querySelector('{selector}').innerText.replace(/\s+/g, ' ')"


def shows(selector: str, *words: str) -> str:
    """An expression that is true when all words stand in a part of the page."""
    found = (f"{text_of(selector)}.includes({word!r})" for word in words)
    return f"document.querySelector('{selector}') && {' && '.join(found)}"


def open_page(tab: Tab, atlas: Atlas) -> None:
    where = atlas.wait_for("admin address ").rpartition(" ")[2]
    tab.go(f"{where}/")
    tab.wait_for("document.querySelectorAll('.spark path').length > 6", "the script to draw")


@pytest.mark.engines("lane")
def test_it_follows_what_happens(upstreams: contextlib.ExitStack, start: Start, tab: Tab) -> None:
    a, b = (upstreams.enter_context(Scripted(name)) for name in ("a", "b"))
    tables = (a.table(), b.table())
    good = build_config(*tables, health_check=CHECK, admin={"port": 0})
    atlas = start(good)

    open_page(tab, atlas)
    tab.wait_for(shows("#verdict", "All 2 upstreams are up"))
    tab.evaluate("window.wasHere = true")  # it is never loaded anew

    a.health = 500
    tab.wait_for(shows("#verdict", "1 of 2 upstreams", "a: down, status 500"))
    tab.wait_for(shows("#upstreams", "down", "status 500"))
    tab.wait_for(shows("#events", "down: status 500"))
    assert "1 of 2" in tab.evaluate("document.title")

    b.health = 500
    atlas.wait_for("upstream b is down")
    assert atlas.get("/lost").status == 503
    tab.wait_for(shows("#errors", "GET /lost", "503"))

    a.health = b.health = 200
    tab.wait_for(shows("#verdict", "All 2 upstreams are up"))
    assert {atlas.get("/found").text for _ in range(4)} == {"a", "b"}
    tab.evaluate("document.getElementById('thinking').scrollIntoView()")
    tab.wait_for(shows("#exchanges", "GET /found"))

    atlas.rewrite(good.replace('name = "b"', 'nmae = "b"'))
    tab.wait_for(shows("#verdict", "The configuration file was refused"))
    atlas.rewrite(good)
    tab.wait_for(shows("#verdict", "All 2 upstreams are up"))
    assert tab.evaluate("window.wasHere") is True
