"""Lines of the access log, byte for byte, and that nothing from outside can break one."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas_pkg.observing.log_format import Combined, Format, Json
from atlas_pkg.observing.record import End, Record, Times

# 2000-10-10 13:55:36.789 UTC
INSTANT = 971_186_136.789

# What tools for nginx's logs are built on.
COMBINED = re.compile(
    rb"(\S+) - (\S+) \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "
    rb'"([^"]*)" (\d{3}) (\d+) "([^"]*)" "([^"]*)"\n'
)

SetZone = Callable[[str], None]


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[SetZone]:
    """Live in UTC, or where the test says (in the notation of POSIX: west is positive)."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    set_zone("UTC0")
    yield set_zone
    monkeypatch.undo()
    time.tzset()


def make_record() -> Record:
    record = Record("192.0.2.7", b"GET /list?item=1 HTTP/1.1", 100.25)
    record.status, record.body_in, record.body_out = 200, 17, 5120
    record.origin = b"https://a.example/", b"Mozilla/5.0 (X11)"
    record.host, record.request_id = b"www.example:8080", b"4f1c"
    record.upstream, record.reused = "one", True
    record.times = times = Times()
    record.began_at, times.chosen_at, times.connected_at = 100.0, 100.25, 100.5
    times.asked_at, times.first_byte_at, record.ended_at = 100.5, 101.0, 102.0
    return record


def write(style: Format, record: Record, ended_at: float = INSTANT) -> bytes:
    """The line of one record that ended at `ended_at`, in seconds since 1970."""
    (line,) = style.format([record], ended_at - record.ended_at)
    return line


# Combined


def test_a_combined_line_is_that_of_nginx() -> None:
    assert write(Combined(), make_record()) == (
        b'192.0.2.7 - - [10/Oct/2000:13:55:36 +0000] "GET /list?item=1 HTTP/1.1" 200 5120 '
        b'"https://a.example/" "Mozilla/5.0 (X11)"\n'
    )


def test_what_is_missing_is_a_dash() -> None:
    record = Record("2001:db8::1", b"", 0.0)
    record.status = 408

    assert write(Combined(), record) == (
        b'2001:db8::1 - - [10/Oct/2000:13:55:36 +0000] "-" 408 0 "-" "-"\n'
    )


def test_quotes_backslashes_controls_and_bytes_beyond_ascii_are_escaped() -> None:
    record = make_record()
    record.line = b'GET /"a\\ HTTP/1.1'
    record.origin = b"\x00\x1f\n\t \x7e\x7f\x80\xff", "größe".encode()

    assert write(Combined(), record).endswith(
        b'"GET /\\x22a\\x5C HTTP/1.1" 200 5120 '
        b'"\\x00\\x1F\\x0A\\x09 ~\\x7F\\x80\\xFF" "gr\\xC3\\xB6\\xC3\\x9Fe"\n'
    )


def test_an_address_from_a_proxy_in_front_stays_one_word() -> None:
    record = make_record()
    record.address = 'un known" - -\n'

    line = write(Combined(), record)

    assert line.startswith(b"un\\x20known\\x22\\x20-\\x20-\\x0A - - [10/Oct/2000:")


@pytest.mark.parametrize(
    ("name", "combined", "iso"),
    [
        ("AAA-2", b"[10/Oct/2000:15:55:36 +0200]", "2000-10-10T15:55:36.789+02:00"),
        ("AAA3:30", b"[10/Oct/2000:10:25:36 -0330]", "2000-10-10T10:25:36.789-03:30"),
        ("AAA-12:45", b"[11/Oct/2000:02:40:36 +1245]", "2000-10-11T02:40:36.789+12:45"),
    ],
)
def test_times_are_local(zone: SetZone, name: str, combined: bytes, iso: str) -> None:
    zone(name)

    assert combined in write(Combined(), make_record())
    assert json.loads(write(Json(), make_record()))["time"] == iso


def test_each_second_has_its_own_stamp() -> None:
    combined, as_json = Combined(), Json()

    for seconds, stamp in ((0, "36"), (0.1, "36"), (0.3, "37"), (-1, "35")):
        instant = INSTANT + seconds
        assert f":13:55:{stamp} ".encode() in write(combined, make_record(), instant)
        assert f"T13:55:{stamp}." in write(as_json, make_record(), instant).decode()


@pytest.mark.parametrize("style", [Combined(), Json()], ids=["combined", "json"])
def test_what_clients_make_up_is_not_remembered_by_the_megabyte(style: Format) -> None:
    record = make_record()
    tracemalloc.start()
    for number in range(1000):
        record.host = b"%d." % number + b"a" * 10_000
        record.origin = b"a" * 10_000, b"b" * 10_000 + b"%d" % number
        write(style, record)
    remembered, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert remembered < 16 * 1024 * 1024


def test_a_thousandth_that_rounds_up_takes_the_second_with_it() -> None:
    line = write(Json(), make_record(), 971_186_136.9996)

    assert json.loads(line)["time"] == "2000-10-10T13:55:37.000+00:00"


@given(st.text(), st.binary(), st.binary(), st.binary())
@example("a", b'"\n', b"\\x22", b"\r\n")
def test_any_bytes_give_one_line_that_tools_can_read(
    address: str, line: bytes, referer: bytes, user_agent: bytes
) -> None:
    record = make_record()
    record.address, record.line = address, line
    record.origin = referer, user_agent

    found = COMBINED.fullmatch(write(Combined(), record))

    assert found is not None
    assert [unescape(found[group]) for group in (1, 4, 7, 8)] == [
        value or b"-" for value in (address.encode(), line, referer, user_agent)
    ]


def unescape(value: bytes) -> bytes:
    return re.sub(rb"\\x([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), value)


# JSON


def test_a_json_line_has_everything() -> None:
    assert write(Json(), make_record()) == (
        b'{"time":"2000-10-10T13:55:36.789+00:00","client":"192.0.2.7",'
        b'"method":"GET","target":"/list?item=1","protocol":"HTTP/1.1",'
        b'"host":"www.example:8080",'
        b'"status":200,"bytes_in":17,"bytes_out":5120,"route":null,"group":"default",'
        b'"upstream":"one",'
        b'"head":0.250000,"queue":0.000000,"connect":0.250000,"first_byte":0.500000,'
        b'"total":2.000000,"retries":0,"reused":true,"end":"done","request_id":"4f1c",'
        b'"referer":"https://a.example/","user_agent":"Mozilla/5.0 (X11)"}\n'
    )


def test_stages_that_were_not_reached_are_null() -> None:
    record = Record("192.0.2.7", b"GET / HTTP/1.1", 100.0)
    record.status, record.end, record.ended_at = 503, End.NO_UPSTREAM, 105.0

    found = json.loads(write(Json(), record))

    assert [found[key] for key in ("head", "queue", "connect", "first_byte", "total")] == [
        0.0,
        None,
        None,
        None,
        5.0,
    ]
    assert [found[key] for key in ("host", "upstream", "request_id", "referer")] == [None] * 4
    assert found["user_agent"] is None
    assert found["end"] == "no-upstream"


def test_a_stage_of_an_earlier_attempt_is_not_taken_for_one_of_the_last() -> None:
    record = make_record()
    record.times.chosen_at = 101.5  # tried again, and never connected

    assert json.loads(write(Json(), record))["connect"] is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"GET / HTTP/1.1", ["GET", "/", "HTTP/1.1"]),
        (b"GET /", [None, "GET /", None]),
        (b"GET /a b HTTP/1.1", [None, "GET /a b HTTP/1.1", None]),
        (b"", [None, None, None]),
    ],
)
def test_a_request_line_of_three_words_is_split(line: bytes, words: list[str | None]) -> None:
    record = make_record()
    record.line = line

    found = json.loads(write(Json(), record))

    assert [found[key] for key in ("method", "target", "protocol")] == words


@given(st.text(), st.binary(), st.binary(), st.text(min_size=1))
@example("a", b'GET /"\\ HTTP/1.1', b"\x7f\x80\xc3\xb6\n", 'a"\\')
def test_any_bytes_give_one_json_object_in_ascii(
    address: str, line: bytes, user_agent: bytes, upstream: str
) -> None:
    record = make_record()
    record.address, record.line = address, line
    record.origin, record.upstream = (b"", user_agent), upstream

    written = write(Json(), record)

    assert re.fullmatch(rb"[\x20-\x7e]*\n", written)
    found = json.loads(written)
    assert found["client"] == (address or None)
    assert found["user_agent"] == (user_agent.decode(errors="backslashreplace") or None)
    assert found["upstream"] == (None if upstream == "-" else upstream)
