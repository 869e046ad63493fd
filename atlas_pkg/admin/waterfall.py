"""The page's section about the last exchanges: a waterfall each, which opens to the candidates.

It is markup that can be read without scripts: each exchange is a `details` element, whose summary
says in words what its bar shows. `waterfall.js` draws the same from `/explain.json`, function by
function; if you change one here, change it there, too: a test in a browser compares the two.
Those with candidates are open where no script runs, since a page that refreshes itself would close
them again.

Every text from outside goes through `_text`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator

from atlas_pkg.admin import figures
from atlas_pkg.observing.timeline import (
    MEANINGS,
    STAGES,
    CandidateLine,
    ChoiceLine,
    Explained,
    Timeline,
    bars_of,
    spans_of,
)

# Units of a bar: thousandths of its exchange. What is there at all is at least so wide.
_WHOLE = 1000
_LEAST = 4

_FORM = """
<form id="ask-form" class="right" hidden>
  <label>Explain one in <input type="number" id="one-in" min="0" max="1000000"></label>
  <label>or the next from <input type="text" id="next-from" placeholder="address"></label>
  <button class="button">Ask</button>
</form>"""


def show_section(explained: Explained | None) -> str:
    """Build the section; nothing where nobody explains."""
    if explained is None:
        return ""
    legend = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="stage-{stage}" width="10"'
        f' height="10"/></svg>{stage}: {MEANINGS[stage]}</li>'
        for stage in STAGES
    )
    items = "\n".join(map(_show_exchange, explained["exchanges"]))
    return f"""\
<section class="card" id="thinking" aria-labelledby="exchanges-title">
<div class="top"><h2 id="exchanges-title">How a balancer thinks</h2>
<p id="wanted">{_text(_say_wanted(explained))}</p>{_FORM}</div>
<p class="notice" id="ask-refusal" role="alert" hidden></p>
<ul class="stages">{legend}</ul>
<ol class="log" id="exchanges" tabindex="0" aria-labelledby="exchanges-title">{items}</ol>
</section>"""


def _text(value: object) -> str:
    return html.escape(str(value))


def _say_wanted(explained: Explained) -> str:
    """Say for which exchanges candidates are noted at present."""
    one_in, next_from = explained["one_in"], explained["next_from"]
    parts = []
    if one_in:
        parts.append(
            "every exchange" if one_in == 1 else f"one exchange in {figures.count(one_in)}"
        )
    if next_from:
        parts.append(f"the next from {next_from}")
    return f"Candidates are noted for {' and '.join(parts) or 'none at present'}."


def _show_exchange(item: Timeline) -> str:
    is_open = " open" if item["choices"] else ""
    instant = item["time"]
    where = "no upstream" if item["upstream"] == "-" else item["upstream"]
    total = f"{figures.milliseconds(item['total_ms'])} ms"
    return (
        f"<li><details{is_open}><summary>"
        f'<time datetime="{figures.iso(instant)}">{figures.clock(instant)} UTC</time> '
        f"<b>{item['status']}</b><code>{_text(item['line'])}</code>{_text(where)}, {total}"
        f'{_show_bar(item)}<span class="sub">{_text(_say_stages(item))}</span></summary>'
        f'<div class="thoughts">{"".join(_show_thoughts(item))}</div></details></li>'
    )


def _show_bar(item: Timeline) -> str:
    rects = "".join(
        f'<rect class="stage-{stage}" x="{min(bar[0] * _WHOLE, _WHOLE - _LEAST):.1f}" y="0"'
        f' width="{max(_LEAST, bar[1] * _WHOLE):.1f}" height="10"/>'
        for stage, bar in zip(STAGES, bars_of(item), strict=True)
        if bar is not None and bar[1]
    )
    return (
        f'<svg class="fall" viewBox="0 0 {_WHOLE} 10" preserveAspectRatio="none"'
        f' aria-hidden="true">{rects}</svg>'
    )


def _say_stages(item: Timeline) -> str:
    """Say what the bar shows, and what it cannot show."""
    parts = [
        f"{stage} {figures.milliseconds(span)}"
        + (" (reused)" if stage == "connect" and item["reused"] else "")
        for stage, span in zip(STAGES, spans_of(item), strict=True)
        if span is not None
    ]
    told = [f"{', '.join(parts)} ms", f"client {item['client']}"]
    if item["end"] != "done":
        told.append(item["end"])
    if item["request_id"]:
        told.append(f"id {item['request_id']}")
    if item["choices"] is not None:
        told.append("explained")
    return "; ".join(told)


def _show_thoughts(item: Timeline) -> Iterator[str]:
    choices = item["choices"]
    if choices is None:
        yield "<p>Its candidates were not noted.</p>"
    elif not choices:
        yield "<p>It did not come to a choice.</p>"
    for choice in choices or ():
        yield from _show_choice(choice)
    if item["failures"]:
        failed = (f"{failure['upstream']} ({failure['stage']})" for failure in item["failures"])
        yield f"<p>Failed attempts: {_text(', '.join(failed))}</p>"


def _show_choice(choice: ChoiceLine) -> Iterator[str]:
    whom = choice["chosen"] or "nobody"
    why = choice["waits"] or choice["cause"]
    yield f"<p><b>{_text(choice['strategy'])} chose {_text(whom)}</b>: {_text(why)}</p>"
    yield '<ul class="candidates">'
    for candidate in choice["candidates"]:
        is_chosen = _is_chosen(candidate, choice)
        style = ' class="chosen"' if is_chosen else ""
        words = _text(_say_candidate(candidate, is_chosen=is_chosen))
        yield f"<li{style}><b>{_text(candidate['name'])}</b> <span>{words}</span></li>"
    if choice["others"]:
        kinds = (f"{figures.count(number)} {kind}" for kind, number in choice["others"].items())
        yield f"<li><b>others</b> <span>{_text(', '.join(kinds))}</span></li>"
    yield "</ul>"


def _is_chosen(candidate: CandidateLine, choice: ChoiceLine) -> bool:
    return candidate["name"] == choice["chosen"] and not candidate["left_out"]


def _say_candidate(candidate: CandidateLine, *, is_chosen: bool) -> str:
    left_out = f"left out: {candidate['left_out']}" if candidate["left_out"] else ""
    parts = ("chosen" if is_chosen else "", candidate["score"], left_out)
    return "; ".join(part for part in parts if part)
