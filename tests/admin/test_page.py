"""The status page: whole without scripts, harmless whatever the names, and the same with them."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from atlas_pkg.admin import figures
from atlas_pkg.admin.app import AdminApp
from atlas_pkg.admin.page import Page
from atlas_pkg.admin.stats import Stats, judge
from atlas_pkg.observing.event_log import ErrorLine, Event
from tests.admin.support import (
    NOW,
    TOKEN,
    FakeSource,
    build_stats,
    build_upstream,
    serve_page,
)

HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(2)</script>'{{rows}}&lt;"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# Elements that have no end tag (HTML §13.1.2); svg shapes are closed where they stand.
VOID = {"br", "img", "input", "link", "meta"}


class Tree(html.parser.HTMLParser):
    """Checks that elements are closed in order, and collects what tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # tag, name, value
        self.rows: list[list[str]] = []  # texts of the table's cells
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open) and "title" not in self.open:
            self.rows[-1][-1] += f" {data}"

    def values(self, name: str) -> list[str]:
        return [value for _, known, value in self.attributes if known == name]


def render(stats: Stats) -> str:
    return Page().render(stats, judge(stats)).decode()


def build_hostile() -> Stats:
    """Every text that comes from outside is markup."""
    upstream = build_upstream(HOSTILE, address=HOSTILE, state=HOSTILE, why=HOSTILE, kind="down")
    upstream["classes"] = {HOSTILE: 3}
    upstream["failures"] = {HOSTILE: 3}
    stats = build_stats(upstream)
    stats["version"] = stats["mode"] = stats["config_path"] = HOSTILE
    stats["listen"] = [HOSTILE]
    stats["ready"], stats["ready_reason"] = False, HOSTILE
    stats["last_reload"] = {"time": NOW, "ok": False, "error": HOSTILE, "generation": 4}
    stats["events"] = [Event(time=NOW, kind="state", upstream=HOSTILE, text=HOSTILE)]
    stats["errors"] = [
        build_error(client=HOSTILE, line=HOSTILE, upstream=HOSTILE, text=HOSTILE, count=2)
    ]
    return stats


def build_error(**more: object) -> ErrorLine:
    error = ErrorLine(
        time=NOW,
        client="192.0.2.7",
        line="GET / HTTP/1.1",
        upstream="-",
        status=503,
        text="no upstream was available",
        count=1,
    )
    error.update(more)  # type: ignore[typeddict-item]
    return error


def template() -> str:
    return render(build_stats())


# Markup


@pytest.mark.parametrize(
    "stats",
    [build_stats(), build_stats(build_upstream("a"), build_upstream("b")), build_hostile()],
    ids=["empty", "healthy", "hostile"],
)
def test_the_page_is_well_formed(stats: Stats) -> None:
    tree = Tree(render(stats))

    assert tree.open == []
    identifiers = tree.values("id")
    assert len(identifiers) == len(set(identifiers))
    for name in ("aria-labelledby", "for"):
        assert set(tree.values(name)) <= set(identifiers)


def test_hostile_text_stays_text() -> None:
    text = render(build_hostile())

    tree = Tree(text)
    assert tree.tags.count("script") == 1
    assert "img" not in tree.tags
    assert not any(name.startswith("on") for _, name, _ in tree.attributes)
    # Once in the row, twice in events and so on, but its braces are never filled in.
    assert tree.tags.count("tr") == 2
    assert "{{rows}}" in text


def test_nothing_is_loaded_from_outside() -> None:
    text = template()

    tree = Tree(text)
    assert set(re.findall(r"https?://[^'\"\s]+", text)) == {"http://www.w3.org/2000/svg"}
    links = [*tree.values("href"), *tree.values("src")]
    assert {link for link in links if not link.startswith(("#", "data:"))} == {
        "stats.json",
        "metrics",
        "explain.json",
        "-/ready",
    }
    assert "@import" not in text
    assert "url(" not in text


def test_the_policy_allows_exactly_our_style_and_script() -> None:
    page = Page()
    text = template()

    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy
    assert "unsafe" not in page.policy
    assert "style" not in [name for _, name, _ in Tree(text).attributes]


def test_the_script_never_makes_markup_of_data() -> None:
    script = re.findall(r"<script>(.*?)</script>", template(), re.DOTALL)[0]

    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert word not in script
    for word in ("localStorage", "sessionStorage", "cookie"):  # the token stays in memory
        assert word not in script


def test_columns_are_headed_for_screen_readers() -> None:
    tree = Tree(render(build_stats(build_upstream("a"))))

    heads = [value for tag, name, value in tree.attributes if tag == "th" and name == "scope"]
    assert heads == ["col"] * 10 + ["row"]
    assert ("div", "aria-live", "polite") in tree.attributes


def test_all_placeholders_are_filled() -> None:
    assert "{{" not in template().replace("{{rows}}", "")


# What it says


def test_the_row_of_an_upstream_says_it_all() -> None:
    upstream = build_upstream(
        "a",
        kind="down",
        state="down",
        why="connect refused",
        since=NOW - 90,
        backup=True,
        weight=5,
        max_connections=100,
        failures={"connect": 12, "reset": 0},
        retries=3,
    )

    rows = Tree(render(build_stats(upstream))).rows

    texts = [" ".join(cell.split()) for cell in rows[1]]
    assert texts == [
        "a 10.0.0.1:3000, backup",
        "✕ down for 1 min connect refused",
        "50 % weight 5, file: 1",
        "2 of 100 3 idle",
        "12 /s 12,345 in all",
        "2xx 12,000 3xx 300 4xx 45",
        "connect 12 3 retried elsewhere",
        "1.3 / 4.8 / 31",
        "0 failed",
    ]


def test_a_refused_reload_is_shown_with_its_reason() -> None:
    stats = build_stats(build_upstream("a"))
    stats["last_reload"] = {"time": NOW - 42, "ok": False, "error": "a < b", "generation": 4}

    text = render(stats)

    assert "The last configuration was refused</strong> 42 s ago; generation&nbsp;4 stays" in text
    assert "<pre>a &lt; b</pre>" in text


def test_a_refused_reload_is_a_warning_however_well_the_upstreams_are() -> None:
    stats = build_stats(build_upstream("a"), build_upstream("b"))
    stats["last_reload"] = {"time": NOW, "ok": False, "error": "no", "generation": 4}
    ill = build_stats(build_upstream("a", kind="down", state="down", why="refused"))
    ill["last_reload"] = stats["last_reload"]

    assert judge(stats) == {
        "level": "warn",
        "text": "The configuration file was refused",
        "details": ["All 2 upstreams are up"],
    }
    assert "<title>The configuration file was refused – Atlas</title>" in render(stats)
    assert judge(ill) == {
        "level": "warn",
        "text": "0 of 1 upstreams are up",
        "details": ["the configuration file was refused", "a: down, refused"],
    }


def test_what_is_of_the_last_minute_says_so() -> None:
    tree = Tree(render(build_stats(build_upstream("a"))))

    heads = [" ".join(cell.split()) for cell in tree.rows[0]]
    labels = [" ".join(value.split()) for value in tree.values("data-label")]
    assert heads[2] == "Share last minute"
    assert heads[7:9] == ["p50 / p95 / p99 in ms, last minute", "Last minute answered, failed"]
    # Where the heads are not shown, the cells are labelled.
    assert (labels[1], labels[6]) == ("Share, 1 min", "p50 / p95 / p99, ms, 1 min")


def test_errors_that_are_alike_say_how_many() -> None:
    stats = build_stats(build_upstream("a"))
    stats["errors"] = [build_error(count=1234), build_error(count=1)]

    many, one = re.findall(r"<code>.*?</li>", render(stats))

    assert re.sub("<.*?>", " ", html.unescape(many)).split("×")[1].split()[0] == "1,234"
    assert "; last client 192.0.2.7" in many
    assert "times" not in one
    assert "; client 192.0.2.7" in one


def test_columns_have_widths_that_no_text_can_change() -> None:
    text = template()
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0]

    # The first two share what is left; the last two have names of their own.
    sortable = [value for tag, name, value in Tree(text).attributes if name == "data-sort"][2:]
    assert "table-layout: fixed" in style
    for column in (*(f"[data-sort={key}]" for key in sortable), "#minute-head", "#change-head"):
        assert f"{column} {{ width:" in style


def test_a_button_that_does_nothing_looks_like_it() -> None:
    assert template().index(".button.main {") < template().index(".button:disabled {")


def test_verdicts() -> None:
    up, down = build_upstream("a"), build_upstream("b", kind="down", state="down", why="refused")
    draining = build_stats(up)
    draining["state"] = "draining"
    unready = build_stats(down)
    unready["ready"], unready["ready_reason"] = False, "no upstream is usable"

    verdicts = [
        judge(stats)
        for stats in (
            build_stats(up),
            build_stats(up, up),
            build_stats(up, down),
            build_stats(*[down] * 9),
            build_stats(),
            draining,
            unready,
        )
    ]

    assert [(verdict["level"], verdict["text"]) for verdict in verdicts] == [
        ("good", "The upstream is up"),
        ("good", "All 2 upstreams are up"),
        ("warn", "1 of 2 upstreams is up"),
        ("warn", "0 of 9 upstreams are up"),
        ("bad", "No upstreams are configured"),
        ("warn", "Draining: no new clients"),
        ("bad", "Not ready: no upstream is usable"),
    ]
    assert verdicts[2]["details"] == ["b: down, refused"]
    assert verdicts[3]["details"][-1] == "and 5 more"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (figures.count(0), "0"),
        (figures.count(0.44), "0.4"),
        (figures.count(7), "7"),
        (figures.count(12345.6), "12,346"),
        (figures.count(1_234_567), "1.23 M"),
        (figures.rate(28), "28 /s"),
        (figures.rate(9.44), "9.4 /s"),
        (figures.percent(0), "0 %"),
        (figures.percent(0.001), "<0.1 %"),
        (figures.percent(3.14), "3.1 %"),
        (figures.percent(33.3), "33 %"),
        (figures.milliseconds(None), "–"),
        (figures.milliseconds(0.84), "0.8"),
        (figures.milliseconds(1240.2), "1,240"),
        (figures.bytes_rate(0), "0 B/s"),
        (figures.bytes_rate(999), "999 B/s"),
        (figures.bytes_rate(4200), "4.2 kB/s"),
        (figures.bytes_rate(118_000_000), "118 MB/s"),
        (figures.bytes_rate(2.5e12), "2500 GB/s"),
        (figures.span(-1), "0 s"),
        (figures.span(59.9), "60 s"),
        (figures.span(60), "1 min"),
        (figures.span(7260), "2 h"),
        (figures.span(200_000), "2 d"),
        (figures.clock(0), "00:00:00"),
        (figures.iso(0), "1970-01-01T00:00:00Z"),
    ],
)
def test_numbers_are_for_people(text: str, expected: str) -> None:
    assert text == expected


# In a browser


def open_in_browser(port: int, folder: Path, *options: str) -> str:
    """What the page has become after its script has run for a few seconds."""
    assert BROWSER is not None
    process = subprocess.Popen(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}",
            "--virtual-time-budget=5000",
            *options,
            "--dump-dom",
            f"http://127.0.0.1:{port}/",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=50)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.skip("the browser does not come up here")
    return text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_script_shows_the_same_as_the_page_without_it(tmp_path: Path) -> None:
    stats = build_stats(
        build_upstream("a", rate=0.4, total=1_234_567, weight=7, share_percent=0.04),
        build_upstream(HOSTILE, kind="drain", state="drain", why=HOSTILE, in_flight=12345),
        build_upstream("c", address="::1", p50_ms=None, failures={"connect": 3}, retries=1),
    )
    stats["last_reload"] = {"time": NOW - 42, "ok": False, "error": HOSTILE, "generation": 4}
    stats["errors"] = [build_error(count=1234), build_error(upstream=HOSTILE)]
    app = AdminApp(FakeSource(lambda: stats), token=TOKEN, address="")

    with serve_page(app) as port:
        text = open_in_browser(port, tmp_path)

    before, after = Tree(render(stats)), Tree(text)
    assert after.tags.count("path") > 10, "the script has drawn nothing"
    # Where there is no room for the heads of the columns, a list offers the same orders.
    heads, orders = (
        [value for tag, name, value in after.attributes if (tag, name) == key]
        for key in (("th", "data-sort"), ("option", "value"))
    )
    assert orders == ["", *heads]
    assert "img" not in after.tags
    # All but the last minute, which only the script draws, and the buttons.
    told, shown = (
        [["".join(cell.split()) for cell in row[:8]] for row in tree.rows]
        for tree in (before, after)
    )
    assert shown == told
    for identifier in ("facts", "verdict", "refused", "tiles", "errors"):
        pattern = rf'id="{identifier}"[^>]*>(.*?)</(?:dl|section|ol)>'
        drawn = r"<svg.*?</svg>|<small>peak.*?</small>|<time.*?</time>|<[^>]*>|\s|&nbsp;"
        told_text, shown_text = (
            re.sub(drawn, "", found[0])
            for found in (re.findall(pattern, part, re.DOTALL) for part in (render(stats), text))
        )
        assert html.unescape(shown_text) == html.unescape(told_text)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_second_curve_has_a_lane_of_its_own_and_says_what_it_is(tmp_path: Path) -> None:
    app = AdminApp(FakeSource(), token=TOKEN, address="")

    with serve_page(app) as port:
        text = open_in_browser(port, tmp_path)

    tiles = re.findall(r'<div class="tile">.*?</svg></div>', text, re.DOTALL)
    assert [tile.count('class="second" d=') for tile in tiles] == [0, 0, 0, 1, 1, 0]
    latency = tiles[3]
    assert "peak 1.3 ms" in latency, "the peak is that of the number's own curve"
    assert re.search(r'class="key".*?</svg>p99 31<', latency)
    # Of 48 units from the top. 1.3 ms fills its lane, though p99 is so much more; p99 is beneath.
    beneath, own = (
        {float(height) for height in re.findall(r"[ML]\d+ ([\d.]+)", path)}
        for path in re.findall(r'<path(?: class="second")? d="([^"]*)"', latency.split("rule")[1])
    )
    assert (own, beneath) == ({4.0}, {36.0})
