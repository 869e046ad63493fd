"""The failure table: each error finds its row, and the row says all the rest."""

from __future__ import annotations

import logging

import pytest

from atlas_pkg.balancing.lease import Outcome
from atlas_pkg.errors import (
    AtlasError,
    ClientError,
    ClientGone,
    NoUpstream,
    Overloaded,
    Side,
    Stage,
    StreamError,
    UpstreamError,
)
from atlas_pkg.logs import Throttle
from atlas_pkg.observing.record import End
from atlas_pkg.serving.failures import (
    FAILURES,
    RETRY_AFTER,
    build_answer,
    find_failure,
    judge,
    log_failure,
)

LINE = b"GET /path HTTP/1.1"


def upstream(stage: Stage, **more: bool) -> UpstreamError:
    error = UpstreamError(stage, "connection reset by peer", **more)
    error.upstream = "a"
    return error


# The error, its word, what the client hears, whether its connection ends, the breaker hears of it.
ROWS = [
    (ClientError(431, "too large"), End.REFUSED, 431, True, False),
    (ClientError(408, "too slow"), End.REFUSED, 408, True, False),
    (ClientGone("left"), End.CLIENT_GONE, 499, True, False),
    (StreamError(Side.CLIENT, "left"), End.CLIENT_GONE, 499, True, False),
    (NoUpstream(), End.NO_UPSTREAM, 503, False, False),
    (Overloaded(), End.OVERLOADED, 503, False, False),
    (upstream(Stage.CONNECT), End.CONNECT_FAILED, 502, False, True),
    (upstream(Stage.CONNECT, timed_out=True), End.CONNECT_TIMEOUT, 504, False, True),
    (upstream(Stage.SEND), End.UPSTREAM_FAILED, 502, False, True),
    (upstream(Stage.SEND, timed_out=True), End.UPSTREAM_TIMEOUT, 504, False, True),
    (upstream(Stage.HEAD), End.UPSTREAM_FAILED, 502, False, True),
    (upstream(Stage.HEAD, timed_out=True), End.UPSTREAM_TIMEOUT, 504, False, True),
    (AtlasError("anything else"), End.ERROR, 500, False, False),
    (ZeroDivisionError("a bug"), End.ERROR, 500, False, False),
]


@pytest.mark.parametrize(("error", "end", "status", "closes", "is_heard"), ROWS)
def test_each_error_finds_its_row(
    error: Exception, end: End, status: int, closes: bool, is_heard: bool
) -> None:
    failure = find_failure(error)

    assert (failure.end, failure.status, failure.closes) == (end, status, closes)
    assert judge(error) is (Outcome.FAILURE if is_heard else Outcome.NONE)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("timed_out", [False, True])
def test_after_the_first_byte_to_the_client_it_can_only_be_cut(
    stage: Stage, timed_out: bool
) -> None:
    error = upstream(stage, timed_out=timed_out)

    failure = find_failure(error, has_started=True)

    assert (failure.end, failure.closes) == (End.UPSTREAM_CUT, True)
    assert judge(error) is Outcome.FAILURE


@pytest.mark.parametrize("stage", Stage)
def test_what_is_not_its_fault_is_not_held_against_an_upstream(stage: Stage) -> None:
    assert judge(upstream(stage, is_stale=True)) is Outcome.NONE
    assert judge(upstream(stage, is_own_fault=True)) is Outcome.NONE


def test_a_refusal_is_answered_in_its_own_words() -> None:
    failure = find_failure(ClientError(414, "the request line is too long"))

    assert (failure.status, failure.reason) == (414, "the request line is too long")


def test_there_is_a_row_for_every_way_to_fail() -> None:
    assert FAILURES.keys() == set(End) - {End.DONE, End.ROUTE, End.TUNNEL}


@pytest.mark.parametrize("error", [row[0] for row in ROWS])
def test_no_answer_repeats_what_an_error_says(error: Exception) -> None:
    failure = find_failure(error)
    answer = build_answer(failure.status, failure.reason)

    assert b"reset by peer" not in answer
    assert b"a bug" not in answer


@pytest.mark.parametrize("accept", [b"", b"*/*", b"text/html"])
def test_every_answer_of_ours_says_how_long_it_is(accept: bytes) -> None:
    answer = build_answer(502, "the upstream failed", accept=accept)

    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\nDate: ")
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert head.endswith(b"\r\nConnection: close")
    assert b"the upstream failed" in body


def test_who_asks_for_html_gets_it() -> None:
    assert b"text/plain" in build_answer(404, "not found", accept=b"application/json")
    answer = build_answer(404, "<not> found", accept=b"Text/HTML, */*")

    assert b"Content-Type: text/html" in answer
    assert b"&lt;not&gt; found" in answer


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        (b"text/html;q=0", False),
        (b"text/plain, text/html; level=1; q=0.00", False),
        (b"text/html;q=0.01", True),
        (b"text/plain;q=0, text/html", True),
        (b"text/html-sandboxed", False),
        (b"text/html text/plain, ,text/html ; q=0.000 ;a", False),
        (b"application/json,text/html\t;q=0.0.1", True),
    ],
)
def test_who_refuses_html_does_not_get_it(accept: bytes, *, is_html: bool) -> None:
    answer = build_answer(404, "not found", accept=accept)

    assert (b"Content-Type: text/html" in answer) is is_html


def test_a_503_says_when_to_ask_again() -> None:
    assert b"\r\nRetry-After: %d\r\n" % RETRY_AFTER in build_answer(503, "too much to do")
    assert b"Retry-After" not in build_answer(502, "the upstream failed")


def test_a_connection_that_may_be_used_again_is_not_said_to_be_closed() -> None:
    assert b"\r\nConnection" not in build_answer(502, "failed", persistence=b"")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def write(error: Exception, *, times: int = 1) -> None:
    throttle = Throttle(logging.getLogger("atlas.test"))
    for _ in range(times):
        log_failure(throttle, "192.0.2.7", LINE, error, find_failure(error))


@pytest.mark.parametrize(
    ("error", "level", "words"),
    [
        (
            ClientError(400, "bad"),
            logging.INFO,
            "192.0.2.7: refused with 400: bad (GET /path HTTP/1.1)",
        ),
        (ClientGone("left"), logging.DEBUG, "192.0.2.7: client gone: left"),
        (NoUpstream(), logging.WARNING, "503 for GET /path HTTP/1.1: no upstream is available"),
        (Overloaded(), logging.WARNING, "503 for GET /path HTTP/1.1: no thread was free in time"),
        (
            upstream(Stage.HEAD),
            logging.WARNING,
            "502 for GET /path HTTP/1.1: upstream a head: connection reset by peer",
        ),
    ],
)
def test_each_is_logged_at_its_level(
    error: Exception, level: int, words: str, log: pytest.LogCaptureFixture
) -> None:
    write(error)

    assert [(record.levelno, record.getMessage()) for record in log.records] == [(level, words)]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"POST /" + b"a" * 9000, " (POST /" + "a" * 194 + ")"),
        (b"", ""),
        (b"GET /\x1b[2J HTTP/1.1", ""),
        (b"GET /caf\xc3\xa9 HTTP/1.1", ""),
    ],
    ids=["long", "none", "for a terminal", "no ASCII"],
)
def test_a_refused_line_is_shown_as_far_as_it_does_no_harm(
    line: bytes, shown: str, log: pytest.LogCaptureFixture
) -> None:
    error = ClientError(400, "bad")

    log_failure(
        Throttle(logging.getLogger("atlas.test")), "192.0.2.7", line, error, find_failure(error)
    )

    assert log.messages == [f"192.0.2.7: refused with 400: bad{shown}"]


def test_an_answer_that_is_cut_is_not_told_as_a_502(log: pytest.LogCaptureFixture) -> None:
    throttle = Throttle(logging.getLogger("atlas.test"))
    for error in (upstream(Stage.BODY), UpstreamError(Stage.BODY, "the file has changed")):
        failure = find_failure(error, has_started=True)
        log_failure(throttle, "192.0.2.7", LINE, error, failure)

    assert [record.getMessage() for record in log.records] == [
        "answer cut for GET /path HTTP/1.1: upstream a body: connection reset by peer",
        "answer cut for GET /path HTTP/1.1: the file has changed",
    ]


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        (Stage.CONNECT, "connect"),
        (Stage.TLS, "connect"),
        (Stage.SEND, "upstream_body"),
        (Stage.HEAD, "upstream_head"),
        (Stage.BODY, "upstream_body"),
    ],
)
def test_the_key_of_a_time_that_is_up_is_named(
    stage: Stage, key: str, log: pytest.LogCaptureFixture
) -> None:
    write(UpstreamError(stage, "too late", timed_out=True))

    (line,) = log.messages
    assert line.endswith(f"too late (timeouts.{key})")


def test_a_cause_that_comes_again_and_again_is_logged_once_in_a_while(
    log: pytest.LogCaptureFixture,
) -> None:
    error = upstream(Stage.HEAD)

    write(error, times=100)

    assert len(log.records) == 1


def test_our_own_bugs_are_logged_with_a_traceback(log: pytest.LogCaptureFixture) -> None:
    write(ZeroDivisionError("a bug"))

    (record,) = log.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
