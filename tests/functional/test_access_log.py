"""The access log of the real program: a line for every request, whatever became of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Scripted, Upstream, answering, build_answer, named, silent
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Threads, build_config, free_port, wait_until

COMBINED = re.compile(
    r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "([^"]*)" (\d{3}) (\d+) '
    r'"([^"]*)" "([^"]*)"'
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n"


@pytest.fixture
def upstreams() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("a"))


def build(*tables: dict[str, object], log: dict[str, object] | None = None, **more: Any) -> str:
    log = {"access": "access.log", "format": "json", **(log or {})}
    return build_config(*tables, log=log, **more)


def lines_of(atlas: Atlas, count: int, name: str = "access.log") -> list[str]:
    """Wait until the log has `count` whole lines, and return all."""
    path = atlas.path.parent / name

    def read() -> list[str]:
        text = path.read_text() if path.exists() else ""
        return text.splitlines() if text.endswith("\n") else []

    return wait_until(lambda: found if len(found := read()) >= count else [], f"{count} lines")


def entries_of(atlas: Atlas, count: int, name: str = "access.log") -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(atlas, count, name)]


@pytest.mark.engines("lane")
def test_combined_is_what_tools_for_nginx_read(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), log={"format": "combined"}))

    with atlas.client() as client:
        client.get("/one?x=1", Referer="http://from.test/", User_Agent="a test")
        client.send_head("HEAD", "/two")
        client.read_head()
    atlas.get("/three", User_Agent='q"uote')

    lines = lines_of(atlas, 3)
    matches = [COMBINED.fullmatch(line) for line in lines]
    assert all(matches), lines
    # The last one came on another connection, so its worker may have been faster.
    assert sorted(match.groups() for match in matches if match) == [
        ("GET /one?x=1 HTTP/1.1", "200", "1", "http://from.test/", "a test"),
        ("GET /three HTTP/1.1", "200", "1", "-", r"q\x22uote"),
        ("HEAD /two HTTP/1.1", "200", "0", "-", "-"),
    ]


def test_an_answer_is_logged_with_all_that_is_known(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table()))

    with atlas.client() as client:
        client.post(b"twelve bytes", "/form")
        client.get("/again")

    first, second = entries_of(atlas, 2)
    assert first["client"] == "127.0.0.1"
    assert (first["method"], first["target"], first["protocol"]) == ("POST", "/form", "HTTP/1.1")
    assert first["host"] == "example.test"
    assert (first["status"], first["bytes_in"], first["bytes_out"]) == (200, 12, 1)
    assert (first["upstream"], first["reused"], second["reused"]) == ("a", False, True)
    assert (first["retries"], first["end"]) == (0, "done")
    assert 0 < first["first_byte"] <= first["total"] < 20


def test_how_long_a_head_took_is_logged(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), timeouts={"client_head": 3.0}))

    def send_slowly(*parts: bytes) -> None:
        with atlas.client() as client:
            client.get("/before")  # the times between two requests are nobody's
            for part in parts:
                time.sleep(0.6)  # and Atlas may be late to see the first part, but not by as much
                client.send(part)
            client.read_answer()

    send_slowly(b"GET /slow HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n")
    send_slowly(b"GET /bad HTTP/1.1\r\n", b"Host: a\r\n", b"Host: b\r\n\r\n")
    send_slowly(b"GET /late HTTP/1.1\r\n")

    entries = entries_of(atlas, 6)
    before = [entry for entry in entries if entry["target"] == "/before"]
    good, bad, late = (entry for entry in entries if entry["target"] != "/before")
    assert [entry["head"] for entry in before] == [0.0] * 3
    assert [entry["status"] for entry in (good, bad, late)] == [200, 400, 408]
    assert good["total"] >= good["head"] > 0.35
    assert bad["head"] > 0.35
    assert late["total"] > 1.5


def test_a_line_end_in_two_pieces_begins_no_head(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table()))

    with atlas.client() as client:
        client.get("/first")
        client.send(b"\r")
        time.sleep(0.2)
        client.send(b"\n")
        time.sleep(0.2)
        client.get("/second")

    assert [entry["head"] for entry in entries_of(atlas, 2)] == [0.0, 0.0]


@pytest.mark.parametrize("is_pipelined", [False, True], ids=["another's", "its own"])
def test_a_line_does_not_wait_for_the_next_exchange(
    upstreams: contextlib.ExitStack, start: Start, is_pipelined: bool
) -> None:
    script = (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1", "hold", b"2")
    upstream = upstreams.enter_context(Scripted("short", targets={"/long": script}))
    atlas = start(build(upstream.table(), listen={"max_threads": 1}))
    heads = [b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % name for name in (b"short", b"long")]

    with atlas.client() as one, atlas.client() as other:
        if is_pipelined:
            one.send(b"".join(heads))
        else:
            one.send(heads[0])
            one.read_answer()
            other.send(heads[1])
        (entry,) = entries_of(atlas, 1)
        upstream.let_go()

    assert entry["target"] == "/short"
    assert len(entries_of(atlas, 2)) == 2


def test_an_upstreams_own_errors_are_its_own(upstreams: contextlib.ExitStack, start: Start) -> None:
    answer = build_answer(b"no", status="404 Not Found")
    upstream = upstreams.enter_context(answering(answer))
    atlas = start(build(upstream.table()))

    atlas.get()

    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["bytes_out"], entry["end"]) == (404, 2, "done")


def test_what_is_refused_is_logged(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), limits={"body": 4}))

    with atlas.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        size = len(client.read_answer().body)
    with atlas.client() as client:
        client.post(b"too large", "/large")
    with atlas.client() as client:
        client.send(b"\x00\r\n\r\n")
        client.read_answer()

    entries = entries_of(atlas, 3)
    # In no certain order: without a lane each client has a thread.
    by_target = {entry["target"]: entry for entry in entries}
    assert {target: entry["status"] for target, entry in by_target.items()} == {
        "/": 400,
        "/large": 413,
        "\x00": 400,
    }
    assert {entry["end"] for entry in entries} == {"refused"}
    assert {entry["upstream"] for entry in entries} == {None}
    assert by_target["/"]["bytes_out"] == size


def test_a_client_that_leaves_is_logged_with_499(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(silent())
    atlas = start(build(upstream.table()))

    with atlas.client() as client:
        client.send_head("GET", "/slow")
        wait_until(lambda: upstream.requests, "the request to reach its upstream")

    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["end"]) == (499, "client-gone")
    assert (entry["upstream"], entry["bytes_out"]) == ("a", 0)


def test_an_upstream_that_cannot_be_reached_is_logged(start: Start) -> None:
    table = {"name": "dead", "address": "127.0.0.1", "port": free_port()}
    atlas = start(build(table, {**table, "name": "deader"}, routing={"retries": 1}))

    size = len(atlas.get().body)

    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["end"], entry["retries"]) == (502, "connect-failed", 1)
    assert entry["bytes_out"] == size


def test_an_upstream_that_breaks_off_is_logged(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    upstream = upstreams.enter_context(answering(cut))
    atlas = start(build(upstream.table()))

    with atlas.client() as client:
        client.send_head()
        client.read_head()

    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["end"]) == (200, "upstream-cut")


def test_without_an_upstream_it_is_503(start: Start) -> None:
    atlas = start(build())

    atlas.get()

    (entry,) = entries_of(atlas, 1)
    assert (entry["status"], entry["end"], entry["upstream"]) == (503, "no-upstream", None)


def test_a_tunnel_is_logged_when_it_begins(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(Scripted("a", (SWITCHED, "wait")))
    atlas = start(build(upstream.table()))

    with atlas.client() as client:
        client.send_head("GET", "/chat", Connection="Upgrade", Upgrade="raw")
        assert client.read_head().status == 101
        (entry,) = entries_of(atlas, 1)

    assert (entry["status"], entry["end"]) == (101, "tunnel")


@pytest.mark.engines("lane")
def test_standard_output_is_a_log_too(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), log={"access": "-"}))

    atlas.get("/shown")

    assert json.loads(atlas.wait_for("/shown", printed=True))["target"] == "/shown"


@pytest.mark.engines("lane")
def test_it_follows_the_configuration(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table(), log={"access": "off"}))
    atlas.get("/nowhere")

    atlas.reload(build(a.table()))
    atlas.get("/json")
    assert entries_of(atlas, 1)[0]["target"] == "/json"

    atlas.reload(build(a.table(), log={"format": "combined", "access": "other.log"}))
    atlas.get("/combined")
    assert "/combined" in lines_of(atlas, 1, "other.log")[0]

    atlas.reload(build(a.table(), log={"access": "off"}))
    atlas.get("/nowhere")
    atlas.send_signal(signal.SIGTERM)
    assert atlas.wait() == 0
    assert "nowhere" not in atlas.path.with_name("access.log").read_text()
    assert len(lines_of(atlas, 1, "other.log")) == 1


@pytest.mark.engines("lane")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_path_that_cannot_be_opened_is_one_line_and_no_start(
    tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(build(listen={"workers": workers}, log={"access": "none/access.log"}))

    with Atlas(path) as atlas:
        status = atlas.wait()

    (line,) = atlas.lines
    target = tmp_path / "none" / "access.log"
    assert line.endswith(f"log.access: cannot open {target}: No such file or directory")
    assert status == 1


@pytest.mark.engines("lane")
def test_one_that_cannot_be_opened_later_leaves_the_old(a: Upstream, start: Start) -> None:
    atlas = start(build(a.table()))

    atlas.reload(build(a.table(), log={"access": "none/access.log"}))
    atlas.wait_for("cannot open")
    atlas.get("/old")
    assert entries_of(atlas, 1)[0]["target"] == "/old"

    atlas.path.with_name("none").mkdir()
    atlas.send_signal(signal.SIGHUP)
    wait_until(atlas.path.with_name("none").joinpath("access.log").exists, "the new file")
    atlas.get("/new")
    assert entries_of(atlas, 1, "none/access.log")[0]["target"] == "/new"


@pytest.mark.engines("lane")
@pytest.mark.parametrize("workers", [1, 2])
def test_rotation_under_load_loses_no_line(a: Upstream, start: Start, workers: int) -> None:
    atlas = start(
        build(a.table(), listen={"workers": workers}, limits={"requests_per_connection": 1000000})
    )
    path = atlas.path.with_name("access.log")
    threads, is_rotated = Threads(), threading.Event()

    def ask(name: int) -> list[str]:
        asked: list[str] = []
        with atlas.client() as client:
            while not is_rotated.is_set():
                asked.append(f"/{name}/{len(asked)}")
                client.get(asked[-1])
        return asked

    for name in range(8):
        threads.start(ask, name)
    rotated = []
    for number in range(5):
        wait_until(lambda: path.exists() and path.stat().st_size, "lines in the file")
        rotated.append(path.with_name(f"access.log.{number}"))
        path.rename(rotated[-1])
        atlas.send_signal(signal.SIGHUP)
        wait_until(path.exists, "the new file")
    is_rotated.set()
    asked = [target for targets in threads.join() for target in targets]
    atlas.send_signal(signal.SIGTERM)
    assert atlas.wait() == 0

    lines = [line for file in (*rotated, path) for line in file.read_text().splitlines()]
    targets = [json.loads(line)["target"] for line in lines]
    assert sorted(targets) == sorted(asked)


def test_the_drain_writes_the_last_line(upstreams: contextlib.ExitStack, start: Start) -> None:
    slow = upstreams.enter_context(Scripted("slow", ("hold", 200)))
    never = upstreams.enter_context(silent("never"))
    atlas = start(build(slow.table(), never.table(), timeouts={"drain": 3.0}))

    with atlas.client() as first, atlas.client() as second:
        first.send_head("GET", "/finished")
        wait_until(lambda: slow.requests, "the first request")
        second.send_head("GET", "/cut")
        wait_until(lambda: never.requests, "the second request")
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients")
        slow.let_go()
        assert first.read_answer().text == "slow"
        assert atlas.wait() == 1

    ends = {entry["target"]: entry["end"] for entry in entries_of(atlas, 2)}
    assert ends == {"/finished": "done", "/cut": "client-gone"}
    assert atlas.count("were lost") == 0


def test_a_reader_that_sleeps_stops_nobody(a: Upstream, start: Start, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atlas = start(build(a.table(), log={"access": "pipe"}))
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        with atlas.client() as client:
            for number in range(400):  # more than the pipe holds
                assert client.get(f"/{number:0500}").status == 200
    finally:
        os.close(reader)
