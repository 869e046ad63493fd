"""The status page: `page.html`, filled in so that it can be read without scripts.

A line `/* include FILE */` stands for a file beside it. Then there are names in double braces; they
are replaced in one pass, so a value that holds braces is not looked at again. Every value that
comes from outside goes through `_text`. The page's policy
allows exactly the style and the script in the file, by their hashes (CSP 3 §2.3.1), so even
markup that got through could run nothing.

What the script draws is not drawn here: curves and strips. The rest says the same in both.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import re
from collections.abc import Callable, Iterable

from atlas_pkg.admin import figures
from atlas_pkg.admin.stats import Stats, UpstreamStats, Verdict
from atlas_pkg.admin.waterfall import show_section
from atlas_pkg.observing.event_log import ErrorLine, Event
from atlas_pkg.observing.timeline import Explained
from atlas_pkg.wording import show_endpoint

_INCLUDE = re.compile(r"^/\* include ([a-z.]+) \*/$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{\{([a-z]+)\}\}")
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)

_LEVELS = {
    "up": "good",
    "checking": "warn",
    "half-open": "warn",
    "down": "bad",
    "open": "bad",
}
_GLYPHS = {"good": "✓", "warn": "!", "bad": "✕", "off": "–"}


class Page:
    """The page and its Content-Security-Policy. Immutable, thread-safe."""

    def __init__(self) -> None:
        """Read the files, which must not change under a running program. Blocks on the disk."""
        self._template = _INCLUDE.sub(lambda match: _read(match[1]), _read("page.html"))
        self.policy = "; ".join(
            (
                "default-src 'none'",
                f"style-src {_hashes(_STYLE, self._template)}",
                f"script-src {_hashes(_SCRIPT, self._template)}",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )

    def render(self, stats: Stats, verdict: Verdict, explained: Explained | None = None) -> bytes:
        """Fill the page with `stats`, and with the last exchanges, if there is who knows them."""
        values: dict[str, Callable[[], str]] = {
            "title": lambda: _text(f"{verdict['text']} – Atlas"),
            "version": lambda: _text(stats["version"]),
            "facts": lambda: _facts(stats),
            "verdict": lambda: _verdict(verdict),
            "refused": lambda: _refused(stats),
            "tiles": lambda: _tiles(stats),
            "shown": lambda: str(len(stats["upstreams"])),
            "rows": lambda: "\n".join(_row(item, stats["time"]) for item in stats["upstreams"]),
            "events": lambda: _list(map(_event, stats["events"]), "None yet."),
            "errors": lambda: _list(map(_error, stats["errors"]), "None so far."),
            "exchanges": lambda: show_section(explained),
        }
        return _PLACEHOLDER.sub(lambda match: values[match[1]](), self._template).encode()


def _read(name: str) -> str:
    file = importlib.resources.files("atlas_pkg.admin").joinpath(name)
    return file.read_text(encoding="utf-8")


def _hashes(pattern: re.Pattern[str], template: str) -> str:
    digests = (hashlib.sha256(found.encode()).digest() for found in pattern.findall(template))
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _text(value: object) -> str:
    return html.escape(str(value))


def _facts(stats: Stats) -> str:
    reload = stats["last_reload"]
    told = "none"
    if reload is not None:
        ago = figures.span(stats["time"] - reload["time"])
        told = f"done {ago} ago" if reload["ok"] else f'<span class="bad">refused {ago} ago</span>'
    path, generation = _text(stats["config_path"]), stats["generation"]
    facts = (
        ("Listening", _text(f"{', '.join(stats['listen'])} ({stats['mode']})")),
        ("Configuration", f"{path}, generation&nbsp;{generation}"),
        ("Last reload", told),
        ("Up for", figures.span(stats["uptime"])),
        ("Processes" if len(stats["pids"]) > 1 else "Process", ", ".join(map(str, stats["pids"]))),
    )
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)


def _verdict(verdict: Verdict) -> str:
    level = verdict["level"]
    details = f"<p>{_text('; '.join(verdict['details']))}</p>" if verdict["details"] else ""
    return (
        f'<span class="lamp {level}" aria-hidden="true">{_GLYPHS[level]}</span>'
        f"<div><h1>{_text(verdict['text'])}</h1>{details}</div>"
    )


def _refused(stats: Stats) -> str:
    reload = stats["last_reload"]
    if reload is None or reload["ok"]:
        return ""
    return (
        '<section class="notice"><strong>The last configuration was refused</strong> '
        f"{figures.span(stats['time'] - reload['time'])} ago; "
        f"generation&nbsp;{reload['generation']} stays in force."
        f"<pre>{_text(reload['error'])}</pre></section>"
    )


def _tiles(stats: Stats) -> str:
    totals = stats["totals"]
    p50, p95, p99 = (figures.milliseconds(totals[key]) for key in ("p50_ms", "p95_ms", "p99_ms"))
    tiles = (
        (
            "Requests",
            figures.rate(totals["rate"]),
            f"{figures.count(totals['requests'])} in all",
        ),
        (
            "Connections",
            figures.count(totals["connections"]),
            f"of {figures.count(totals['max_connections'])}",
        ),
        ("Errors", figures.percent(totals["error_percent"]), "answered with 5xx"),
        ("Latency, p50", f"{p50} ms", f"p95 {p95}, p99 {p99}"),
        (
            "Bytes out",
            figures.bytes_rate(totals["bytes_out_rate"]),
            f"in {figures.bytes_rate(totals['bytes_in_rate'])}",
        ),
        ("Queue", figures.count(totals["queue"]), "waiting for room"),
    )
    return "".join(
        _tile(title, *number.split(" ", 1), detail=more) for title, number, more in tiles
    )


def _tile(title: str, number: str, unit: str = "", *, detail: str) -> str:
    small = f"<small> {unit}</small>" if unit else ""
    return (
        f'<div class="tile"><h2>{title}</h2><p class="number">{_text(number)}{small}</p>'
        f'<p class="detail">{detail}</p><div class="spark"></div></div>'
    )


def _row(upstream: UpstreamStats, now: float) -> str:
    where = show_endpoint(upstream["address"], upstream["port"])
    level = _LEVELS.get(upstream["kind"], "off")
    lasted = ""
    if upstream["since"] is not None:
        lasted = f"<small> for {figures.span(now - upstream['since'])}</small>"
    weight = f"weight {upstream['weight']}"
    if upstream["weight"] != upstream["configured_weight"]:
        weight += f", file:\u00a0{upstream['configured_weight']}"
    room = (
        f" of {figures.count(upstream['max_connections'])}" if upstream["max_connections"] else ""
    )
    latencies = (upstream["p50_ms"], upstream["p95_ms"], upstream["p99_ms"])
    retries = (
        f"{figures.count(upstream['retries'])} retried elsewhere" if upstream["retries"] else ""
    )
    cells = (
        _cell(
            "State",
            f'<span class="state {level}"><span aria-hidden="true">{_GLYPHS[level]}</span>'
            f"{_text(upstream['state'])}</span>{lasted}{_sub(upstream['why'])}",
            "why",
        ),
        _cell(
            "Share, 1\u00a0min", figures.percent(upstream["share_percent"]) + _sub(weight), "share"
        ),
        _cell(
            "In flight",
            f"{figures.count(upstream['in_flight'])}{room}"
            + _sub(f"{figures.count(upstream['idle'])} idle"),
            "flight",
        ),
        _cell(
            "Requests",
            figures.rate(upstream["rate"]) + _sub(f"{figures.count(upstream['total'])} in all"),
            "rate",
        ),
        _cell("Answers", _counts(upstream["classes"]) or "none yet", "classes"),
        _cell("Failures", (_counts(upstream["failures"]) or "none") + _sub(retries), "failures"),
        _cell(
            "p50 / p95 / p99, ms, 1\u00a0min",
            " / ".join(map(figures.milliseconds, latencies)),
            "latency",
        ),
        _cell("Last minute", f"{figures.count(sum(upstream['strip']['failed']))} failed", "minute"),
    )
    backup = ", backup" if upstream["backup"] else ""
    head = f"<b>{_text(upstream['name'])}</b>{_sub(where + backup)}"
    return (
        '<tr role="row"><th scope="row" role="rowheader" class="name">'
        f"{head}</th>{''.join(cells)}</tr>"
    )


def _cell(label: str, content: str, style: str = "") -> str:
    """Build a cell; `content` is markup."""
    return f'<td role="cell" data-label="{label}" class="{style}">{content}</td>'


def _sub(text: str) -> str:
    return f'<span class="sub">{_text(text)}</span>' if text else ""


def _counts(counts: dict[str, int]) -> str:
    there = ((name, number) for name, number in counts.items() if number)
    return " ".join(f"<span>{_text(name)} {figures.count(number)}</span>" for name, number in there)


def _list(items: Iterable[str], nothing: str) -> str:
    return "\n".join(items) or f"<li>{_sub(nothing)}</li>"


def _event(event: Event) -> str:
    who = f"<b>{_text(event['upstream'])} </b>" if event["upstream"] else ""
    return _line(event["time"], f"{who}{_text(event['text'])}")


def _error(error: ErrorLine) -> str:
    times, who = "", "client"
    if error["count"] > 1:
        times, who = f'<b class="times">&times; {figures.count(error["count"])}</b>', "last client"
    more = f"{error['text']}; {who} {error['client']}"
    if error["upstream"] != "-":
        more += f", upstream {error['upstream']}"
    line = f"<b>{error['status']} </b><code>{_text(error['line'])}</code>{times}{_sub(more)}"
    return _line(error["time"], line)


def _line(instant: float, content: str) -> str:
    return (
        f'<li><time datetime="{figures.iso(instant)}">{figures.clock(instant)} UTC</time>'
        f'<div class="what">{content}</div></li>'
    )
