"""Pages of one's own for the errors that Atlas answers itself, and for maintenance."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.fakes import answering, build_answer
from tests.functional.conftest import Start
from tests.toolkit import Answer, Atlas, build_config, wait_until

HTML = {"Accept": "text/html,*/*;q=0.8"}
GONE = {"name": "gone", "address": "127.0.0.1", "port": 9}

pytestmark = pytest.mark.engines("lane")


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "5xx.html").write_text("<h1>Back soon</h1>")
    (folder / "404.html").write_text("<h1>Nöthing here</h1>", encoding="utf-8")
    return folder


def html(atlas: Atlas, target: str = "/") -> Answer:
    return atlas.get(target, **HTML)


def test_the_most_exact_page_answers_whoever_accepts_html(pages: Path, start: Start) -> None:
    atlas = start(
        build_config(
            GONE,
            error_pages={"folder": "pages"},
            routes=[{"path": "/none", "status": 404}, {"path": "/teapot", "status": 418}],
        )
    )

    none, down, teapot = html(atlas, "/none"), html(atlas), html(atlas, "/teapot")

    assert (none.status, none.body) == (404, (pages / "404.html").read_bytes())
    assert none.get("Content-Type") == "text/html; charset=utf-8"
    assert (down.status, down.text) == (502, "<h1>Back soon</h1>")
    assert "<h1>418 " in teapot.text  # there is neither 418.html nor 4xx.html
    plain = atlas.get("/none", Accept="application/json")
    assert plain.text == "404 Not Found\n"
    assert none.get("Vary") == plain.get("Vary") == "Accept"  # a cache in front keeps both
    with atlas.client() as client:
        client.send_head("HEAD", "/none", **HTML)
        head = client.read_head()
    assert head.get("Content-Length") == str(len(none.body))


def test_what_an_upstream_says_is_its_own(
    pages: Path,
    upstreams: contextlib.ExitStack,
    start: Start,
) -> None:
    own = build_answer(b"mine", status="503 Service Unavailable")
    assert pages.exists()
    upstream = upstreams.enter_context(answering(own))
    atlas = start(build_config(upstream.table(), error_pages={"folder": "pages"}))

    assert html(atlas).text == "mine"


def test_a_maintenance_page_comes_and_goes_with_a_route(pages: Path, start: Start) -> None:
    (pages / "503.html").write_text("<h1>Maintenance</h1>")
    tables = {"error_pages": {"folder": "pages"}}
    atlas = start(build_config(GONE, **tables))

    before = html(atlas)
    atlas.reload(build_config(GONE, routes=[{"status": 503}], **tables))
    during = html(atlas)
    atlas.reload(build_config(GONE, **tables))

    assert (before.status, html(atlas).status) == (502, 502)
    assert (during.status, during.text) == (503, "<h1>Maintenance</h1>")
    assert during.get("Retry-After")


def test_pages_are_read_again_when_they_change(pages: Path, start: Start) -> None:
    atlas = start(build_config(GONE, error_pages={"folder": "pages"}))

    (pages / "5xx.html").write_text("<h1>Another text</h1>")
    wait_until(lambda: html(atlas).text == "<h1>Another text</h1>")
    (pages / "502.html").write_text("<h1>New</h1>")
    wait_until(lambda: html(atlas).text == "<h1>New</h1>")
    (pages / "502.html").unlink()
    wait_until(lambda: html(atlas).text == "<h1>Another text</h1>")

    assert "Configuration hot-reloaded (generation 2): error pages: 5xx.html" in atlas.log


def test_a_page_that_cannot_be_used_is_told_and_the_next_one_is_used(
    pages: Path, start: Start
) -> None:
    (pages / "502.html").write_bytes(b"x" * (64 * 1024 + 1))
    (pages / "503.html").write_bytes(b"\xff")
    (pages / "500.html").mkdir()

    atlas = start(build_config(GONE, error_pages={"folder": "pages"}))

    assert html(atlas).text == "<h1>Back soon</h1>"
    for name, reason in (
        ("502.html", "more than 65536 bytes"),
        ("503.html", "not UTF-8"),
        ("500.html", "Is a directory"),
    ):
        assert f"{name}: not used, {reason}" in atlas.log


def test_without_its_folder_the_answers_are_plain(start: Start) -> None:
    atlas = start(build_config(GONE, error_pages={"folder": "nowhere"}))

    assert "<h1>502 Bad Gateway</h1>" in html(atlas).text
    assert "nowhere: No such file or directory" in atlas.log
