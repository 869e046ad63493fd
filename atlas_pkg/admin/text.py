"""How Atlas is, as text for a terminal: `/status.txt`, and what SIGUSR1 logs.

It is for `curl`, for `watch`, and for browsers that run no scripts. A table's columns are rows
here: a heading, and how to read a cell from an upstream. Nothing that a terminal might obey gets
out, and a line stays a line.

Pure. Not done here: the page, which its script draws from `/stats.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from atlas_pkg.admin.stats import Stats, UpstreamStats, Verdict
from atlas_pkg.config.model import DEFAULT_GROUP
from atlas_pkg.config.rules import show_endpoint
from atlas_pkg.observing.event_log import ErrorLine, Event
from atlas_pkg.observing.process_stats import UpstreamNow, describe_state
from atlas_pkg.observing.timeline import show_printable

NOTHING = "-"

# What a reload says may be long; the log has all of it.
_MOST_EVENT = 200

_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))

_Item = TypeVar("_Item")
_Column = tuple[str, Callable[[_Item], str]]


def _show_weight(item: UpstreamNow) -> str:
    if item["weight"] == item["configured_weight"]:
        return f"{item['weight']}"
    return f"{item['weight']} (file: {item['configured_weight']})"


def _show_room(item: UpstreamNow) -> str:
    limit = f" of {item['max_connections']}" if item["max_connections"] else ""
    return f"{item['in_flight']}{limit}"


def _show_ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


_NOW: tuple[_Column[UpstreamNow], ...] = (
    ("upstream", lambda item: item["name"] + (" (backup)" if item["backup"] else "")),
    ("address", lambda item: show_endpoint(item["address"], item["port"])),
    ("state", describe_state),
    ("weight", _show_weight),
    ("in flight", _show_room),
    ("idle", lambda item: f"{item['idle']}"),
)
_GROUP: _Column[UpstreamNow] = ("group", lambda item: item["group"])
_MEASURED: tuple[_Column[UpstreamStats], ...] = (
    ("per s", lambda item: f"{item['rate']:.1f}"),
    ("share", lambda item: f"{item['share_percent']:.1f} %"),
    ("requests", lambda item: f"{item['total']}"),
    ("5xx", lambda item: f"{item['classes'].get('5xx', 0)}"),
    ("failures", lambda item: f"{sum(item['failures'].values())}"),
    ("p50", lambda item: _show_ms(item["p50_ms"])),
    ("p95", lambda item: _show_ms(item["p95_ms"])),
    ("p99", lambda item: _show_ms(item["p99_ms"])),
)


def show_status(stats: Stats, verdict: Verdict) -> str:
    """The document of `/status.txt`."""
    lines = [verdict["text"], *(f"  {detail}" for detail in verdict["details"]), ""]
    lines += _show_facts(stats)
    lines += ["", *_show_totals(stats), ""]
    lines += _show_table((*_now(stats["upstreams"]), *_MEASURED), stats["upstreams"])
    lines += ["", "Last events (UTC)", *map(_show_event, stats["events"])]
    lines += ["", "Last errors (UTC)", *map(_show_error, stats["errors"])]
    return "".join(f"{show_printable(line)}\n" for line in lines)


def show_upstreams(upstreams: Sequence[UpstreamNow]) -> list[str]:
    """A table of all upstreams, as they are at this moment."""
    return [show_printable(line) for line in _show_table(_now(upstreams), upstreams)]


def _now(upstreams: Sequence[UpstreamNow]) -> Sequence[_Column[UpstreamNow]]:
    """The columns of `_NOW`, with the groups where there are any."""
    has_groups = any(item["group"] != DEFAULT_GROUP for item in upstreams)
    return (_NOW[0], _GROUP, *_NOW[1:]) if has_groups else _NOW


def _show_facts(stats: Stats) -> Iterator[str]:
    reload = stats["last_reload"]
    last = "none"
    if reload is not None:
        word = "done" if reload["ok"] else "REFUSED"
        last = f"{word} {_show_span(stats['time'] - reload['time'])} ago"
    yield f"Atlas {stats['version']}, up for {_show_span(stats['uptime'])}, {stats['mode']}"
    yield f"  listening      {', '.join(stats['listen'])}"
    yield f"  configuration  {stats['config_path']}, generation {stats['generation']}"
    yield f"  last reload    {last}"
    if reload is not None and not reload["ok"]:
        yield from (f"                 {line}" for line in reload["error"].splitlines())
    yield f"  processes      {', '.join(map(str, stats['pids']))}"


def _show_totals(stats: Stats) -> Iterator[str]:
    totals = stats["totals"]
    latency = " / ".join(_show_ms(totals[key]) for key in ("p50_ms", "p95_ms", "p99_ms"))
    yield f"  requests     {totals['rate']:.1f} /s, {totals['requests']} in all"
    yield f"  errors       {totals['error_percent']:.1f} % answered with 5xx"
    yield f"  latency      {latency} ms (p50 / p95 / p99)"
    yield f"  bytes        {totals['bytes_in_rate']:.0f} B/s in, {totals['bytes_out_rate']:.0f} out"
    yield f"  connections  {totals['connections']} of {totals['max_connections']}"
    yield f"  queue        {totals['queue']}"


def _show_table(columns: Sequence[_Column[_Item]], items: Sequence[_Item]) -> Iterator[str]:
    """Lay out a table, each column as wide as what is in it."""
    rows = [[title for title, _ in columns]]
    rows += [[show_printable(read(item)) for _, read in columns] for item in items]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _show_event(event: Event) -> str:
    who = f"{event['upstream']} " if event["upstream"] else ""
    text = " ".join(event["text"].split())
    return f"  {_show_clock(event['time'])}  {who}{text}"[:_MOST_EVENT]


def _show_error(error: ErrorLine) -> str:
    times = f" x{error['count']}" if error["count"] > 1 else ""
    upstream = "" if error["upstream"] == "-" else f", upstream {error['upstream']}"
    if error["group"] not in {"-", DEFAULT_GROUP}:
        upstream += f", group {error['group']}"
    return (
        f"  {_show_clock(error['time'])}  {error['status']}{times} {error['line']}: "
        f"{error['text']}; client {error['client']}{upstream}"
    )


def _show_clock(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).strftime("%H:%M:%S")


def _show_span(seconds: float) -> str:
    """`8 s`, `3 min`, `5 h`, `12 d`: how long something has lasted."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
