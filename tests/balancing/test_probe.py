"""One probe, over real sockets."""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import replace

import pytest

from atlas_pkg.balancing.probe import Result, probe_upstream
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import HealthCheck, UpstreamConfig
from atlas_pkg.config.rules import Statuses
from atlas_pkg.errors import StreamError
from tests import fakes
from tests.toolkit import descriptors, free_port

HTTP = HealthCheck(path="/health?full=1")
CONNECT = HealthCheck()


def finish(upstream: Upstream, check: HealthCheck, time_limit: float = 10.0) -> Result:
    return probe_upstream(upstream, replace(check, timeout=time_limit))


def listed(fake: fakes.Upstream) -> Upstream:
    return Upstream(UpstreamConfig(fake.name, fake.address, fake.port))


def probe_answer(answer: bytes, check: HealthCheck = HTTP) -> Result:
    """Probe an upstream that answers with these bytes and closes."""
    with fakes.answering(answer) as fake:
        return finish(listed(fake), check)


def refused() -> Upstream:
    return Upstream(UpstreamConfig("a", "127.0.0.1", free_port()))


def test_the_request_is_complete_and_closes() -> None:
    with fakes.Scripted() as fake:
        result = finish(listed(fake), HTTP)

    assert result == Result(True, "status 200")
    (head,) = fake.seen
    assert head.line == "GET /health?full=1 HTTP/1.1"
    assert head.fields == (
        ("Host", f"127.0.0.1:{fake.port}"),
        ("User-Agent", "atlas-health"),
        ("Accept", "*/*"),
        ("Connection", "close"),
    )


def test_the_host_may_be_set() -> None:
    with fakes.Scripted() as fake:
        finish(listed(fake), HealthCheck(path="/", host="app.example:81"))

    assert [head.get("Host") for head in fake.seen] == ["app.example:81"]


@pytest.mark.parametrize(
    ("status", "expect", "has_passed"),
    [
        (200, "200-399", True),
        (302, "200-399", True),
        (404, "200-399", False),
        (503, "200-399", False),
        (503, "503", True),
        (200, "204", False),
    ],
)
def test_the_status_decides_and_redirects_are_not_followed(
    status: int, expect: str, has_passed: bool
) -> None:
    answer = fakes.build_answer(status=f"{status} Whatever", fields="Location: http://[\r\n")

    result = probe_answer(answer, HealthCheck(path="/", expect=Statuses(expect)))

    assert result == Result(has_passed, f"status {status}")


def test_what_is_behind_the_head_is_not_waited_for() -> None:
    with fakes.Scripted("a", (fakes.CUT, "wait")) as fake:
        assert finish(listed(fake), HTTP) == Result(True, "status 200")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204\r\nA: b\r\n\r\n",
    ],
)
def test_interim_answers_are_passed_over(answer: bytes) -> None:
    assert probe_answer(answer) == Result(True, "status 204")


def test_an_answer_may_come_byte_by_byte() -> None:
    script = tuple(bytes([byte]) for byte in b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n")
    with fakes.Scripted("a", script) as fake:
        assert finish(listed(fake), HTTP) == Result(True, "status 204")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nA: b", "answer is incomplete"),
        (b"HT", "answer is incomplete"),
        (b"SSH-2.0-OpenSSH\r\n", "answer is not HTTP"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "answer is not HTTP"),
        (b"\x15\x03\x03\0\2\2\x0a", "it speaks TLS, and has no [upstreams.tls]"),
        (b"HTTP/1.1 abc\r\n\r\n", "answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", "answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 300_000, "answer is not HTTP"),
        (b"HTTP/1.1 103 Early\r\n\r\n" * 20_000, "answer is not HTTP"),
    ],
)
def test_what_is_no_answer_fails(answer: bytes, reason: str) -> None:
    assert probe_answer(answer) == Result(False, reason)


def test_a_connection_that_is_reset_fails() -> None:
    with fakes.Scripted("a", "reset") as fake:
        assert finish(listed(fake), HTTP) == Result(False, "no answer: connection reset by peer")


def test_silence_fails_when_the_time_is_up() -> None:
    with fakes.silent() as fake:
        assert finish(listed(fake), HTTP, time_limit=0.1) == Result(False, "no answer in time")


def test_a_head_that_never_ends_fails_when_the_time_is_up() -> None:
    with fakes.Scripted("a", (b"HTTP/1.1 200 OK\r\n", "wait")) as fake:
        assert finish(listed(fake), HTTP, time_limit=0.1) == Result(False, "no answer in time")


def test_without_a_path_a_connect_is_enough() -> None:
    with fakes.silent() as fake:
        assert finish(listed(fake), CONNECT) == Result(True, "connected")


def test_a_connect_that_nobody_answers_fails_when_the_time_is_up() -> None:
    with fakes.black_hole() as port:
        result = finish(Upstream(UpstreamConfig("a", "127.0.0.1", port)), CONNECT, time_limit=0.1)

    assert result == Result(False, "connect timed out")


def test_a_refused_connect_fails() -> None:
    assert finish(refused(), HTTP) == Result(False, "connect refused")


def test_an_unresolved_host_name_fails() -> None:
    upstream = Upstream(UpstreamConfig("a", "a.test", 80))

    assert finish(upstream, HTTP) == Result(False, "host name is not resolved")


def test_every_address_of_a_name_is_tried() -> None:
    with fakes.silent() as fake:
        upstream = Upstream(UpstreamConfig("a", "a.test", fake.port))
        upstream.endpoints = (
            (socket.AF_INET, ("127.0.0.1", free_port())),
            (socket.AF_INET, ("127.0.0.1", fake.port)),
        )

        assert finish(upstream, CONNECT) == Result(True, "connected")


def test_the_last_address_says_why_none_could_be_reached() -> None:
    upstream = Upstream(UpstreamConfig("a", "a.test", 80))
    upstream.endpoints = ((socket.AF_INET, ("127.0.0.1", free_port())),)

    assert finish(upstream, CONNECT) == Result(False, "connect refused")


def test_a_fault_of_this_machine_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)

    with pytest.raises(StreamError, match="too many open files"):
        probe_upstream(Upstream(UpstreamConfig("a", "127.0.0.1", 1)), CONNECT)


def test_the_time_is_for_all_of_it() -> None:
    drip = (b"HTTP/1.1 200 OK\r\nA: ", *[b"b", 0.02] * 1000)
    began = time.monotonic()
    with fakes.Scripted("a", drip) as fake:
        assert finish(listed(fake), HTTP, time_limit=0.3) == Result(False, "no answer in time")
        assert time.monotonic() - began < 15


def test_a_probe_leaves_no_socket_behind() -> None:
    with fakes.silent() as fake:
        before = descriptors()
        finish(listed(fake), HTTP, time_limit=0.1)
        finish(refused(), HTTP)
        fake.close()

        assert descriptors() <= before
