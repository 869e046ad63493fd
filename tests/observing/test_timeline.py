"""Records made plain: stages without gaps, text without teeth."""

from __future__ import annotations

import json

import pytest

from atlas_pkg.observing.record import End, Record
from atlas_pkg.observing.timeline import MOST_LINE, STAGES, bars_of, build_timeline, spans_of
from tests.observing.explain_support import CHOICE, build_record


def stages(record: Record) -> dict[str, float]:
    """The stages that were reached, in milliseconds."""
    spans = zip(STAGES, spans_of(build_timeline(record, 0.0)), strict=True)
    return {stage: span for stage, span in spans if span is not None}


def test_the_stages_follow_one_another() -> None:
    assert stages(build_record()) == {
        "head": 10.0,
        "choice": 20.0,
        "connect": 5.0,
        "wait": 60.0,
        "body": 5.0,
    }


def test_a_time_line_is_plain() -> None:
    record = build_record(
        choices=[CHOICE], failures=[("red", "connect")], retries=1, reused=True, request_id=b"4f"
    )

    timeline = build_timeline(record, 1_800_000_000.25)

    assert json.loads(json.dumps(timeline)) == timeline
    assert {name: timeline[name] for name in ("time", "client", "line", "status", "end")} == {
        "time": 1_800_000_000.25,
        "client": "192.0.2.7",
        "line": "GET /a?… HTTP/1.1",
        "status": 200,
        "end": "done",
    }
    assert (timeline["upstream"], timeline["reused"], timeline["retries"]) == ("green", True, 1)
    assert timeline["failures"] == [{"upstream": "red", "stage": "connect"}]
    assert timeline["request_id"] == "4f"
    assert timeline["total_ms"] == 100.0
    assert timeline["choices"] == [
        {
            "strategy": "least_connections",
            "cause": "strategy, after slow start",
            "chosen": "green",
            "waits": "",
            "candidates": [
                {"name": name, "score": score, "left_out": left_out}
                for name, score, left_out in CHOICE.candidates
            ],
            "others": {"down": 480, "full": 2},
        }
    ]


def test_an_id_stays_the_same() -> None:
    record = build_record()

    assert build_timeline(record, 1.0)["id"] == build_timeline(record, 2.0)["id"]


def test_who_has_not_asked_is_told_so() -> None:
    assert build_timeline(build_record(), 0.0)["choices"] is None
    assert build_timeline(build_record(choices=[]), 0.0)["choices"] == []


def test_waiting_for_a_place_in_vain_is_part_of_the_choice() -> None:
    record = build_record(
        chosen_at=0.0, connected_at=0.0, first_byte_at=0.0, end=End.NO_UPSTREAM, upstream="-"
    )

    assert stages(record) == {"head": 10.0, "choice": 90.0}


def test_the_last_stage_lasts_until_the_end() -> None:
    assert stages(build_record(connected_at=0.0, first_byte_at=0.0)) == {
        "head": 10.0,
        "choice": 20.0,
        "connect": 70.0,
    }
    assert stages(build_record(first_byte_at=0.0))["wait"] == 65.0


def test_instants_of_an_earlier_attempt_do_not_count() -> None:
    # The first attempt connected at 35 ms and failed; the second was chosen at 80 ms.
    record = build_record(chosen_at=100.080, first_byte_at=0.0, end=End.CONNECT_FAILED)

    assert stages(record) == {"head": 10.0, "choice": 70.0, "connect": 20.0}


def test_what_was_refused_was_not_balanced() -> None:
    record = Record("192.0.2.7", b"GET", 100.0)
    record.end, record.status, record.ended_at = End.REFUSED, 400, 100.001

    assert stages(record) == {"head": 0.0}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"GET /\x1b[31m HTTP/1.1", "GET /\ufffd[31m HTTP/1.1"),
        (b"GET /?" + b"x" * 9999, "GET /?…"),
        (b"\xff\xad\x00", "ÿ\ufffd\ufffd"),
        (b"GET /" + b"x" * 500, "GET /" + "x" * (MOST_LINE - 6) + "…"),
    ],
)
def test_request_lines_are_harmless_and_without_their_query(line: bytes, shown: str) -> None:
    assert build_timeline(build_record(line), 0.0)["line"] == shown


def test_bars_fill_the_whole() -> None:
    bars = bars_of(build_timeline(build_record(), 0.0))

    assert bars == [
        pytest.approx(bar)
        for bar in ((0.0, 0.1), (0.1, 0.2), (0.3, 0.05), (0.35, 0.6), (0.95, 0.05))
    ]


def test_an_exchange_that_took_no_time_has_bars_without_length() -> None:
    record = Record("192.0.2.7", b"GET / HTTP/1.1", 100.0)
    record.ended_at = 100.0

    assert bars_of(build_timeline(record, 0.0)) == [(0.0, 0.0), (0.0, 0.0), None, None, None]
