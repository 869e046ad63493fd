"""Explained exchanges on a terminal: a block of lines each, with a waterfall (`--explain`).

Blocks go the way of the access log (`access_log.py`): one thread writes them, from a queue that is
bounded, and each in one piece, so those of several processes do not mix. A block fits into what a
pipe takes at once, and into 100 columns; what is longer is cut.

No character that a terminal might obey gets out, and what standard output cannot show is written as
an escape.

Pure, but for the time zone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from atlas_pkg.observing.record import Record
from atlas_pkg.observing.timeline import (
    STAGES,
    ChoiceLine,
    Timeline,
    bars_of,
    build_timeline,
    show_printable,
    spans_of,
)

COLUMNS = 100

# A pipe keeps so much of one write together, everywhere (POSIX, PIPE_BUF on Linux).
MOST_BYTES = 4096

_BAR = 64


class Blocks:
    """The format of explanations, for `AccessLog`."""

    shows_times = False  # what is explained is always timed

    def __init__(self) -> None:
        # There is no `sys.stdout` where the program was started with it closed.
        self._encoding: str = getattr(sys.stdout, "encoding", None) or "ascii"

    def format(self, records: Sequence[Record], epoch: float) -> list[bytes]:
        """Return a block of lines with an empty one behind it for each record; see `Format`."""
        return [self._format(build_timeline(record, record.ended_at + epoch)) for record in records]

    def _format(self, timeline: Timeline) -> bytes:
        written = b""
        for line in show_block(timeline):
            text = line if len(line) <= COLUMNS else line[: COLUMNS - 3] + "..."
            more = f"{show_printable(text)}\n".encode(self._encoding, "backslashreplace")
            if len(written) + len(more) + 1 > MOST_BYTES:
                break
            written += more
        return written + b"\n"


def show_block(timeline: Timeline) -> Iterator[str]:
    """Yield the lines that tell of one exchange."""
    clock = time.strftime("%H:%M:%S", time.localtime(timeline["time"]))
    thousandths = int(timeline["time"] * 1000) % 1000
    yield f"{clock}.{thousandths:03d}  {timeline['client']}  {timeline['line']}"
    if timeline["route"]:
        yield f"  {timeline['route']}"
    yield f"  {_show_end(timeline)}"
    bars = zip(STAGES, spans_of(timeline), bars_of(timeline), strict=True)
    for stage, span, bar in bars:
        if span is not None:
            yield f"  {stage:<8}{span:>10.2f} ms  |{_draw(bar):<{_BAR}}|"
    for choice in timeline["choices"] or ():
        yield from _show_choice(choice)


def _show_end(timeline: Timeline) -> str:
    """Say in a line what came of it."""
    parts = [f"{timeline['status'] or 'no answer'}, {timeline['end']}"]
    if timeline["upstream"] != "-":
        connection = "connection reused" if timeline["reused"] else "connection opened"
        if timeline["wait_ms"] is None:
            connection = "no connection"
        parts += [f"upstream {timeline['upstream']}", connection]
    parts += [
        f"{failure['upstream']} failed ({failure['stage']})" for failure in timeline["failures"]
    ]
    if timeline["request_id"]:
        parts.append(f"id {timeline['request_id']}")
    return f"{', '.join(parts)}: {timeline['total_ms']:.1f} ms"


def _draw(bar: tuple[float, float] | None) -> str:
    """Draw a part of the whole; what is there at all is seen."""
    if bar is None or not bar[1]:
        return ""
    begin = min(round(bar[0] * _BAR), _BAR - 1)
    return " " * begin + "=" * max(1, round((bar[0] + bar[1]) * _BAR) - begin)


def _show_choice(choice: ChoiceLine) -> Iterator[str]:
    """Say who was chosen, and list the candidates."""
    result = f"chose {choice['chosen']}" if choice["chosen"] else "chose nobody"
    yield f"  {choice['strategy']} {result}: {choice['waits'] or choice['cause']}"
    width = min(24, max((len(item["name"]) for item in choice["candidates"]), default=0))
    for item in choice["candidates"]:
        is_chosen = item["name"] == choice["chosen"] and not item["left_out"]
        mark = ">" if is_chosen else "x" if item["left_out"] else " "
        parts = [item["score"], f"left out: {item['left_out']}" if item["left_out"] else ""]
        text = "; ".join(part for part in parts if part)
        yield f"    {mark} {item['name']:<{width}}  {text}".rstrip()
    if choice["others"]:
        others = ", ".join(f"{count} {kind}" for kind, count in choice["others"].items())
        yield f"      and {sum(choice['others'].values())} others: {others}"
