"""The page's section about exchanges: readable without scripts, and the same with them."""

from __future__ import annotations

import html
import importlib.resources
import re
from pathlib import Path

import pytest

from atlas_pkg.admin.app import AdminApp
from atlas_pkg.admin.page import Page
from atlas_pkg.admin.stats import judge
from atlas_pkg.choice import Candidate, Choice
from atlas_pkg.observing.record import End
from atlas_pkg.observing.timeline import STAGES, Explained, build_timeline
from tests.admin.support import NOW, TOKEN, FakeSource, build_stats, build_upstream, serve_page
from tests.admin.test_page import BROWSER, HOSTILE, Tree, open_in_browser
from tests.observing.explain_support import CHOICE, build_record, explained

WAITS = Choice("random", "nobody could be chosen", (), waits="all are full: it waits in the queue")
NOBODY = Choice("random", "nobody could be chosen", (Candidate("red", "", "down: status 500"),))


def render(document: Explained | None) -> str:
    stats = build_stats(build_upstream("a"))
    return Page().render(stats, judge(stats), document).decode()


def section(text: str) -> str:
    (found,) = re.findall(r'<section class="card" id="thinking".*?</section>', text, re.DOTALL)
    return str(found)


def words(text: str) -> str:
    """What is read, without times: a script tells them as its reader's clock does."""
    text = re.sub(r"<time.*?</time>|<[^>]*>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def build_many() -> list[object]:
    return [
        build_record(choices=[CHOICE], failures=[("red", "connect")], reused=True),
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


# Without scripts


def test_the_section_is_well_formed_and_hostile_text_stays_text() -> None:
    source = FakeSource(None, *build_many())  # type: ignore[arg-type]
    source.document["next_from"] = HOSTILE

    tree = Tree(render(source.document))

    assert tree.open == []
    assert tree.tags.count("script") == 1
    assert "img" not in tree.tags
    identifiers = tree.values("id")
    assert len(identifiers) == len(set(identifiers))
    for name in ("aria-labelledby", "for"):
        assert set(tree.values(name)) <= set(identifiers)
    assert "style" not in [name for _, name, _ in tree.attributes]


def test_an_exchange_is_told_in_words() -> None:
    record = build_record(choices=[CHOICE], failures=[("red", "connect")], reused=True)

    text = words(section(render(explained(build_timeline(record, NOW)))))

    assert "200 GET /a?… HTTP/1.1 green, 100 ms" in text
    assert (
        "head 10, choice 20, connect 5.0 (reused), wait 60, body 5.0 ms; client 192.0.2.7" in text
    )
    assert "least_connections chose green : strategy, after slow start" in text
    assert "green chosen; 1 in flight / weight 1 = 1.00" in text
    assert "left out: slow start: spared this time" in text
    assert "blue left out: down: status 500" in text
    assert "others 480 down, 2 full" in text
    assert "Failed attempts: red (connect)" in text


@pytest.mark.parametrize(
    ("one_in", "next_from", "expected"),
    [
        (0, "", "Candidates are noted for none at present."),
        (1, "", "Candidates are noted for every exchange."),
        (1000, "", "Candidates are noted for one exchange in 1,000."),
        (0, "::1", "Candidates are noted for the next from ::1."),
        (2, "::1", "Candidates are noted for one exchange in 2 and the next from ::1."),
    ],
)
def test_what_is_asked_for_is_told(one_in: int, next_from: str, expected: str) -> None:
    assert expected in words(render(explained(one_in=one_in, next_from=next_from)))


def test_explained_ones_are_open_where_no_script_can_open_them() -> None:
    lines = [build_timeline(build_record(choices=choices), NOW) for choices in ([CHOICE], None)]

    text = section(render(explained(*lines)))

    assert text.count("<details open>") == 1
    assert text.count("<details>") == 1


def test_the_bar_is_for_the_eyes_and_the_words_for_all() -> None:
    text = section(render(explained(build_timeline(build_record(), NOW))))

    (bar,) = re.findall(r'<svg class="fall".*?</svg>', text)
    assert 'aria-hidden="true"' in bar
    assert re.findall(r'class="stage-(\w+)" x="([\d.]+)" y="0" width="([\d.]+)"', bar) == [
        ("head", "0.0", "100.0"),
        ("choice", "100.0", "200.0"),
        ("connect", "300.0", "50.0"),
        ("wait", "350.0", "600.0"),
        ("body", "950.0", "50.0"),
    ]
    for stage in STAGES:
        assert f"</svg>{stage}: " in text, "the legend says what the colours mean"


def test_without_somebody_who_explains_there_is_no_section() -> None:
    assert 'id="thinking"' not in render(None)


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
    for name, colour in re.findall(r"--([a-z-]+): (#\w+);", render(None)):
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
    assert "::placeholder { color: var(--muted); opacity: 1; }" in render(None)
    assert "stroke-opacity" not in render(None), "a colour that is mixed is fainter than it says"


def test_the_page_is_still_one_answer() -> None:
    for name in ("waterfall.css", "waterfall.js"):
        file = importlib.resources.files("atlas_pkg.admin").joinpath(name)
        assert file.read_text(encoding="utf-8") in render(None)
    assert "include waterfall" not in render(None)


# In a browser


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_script_tells_the_same_as_the_page_without_it(tmp_path: Path) -> None:
    source = FakeSource(None, *build_many())  # type: ignore[arg-type]
    source.document["one_in"], source.document["next_from"] = 1000, "::1"
    app = AdminApp(source, token=TOKEN, address="")
    before = section(render(source.document))
    # The ones of the script are other elements: these two differ in what is open.
    assert before.count("<details open>") == 4

    with serve_page(app) as port:
        after = section(open_in_browser(port, tmp_path, "--window-size=1200,6000"))

    assert "<details open" not in after, "the script has not shown anything"
    assert words(after) == words(before)
    assert "img" not in Tree(after).tags
    bars = [re.findall(r'class="stage-(\w+)"', part) for part in (before, after)]
    assert bars[0] == bars[1]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_explanations_are_fetched_only_while_they_are_on_the_screen(tmp_path: Path) -> None:
    source = FakeSource(None, build_record())
    app = AdminApp(source, token=TOKEN, address="")

    with serve_page(app) as port:
        open_in_browser(port, tmp_path, "--window-size=800,300")
        unseen = source.looks
        open_in_browser(port, tmp_path, "--window-size=1200,4000")

    assert unseen == 1, "only for the page itself"
    assert source.looks > unseen + 2, "once more for the page, and every two seconds"
