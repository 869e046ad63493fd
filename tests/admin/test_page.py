"""The status page: harmless whatever the names, drawn by its script alone, and its promises."""

from __future__ import annotations

import contextlib
import html
import html.parser
import importlib.resources
import re
from collections.abc import Callable, Iterator

import pytest

from atlas_pkg.admin.app import AdminApp
from atlas_pkg.admin.stats import Stats
from atlas_pkg.choice import Candidate, Choice
from atlas_pkg.observing.event_log import ErrorLine, Event
from atlas_pkg.observing.record import End, Record
from atlas_pkg.observing.timeline import STAGES
from tests.admin.support import (
    TOKEN,
    FakeSource,
    ask,
    build_stats,
    build_upstream,
    serve_page,
)
from tests.browser import Browser, Tab
from tests.observing.explain_support import CHOICE, NOW, build_record
from tests.toolkit import wait_until

HOSTILE = "\"><img src=x onerror=hacked=1><script>hacked=2</script>'{{rows}}&lt;"

# Elements that have no end tag (HTML §13.1.2); svg shapes are closed where they stand.
VOID = {"br", "img", "input", "link", "meta"}

Show = Callable[..., Tab]

WAITS = Choice("random", "nobody could be chosen", (), waits="all are full: it waits in the queue")
NOBODY = Choice("random", "nobody could be chosen", (Candidate("red", "", "down: status 500"),))


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


def read(name: str) -> str:
    file = importlib.resources.files("atlas_pkg.admin").joinpath(name)
    return file.read_text(encoding="utf-8")


PAGE, STYLE, SCRIPT = read("page.html"), read("page.css"), read("page.js")


def build_error(**more: object) -> ErrorLine:
    error = ErrorLine(
        group="default",
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


def build_many() -> list[Record]:
    return [
        build_record(
            choices=[CHOICE],
            failures=[("red", "connect")],
            reused=True,
            route="route 2 (/a) → group api",
        ),
        build_record(ended_at=100.2),
        build_record(ended_at=100.3, choices=[], request_id=b"4f"),
        build_record(ended_at=100.4, choices=[WAITS, CHOICE], first_byte_at=0.0),
        build_record(
            ended_at=1100.5,
            choices=[NOBODY],
            end=End.NO_UPSTREAM,
            status=503,
            upstream="-",
            chosen_at=0.0,
        ),
        build_record(HOSTILE.encode(), ended_at=100.6, upstream=HOSTILE, choices=[hostile()]),
    ]


def hostile() -> Choice:
    candidates = (Candidate(HOSTILE, HOSTILE, HOSTILE), Candidate(HOSTILE, HOSTILE))
    return Choice(HOSTILE, HOSTILE, candidates, HOSTILE, HOSTILE, ((HOSTILE, 3),))


def words(text: str) -> str:
    """What is read, on one line."""
    text = re.sub(r"<noscript>.*?</noscript>|<[^>]*>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


# Markup


def test_the_page_is_well_formed() -> None:
    tree = Tree(PAGE)

    assert tree.open == []
    identifiers = tree.values("id")
    assert len(identifiers) == len(set(identifiers))
    for name in ("aria-labelledby", "for"):
        assert set(tree.values(name)) <= set(identifiers)


def test_the_script_finds_what_it_looks_for() -> None:
    identifiers = set(Tree(PAGE).values("id"))

    assert set(re.findall(r'byId\("([a-z-]+)"\)', SCRIPT)) <= identifiers


def test_nothing_is_loaded_from_outside() -> None:
    tree = Tree(PAGE)

    assert set(re.findall(r"https?://[^'\"\s]+", PAGE + STYLE + SCRIPT)) == {
        "http://www.w3.org/2000/svg"
    }
    links = [*tree.values("href"), *tree.values("src")]
    assert {link for link in links if not link.startswith(("#", "data:"))} == {
        "page.css",
        "page.js",
        "stats.json",
        "metrics",
        "explain.json",
        "-/ready",
        "status.txt",
    }
    assert "@import" not in STYLE
    assert "url(" not in STYLE


def test_the_policy_allows_nothing_but_our_files() -> None:
    policy = ask(app_of(), "/").fields["Content-Security-Policy"]

    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "unsafe" not in policy
    tree = Tree(PAGE)
    assert not any(name == "style" or name.startswith("on") for _, name, _ in tree.attributes)
    assert "style" not in tree.tags


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/", "text/html; charset=utf-8", PAGE),
        ("/page.css", "text/css; charset=utf-8", STYLE),
        ("/page.js", "text/javascript; charset=utf-8", SCRIPT),
    ],
)
def test_its_files_are_served(path: str, kind: str, content: str) -> None:
    answer = ask(app_of(), path)

    assert (answer.status, answer.fields["Content-Type"]) == (200, kind)
    assert answer.text == content


def test_the_script_never_makes_markup_of_data() -> None:
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert word not in SCRIPT
    for word in ("localStorage", "sessionStorage", "cookie"):  # the token stays in memory
        assert word not in SCRIPT


def test_columns_are_headed_for_screen_readers() -> None:
    tree = Tree(PAGE)

    heads = [value for tag, name, value in tree.attributes if tag == "th" and name == "scope"]
    assert heads == ["col"] * 10
    assert ("div", "aria-live", "polite") in tree.attributes


def test_without_scripts_there_is_the_text() -> None:
    (head, body) = re.findall(r"<noscript>(.*?)</noscript>", PAGE, re.DOTALL)

    assert 'content="0; url=status.txt"' in head
    assert '<a href="status.txt">' in body


def test_what_is_of_the_last_minute_says_so() -> None:
    heads = [" ".join(cell.split()) for cell in Tree(PAGE).rows[0]]

    assert heads[2] == "Share last minute"
    assert heads[7:9] == ["p50 / p95 / p99 in ms, last minute", "Last minute answered, failed"]


def test_columns_have_widths_that_no_text_can_change() -> None:
    # The first two share what is left; the last two have names of their own.
    sortable = [value for _, name, value in Tree(PAGE).attributes if name == "data-sort"][2:]
    assert "table-layout: fixed" in STYLE
    for column in (*(f"[data-sort={key}]" for key in sortable), "#minute-head", "#change-head"):
        assert f"{column} {{ width:" in STYLE


def test_a_button_that_does_nothing_looks_like_it() -> None:
    assert STYLE.index(".button.main {") < STYLE.index(".button:disabled {")


def test_the_legend_says_what_the_colours_mean() -> None:
    for stage in STAGES:
        assert f'class="stage-{stage}" width="10" height="10"/></svg>{stage}:' in PAGE


# Colours


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    digits = colour.lstrip("#")
    digits = "".join(letter * 2 for letter in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def colours(scheme: str) -> dict[str, str]:
    """The page's colours by their names."""
    index = ("light", "dark").index(scheme)
    found: dict[str, list[str]] = {}
    for name, colour in re.findall(r"--([a-z-]+): (#\w+);", STYLE):
        found.setdefault(name, []).append(colour)
    return {name: both[index] for name, both in found.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_of_the_bars_stand_out(scheme: str) -> None:
    colour = colours(scheme)

    # WCAG 2.2, 1.4.11: 3 to 1 for what has to be recognised.
    for stage in STAGES:
        for ground in ("card", "off-soft"):
            assert contrast(colour[f"stage-{stage}"], colour[ground]) >= 3, (stage, ground)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_and_words_stand_out(scheme: str) -> None:
    colour = colours(scheme)

    for name in ("accent", "second", "bad", "bar", "good", "warn", "off"):
        assert contrast(colour[name], colour["card"]) >= 3, name
    # WCAG 2.2, 1.4.3: 4.5 to 1 for text. Placeholders are muted, and lie on the ground.
    for name in ("ink", "muted"):
        for ground in ("card", "ground", "raised"):
            assert contrast(colour[name], colour[ground]) >= 4.5, (name, ground)
    assert contrast(colour["second"], colour["card"]) >= 4.5
    for level in ("good", "warn", "bad", "off"):
        assert contrast(colour[level], colour[f"{level}-soft"]) >= 4.5, level
    assert "::placeholder { color: var(--muted); opacity: 1; }" in STYLE
    assert "stroke-opacity" not in STYLE, "a colour that is mixed is fainter than it says"


# In a browser


def app_of(stats: Stats | None = None, *records: Record) -> AdminApp:
    build = (lambda: stats) if stats is not None else None
    return AdminApp(FakeSource(build, *records), token=TOKEN)


@pytest.fixture
def show(browser: Browser) -> Iterator[Show]:
    """Open the page of an app, and wait until its numbers are drawn."""
    with contextlib.ExitStack() as stack:

        def show_page(app: AdminApp, height: int = 3000) -> Tab:
            port = stack.enter_context(serve_page(app))
            page = stack.enter_context(browser.open_tab())
            page.resize(1200, height)
            page.go(f"http://127.0.0.1:{port}/")
            page.wait_for("document.querySelector('#upstreams tr')")
            return page

        yield show_page


def markup_of(page: Tab) -> str:
    """What the page has become."""
    return str(page.evaluate("document.documentElement.outerHTML"))


def exchanges_of(page: Tab) -> str:
    """What the page has become once its exchanges are listed."""
    page.wait_for("document.querySelector('#exchanges li')")
    return markup_of(page)


def test_the_row_of_an_upstream_says_it_all(show: Show) -> None:
    upstream = build_upstream(
        "a",
        kind="down",
        state="down",
        why="connect refused",
        since=NOW - 90,
        group="api",
        backup=True,
        weight=5,
        max_connections=100,
        failures={"connect": 12, "reset": 0},
        retries=3,
    )

    page = show(app_of(build_stats(upstream)))

    tree = Tree(markup_of(page))
    assert [" ".join(cell.split()) for cell in tree.rows[1][:8]] == [
        "a group api 10.0.0.1:3000, backup",
        "✕ down for 1 min connect refused",
        "50 % weight 5, file: 1",
        "2 of 100 3 idle",
        "12 /s 12,345 in all",
        "2xx 12,000 3xx 300 4xx 45",
        "connect 12 3 retried elsewhere",
        "1.3 / 4.8 / 31",
    ]
    assert tree.tags.count("path") > 10, "the script has drawn no curves"
    # Where there is no room for the heads of the columns, a list offers the same orders, and the
    # cells are labelled.
    heads, orders = (
        [value for tag, name, value in tree.attributes if (tag, name) == key]
        for key in (("th", "data-sort"), ("option", "value"))
    )
    assert orders == ["", *heads]
    labels = [" ".join(value.split()) for value in tree.values("data-label")]
    assert (labels[1], labels[6]) == ("Share, 1 min", "p50 / p95 / p99, ms, 1 min")


def test_hostile_text_stays_text(show: Show) -> None:
    page = show(app_of(build_hostile(), *build_many()))

    text = exchanges_of(page)
    tree = Tree(text)
    assert page.evaluate("typeof hacked") == "undefined"
    assert tree.tags.count("script") == 1
    assert "img" not in tree.tags
    assert not any(name.startswith("on") for _, name, _ in tree.attributes)
    assert words(text).count(HOSTILE) > 15


def test_numbers_are_for_people(show: Show) -> None:
    stats = build_stats(
        build_upstream("a", rate=0.44, total=1_234_567, share_percent=0.04, p50_ms=None),
        build_upstream("b", rate=9.44, total=12345, share_percent=3.14, p50_ms=1240.2),
    )
    stats["errors"] = [build_error(count=1234), build_error(count=1)]
    stats["last_reload"] = {"time": NOW - 42, "ok": False, "error": "a < b", "generation": 4}

    page = show(app_of(stats))

    told = words(markup_of(page))
    for part in (
        *("0.4 /s", "9.4 /s", "1.23 M in all", "<0.1 %", "3.1 %", "– / 4.8 / 31"),
        *("1,240 / 4.8 / 31", "4.2 kB/s", "118 MB/s", "Up for 2 h"),
        "× 1,234 no upstream was available; last client 192.0.2.7",
        "GET / HTTP/1.1 no upstream was available; client 192.0.2.7",
        "The last configuration was refused 42 s ago; generation 4 stays in force. a < b",
    ):
        assert part in told, part


def test_a_second_curve_has_a_lane_of_its_own_and_says_what_it_is(show: Show) -> None:
    page = show(app_of())

    tiles = re.findall(r'<div class="tile">.*?</svg></div>', markup_of(page), re.DOTALL)
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


def test_an_exchange_is_told_in_words(show: Show) -> None:
    page = show(app_of(None, *build_many()))

    told = words(exchanges_of(page))
    for part in (
        "200 GET /a?… HTTP/1.1 green, 100 ms",
        "route 2 (/a) → group api",
        "head 10, choice 20, connect 5.0 (reused), wait 60, body 5.0 ms; client 192.0.2.7",
        "least_connections chose green : strategy, after slow start",
        "green chosen; 1 in flight / weight 1 = 1.00",
        "left out: slow start: skipped this time",
        "blue left out: down: status 500",
        "others 480 down, 2 full",
        "Failed attempts: red (connect)",
        "Its candidates were not noted.",
        "It did not come to a choice.",
        "random chose nobody : all are full: it waits in the queue",
    ):
        assert part in told, part


def width_of(bar: str) -> float:
    return sum(map(float, re.findall(r'<rect[^>]* width="([\d.]+)"', bar)))


def test_the_bars_of_all_exchanges_have_one_scale(show: Show) -> None:
    quick = build_record(ended_at=100.1)
    slow = build_record(ended_at=100.4)

    page = show(app_of(None, quick, slow))

    text = exchanges_of(page)
    bars = re.findall(r'<svg class="fall".*?</svg>', text)
    shared, own = bars[::2], bars[1::2]  # in the list, and in what opens
    assert sorted(map(width_of, shared)) == [pytest.approx(250, abs=2), pytest.approx(1000, abs=2)]
    assert list(map(width_of, own)) == [pytest.approx(1000, abs=2)] * 2
    assert "Bars from 0 to 400 ms." in words(text)


def test_explanations_are_fetched_only_while_they_are_on_the_screen(show: Show) -> None:
    source = FakeSource(None, build_record())

    page = show(AdminApp(source, token=TOKEN), height=200)  # too low, drawn or not
    # From now on the page's seconds pass at once, but while it fetches something.
    page.order("Emulation.setVirtualTimePolicy", policy="pauseIfNetworkFetchesPending")
    wait_until(lambda: source.polls > 10, "the numbers to be polled")
    assert source.looks == 0

    page.resize(1200, 3000)
    wait_until(lambda: source.looks > 1, "the second look at the exchanges")


# An administrator at the page


def enter_token(page: Tab, token: str) -> None:
    page.wait_for("!document.getElementById('token-form').hidden")
    page.evaluate(f"document.getElementById('token').value = {token!r}")
    page.evaluate("document.getElementById('token-form').requestSubmit()")


def test_a_wrong_token_is_noticed_when_it_is_entered(show: Show) -> None:
    source = FakeSource()
    page = show(AdminApp(source, token=TOKEN))

    enter_token(page, "not it")
    page.wait_for("!document.getElementById('token-refusal').hidden")
    refusal = page.evaluate("document.getElementById('token-refusal').textContent")
    buttons = page.evaluate("document.querySelectorAll('td.action:not([hidden])').length")
    enter_token(page, TOKEN)
    page.wait_for("!document.getElementById('token-held').hidden")
    page.wait_for("document.querySelectorAll('td.action:not([hidden])').length === 2")

    assert refusal == "this is not the token\n"
    assert buttons == 0
    assert source.steered == []


def test_an_upstream_is_steered_from_the_page(show: Show) -> None:
    source = FakeSource()
    page = show(AdminApp(source, token=TOKEN))

    enter_token(page, TOKEN)
    page.wait_for("!document.getElementById('token-held').hidden")
    page.evaluate("document.querySelector('td.action button').click()")
    page.evaluate("document.querySelector('[value=drain]').click()")
    page.wait_for("document.getElementById('apply').textContent === 'Set to drain'")
    page.evaluate("document.getElementById('apply').click()")
    page.wait_for("!document.getElementById('dialog').open")

    assert [(name, str(change)) for name, change in source.steered] == [("a", "state drain")]
