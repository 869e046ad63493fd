"""Numbers for people: few digits, the right unit, the same everywhere on the page.

The script in `page.html` writes numbers by the same rules, function by function. If you change
one here, change it there, too: a test in a browser compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime

NOTHING = "–"

_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def count(value: float) -> str:
    """`0.4`, `7.5`, `128`, `12,345`, `1.23 M`."""
    if value >= 1_000_000:
        return f"{value / 1_000_000:.2f} M"
    if value >= 10 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}"


def rate(value: float) -> str:
    """`0 /s`, `7.5 /s`, `1,240 /s`."""
    return f"{count(value)} /s"


def percent(value: float) -> str:
    """`0 %`, `0.4 %`, `23 %`; what is there at all is never shown as none."""
    if 0 < value < 0.1:
        return "<0.1 %"
    return f"{value:.1f} %" if 0 < value < 10 else f"{value:.0f} %"


def milliseconds(value: float | None) -> str:
    """`0.8`, `12`, `1,240`, without the unit, which stands in the heading."""
    if value is None:
        return NOTHING
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def bytes_rate(value: float) -> str:
    """`312 B/s`, `4.2 kB/s`, `118 MB/s`."""
    units = ["GB", "MB", "kB", "B"]
    unit = units.pop()
    while value >= 1000 and units:
        value, unit = value / 1000, units.pop()
    digits = 1 if unit != "B" and value < 10 else 0
    return f"{value:.{digits}f} {unit}/s"


def span(seconds: float) -> str:
    """`8 s`, `3 min`, `5 h`, `12 d`: how long something has lasted."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def clock(instant: float) -> str:
    """`12:03:04`, in UTC: a page without a script cannot know where its reader is."""
    return datetime.fromtimestamp(instant, UTC).strftime("%H:%M:%S")


def iso(instant: float) -> str:
    """The machine's form of an instant, for the `time` element."""
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
