"""One exchange as a time line: where its time went, and why it went where it did.

A `Timeline` is a record made plain: durations in milliseconds instead of instants, text in which
nothing is left that a terminal or a page might obey. It is what `/explain.json` shows, and what the
page and the terminal draw. The schema is public: add to it, do not change what a name means.

The stages follow one another without gaps. One that was not reached is None; the one in which an
exchange ended lasts until its end. A retry begins again with the choice, so what failed attempts
took is part of the choice that came after them.

Not done here: which exchanges are kept (`observing/tracer.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from typing import TypedDict

from atlas_pkg.choice import Choice
from atlas_pkg.observing.record import NO_TIMES, End, Record

# A request line may be 8 KiB; this much of it tells which one it was.
MOST_LINE = 160

# From the first byte of a request's head to the last one of its answer.
STAGES = ("head", "choice", "connect", "wait", "body")


class CandidateLine(TypedDict):
    """An upstream at the moment of a choice; `left_out` is empty if it could be chosen."""

    name: str
    score: str
    left_out: str


class ChoiceLine(TypedDict):
    """One choice; `choice.Choice` tells what its parts mean."""

    strategy: str
    cause: str
    chosen: str
    waits: str
    candidates: list[CandidateLine]
    others: dict[str, int]


class Failed(TypedDict):
    """An attempt that failed, and how: in a word of the access log, such as "connect-failed"."""

    upstream: str
    stage: str  # that word: the name of the key is public, and stays


class Timeline(TypedDict):
    """One exchange that has ended."""

    id: str  # the same whenever it is asked for
    time: float  # when it ended, in seconds since the epoch
    client: str
    line: str  # the request line, without the query
    request_id: str
    status: int
    end: str  # one of the words of the access log
    route: str  # the one that it took, in words; empty if none was meant for it
    group: str  # whose upstreams were to answer; "-" if none were
    upstream: str  # the last one that was tried; "-" if none was
    reused: bool  # the connection had been used before; one was opened if false and wait_ms is told
    retries: int
    failures: list[Failed]
    head_ms: float | None
    choice_ms: float | None
    connect_ms: float | None
    wait_ms: float | None
    body_ms: float | None
    total_ms: float
    choices: list[ChoiceLine] | None  # None: nobody had asked


class Wanted(TypedDict):
    """Which exchanges are explained at present."""

    one_in: int  # 0 = none
    next_from: str  # the address of a client; empty = nobody is waited for


class Explained(Wanted):
    """The document of `/explain.json`; the newest exchange comes first."""

    time: float
    exchanges: list[Timeline]


def build_timeline(record: Record, ended_at: float) -> Timeline:
    """Make a record plain; `ended_at` is its end in seconds since the epoch."""
    head, choice, connect, wait, body = _measure(record)
    choices = record.choices
    return Timeline(
        id=f"{os.getpid()}-{record.ended_at * 1e6:.0f}",
        time=round(ended_at, 3),
        client=record.address,
        line=show_line(record.line),
        request_id=record.request_id.decode("ascii", "backslashreplace"),
        status=record.status,
        end=record.end.value,
        route=record.route,
        group=record.group,
        upstream=record.upstream,
        reused=record.reused and wait is not None,
        retries=record.retries,
        failures=[Failed(upstream=name, stage=end) for name, end in record.failures],
        head_ms=head,
        choice_ms=choice,
        connect_ms=connect,
        wait_ms=wait,
        body_ms=body,
        total_ms=round(1000 * max(0.0, record.ended_at - record.began_at), 3),
        choices=None if choices is None else [_show_choice(choice) for choice in choices],
    )


def show_line(line: bytes) -> str:
    """A request line for people. Queries are left out: they carry secrets, and anybody may look."""
    before, mark, after = line.decode("latin-1").partition("?")
    text = before
    if mark:
        version = after.rpartition(" ")[2] if " " in after else ""
        text = f"{before}?… {version}".rstrip()
    text = show_printable(text)
    return text if len(text) <= MOST_LINE else text[: MOST_LINE - 1] + "…"


def show_printable(text: str) -> str:
    """A text without anything that a terminal might obey."""
    if text.isprintable():  # nearly all
        return text
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def spans_of(timeline: Timeline) -> list[float | None]:
    """The durations of all `STAGES`, in milliseconds."""
    return [
        timeline["head_ms"],
        timeline["choice_ms"],
        timeline["connect_ms"],
        timeline["wait_ms"],
        timeline["body_ms"],
    ]


def bars_of(timeline: Timeline) -> list[tuple[float, float] | None]:
    """Begin and length of all stages as parts of the whole, for a waterfall."""
    spans = spans_of(timeline)
    lengths = [span or 0.0 for span in spans]
    total = sum(lengths) or 1.0
    begins = accumulate(lengths, initial=0.0)
    return [
        None if span is None else (begin / total, length / total)
        for span, begin, length in zip(spans, begins, lengths, strict=False)
    ]


def _measure(record: Record) -> Sequence[float | None]:
    """How long each stage took, in milliseconds."""
    spans: list[float | None] = []
    begin = record.began_at
    times = record.times or NO_TIMES
    reached = (record.head_at, times.chosen_at, times.connected_at, times.first_byte_at)
    for instant in reached:
        # Not reached; or an earlier attempt reached it, and this one did not.
        if instant < begin or not instant:
            break
        spans.append(round(1000 * (instant - begin), 3))
        begin = instant
    if record.end is not End.REFUSED or len(spans) > 1:  # what is refused is not to be balanced
        spans.append(round(1000 * max(0.0, record.ended_at - begin), 3))
    return [*spans, *[None] * (len(STAGES) - len(spans))]


def _show_choice(choice: Choice) -> ChoiceLine:
    return ChoiceLine(
        strategy=choice.strategy,
        cause=choice.cause,
        chosen=choice.chosen,
        waits=choice.waits,
        candidates=[
            CandidateLine(name=item.name, score=item.score, left_out=item.left_out)
            for item in choice.candidates
        ],
        others=dict(choice.others),
    )
