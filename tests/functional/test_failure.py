"""What one party's failure costs the others: nothing, or exactly what was under way."""

from __future__ import annotations

import contextlib
import email.utils
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toolkit
from tests.fakes import (
    CUT,
    Conversation,
    Request,
    Scripted,
    Upstream,
    answering,
    black_hole,
    build_answer,
    named,
    silent,
)
from tests.functional.conftest import Start
from tests.toolkit import (
    ROOT,
    Answer,
    Atlas,
    Client,
    Cut,
    Program,
    Threads,
    build_config,
    find_program,
    free_port,
    wait_until,
)

ROUND_ROBIN = {"strategy": "round_robin"}


class UpstreamProcess:
    """An upstream that can be killed, stopped and started again on the same port."""

    def __init__(self, name: str) -> None:
        self.name, self.port = name, free_port()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.fakes", self.name, str(self.port)]
        self.program = Program(command, cwd=ROOT)
        wait_until(lambda: self.program.printed, "the upstream to listen")

    def table(self) -> dict[str, object]:
        return {"name": self.name, "address": "127.0.0.1", "port": self.port}

    def kill(self) -> None:
        self.program.end(signal.SIGKILL)


@pytest.fixture
def mortal() -> Iterator[UpstreamProcess]:
    upstream = UpstreamProcess("mortal")
    yield upstream
    upstream.program.end()


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("A"))


@pytest.fixture
def stuck(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(silent("stuck"))


def test_a_killed_upstream_costs_what_it_was_serving_and_returns(
    mortal: UpstreamProcess, a: Upstream, start: Start
) -> None:
    atlas = start(build_config(mortal.table(), a.table(), routing=ROUND_ROBIN))
    is_over = threading.Event()
    phases: dict[str, list[Answer]] = {
        "whole": [],
        "dying": [],
        "dead": [],
        "returning": [],
        "back": [],
    }
    phase = "whole"

    def load() -> None:
        with atlas.client() as client:
            while not is_over.is_set():
                during = phase
                answer = client.get()
                if during == phase:
                    phases[during].append(answer)

    threads = Threads()
    for _ in range(8):
        threads.start(load)
    wait_until(lambda: len(phases["whole"]) > 200, "answers")
    phase = "dying"
    mortal.kill()
    phase = "dead"
    wait_until(lambda: len(phases["dead"]) > 200, "answers without the upstream")
    phase = "returning"
    mortal.start()
    phase = "back"
    wait_until(lambda: len(phases["back"]) > 200, "answers after its return")
    is_over.set()
    threads.join()

    assert {answer.status for answer in phases["whole"]} == {200}
    assert {answer.status for answer in phases["dead"]} == {200, 502}
    failed = sum(answer.status == 502 for answer in phases["dead"])
    assert abs(failed / len(phases["dead"]) - 0.5) < 0.1  # its share and no more
    assert {answer.status for answer in phases["back"]} == {200}
    assert {answer.text for answer in phases["back"]} == {"A", "mortal"}


def test_a_refused_connection_is_502_at_once_and_logged_once(a: Upstream, start: Start) -> None:
    dead = {"name": "dead", "address": "127.0.0.1", "port": free_port()}
    atlas = start(build_config(dead, a.table(), routing=ROUND_ROBIN))

    began = time.monotonic()
    with atlas.client() as client:
        answers = [client.get() for _ in range(40)]
    duration = time.monotonic() - began

    assert [answer.status for answer in answers] == [502, 200] * 20
    assert all("dead" not in answer.text for answer in answers)
    assert duration < 15  # and not a timeout for each
    atlas.wait_for("upstream dead connect: connection refused")
    assert atlas.count("upstream dead") == 2  # its line at the start and one warning


@pytest.mark.parametrize(
    ("more", "hints"),
    [
        ({}, 1),
        ({"routing": {"retries": 1, **ROUND_ROBIN}}, 0),
        ({"health_check": {"interval": 60.0}}, 0),
    ],
    ids=["neither", "retries", "health check"],
)
def test_the_first_unreachable_upstream_hints_at_what_helps(
    more: dict[str, dict[str, object]], hints: int, a: Upstream, start: Start
) -> None:
    dead = [
        {"name": name, "address": "127.0.0.1", "port": free_port(), "backup": backup}
        for name, backup in (("dead", False), ("spare", True))
    ]
    atlas = start(build_config(*dead, **more))

    answers = {atlas.get().status for _ in range(4)}
    atlas.reload(build_config(*dead, a.table(), **more))  # what was logged is there by now

    assert answers <= {502, 503}
    assert atlas.count("routing.retries = 1") == hints


def test_with_the_readmes_own_file_a_dead_server_costs_no_request(
    a: Upstream, start: Start
) -> None:
    section = (ROOT / "README.md").read_text().partition("## The same with your own file")[2]
    text = section.partition("```toml\n")[2].partition("```")[0]
    lanes = f'lanes = {toolkit.LANES}\naddress = "127.0.0.1"'
    text = text.replace("port = 8080", f"port = 0\n{lanes}")
    text = text.replace("3001", str(a.port)).replace("3002", str(free_port()))
    atlas = start(text)

    answers = [atlas.get() for _ in range(20)]

    assert {answer.status for answer in answers} == {200}
    assert atlas.get("/admin/x").status == 403


def test_an_upstream_stopped_by_a_signal_is_504_and_serves_again(
    mortal: UpstreamProcess, a: Upstream, start: Start
) -> None:
    usual = build_config(mortal.table(), a.table(), routing=ROUND_ROBIN)
    hasty = build_config(mortal.table(), timeouts={"upstream_head": 0.5})
    atlas = start(usual)
    with atlas.client() as client:
        assert [client.get().text for _ in range(2)] == ["mortal", "A"]

        mortal.program.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{mortal.program.pid}/stat")
        wait_until(lambda: ") T " in state.read_text(), "the upstream to have stopped")
        atlas.reload(hasty)
        stopped = [client.get().status for _ in range(2)]
        mortal.program.send_signal(signal.SIGCONT)
        atlas.reload(usual)
        again = [client.get().text for _ in range(4)]

    assert stopped == [504, 504]
    assert sorted(again) == ["A", "A", "mortal", "mortal"]


def test_a_stalled_upstream_is_504_and_others_do_not_wait(
    stuck: Upstream, a: Upstream, start: Start
) -> None:
    atlas = start(build_config(stuck.table(), a.table(), routing=ROUND_ROBIN))
    with atlas.client() as waiting:
        waiting.send_head()
        wait_until(lambda: stuck.requests, "the request to reach its upstream")
        assert atlas.get().text == "A"
        assert stuck.connected == 1

    atlas.reload(build_config(stuck.table(), timeouts={"upstream_head": 0.5}))
    began = time.monotonic()
    assert atlas.get().status == 504
    assert 0.5 <= time.monotonic() - began < 15


def test_a_drip_of_a_head_does_not_extend_the_deadline(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.read_head()
        conversation.sock.settimeout(0.1)
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
            conversation.send(bytes([byte]))
            if has_ended(conversation):
                return

    upstream = upstreams.enter_context(Upstream(serve))
    atlas = start(build_config(upstream.table(), timeouts={"upstream_head": 1.0}))

    began = time.monotonic()
    with atlas.client() as client:
        assert client.get().status == 504
    assert time.monotonic() - began < 15  # the whole of it takes 100


def has_ended(conversation: Conversation) -> bool:
    try:
        return not conversation.sock.recv(1)
    except TimeoutError:
        return False


def test_a_connection_that_nobody_answers_is_504(start: Start, a: Upstream) -> None:
    with black_hole() as port:
        table = {"name": "hole", "address": "127.0.0.1", "port": port}
        atlas = start(
            build_config(table, a.table(), routing=ROUND_ROBIN, timeouts={"connect": 0.5})
        )

        began = time.monotonic()
        assert [atlas.get().status for _ in range(4)] == [504, 200, 504, 200]
        assert 0.9 < time.monotonic() - began < 15


def test_a_body_that_stalls_cuts_the_client(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(Scripted("a", (CUT, "wait")))
    atlas = start(build_config(upstream.table(), timeouts={"upstream_body": 0.5}))

    with pytest.raises((Cut, ConnectionError)):
        atlas.get()


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_client_that_leaves_frees_its_upstream(way: str, stuck: Upstream, start: Start) -> None:
    atlas = start(build_config(stuck.table()))

    client = atlas.client()
    client.send_head()
    wait_until(lambda: stuck.requests, "the request to reach its upstream")
    if way == "reset":
        Conversation(client.sock).reset()
    client.close()

    wait_until(lambda: not stuck.connected, "the upstream to be freed")


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", CUT],
    ids=["before its answer", "in a small answer", "in a large one"],
)
def test_a_client_that_resets_its_connection_is_given_no_time(
    said: bytes, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(Scripted("a", (said, "wait")))
    atlas = start(build_config(upstream.table(), timeouts={"client_gone": 60.0}))

    client = atlas.client()
    client.send_head()
    wait_until(lambda: upstream.requests, "the request to reach its upstream")
    if said:
        assert client.read_head().status == 200
    Conversation(client.sock).reset()
    client.close()

    wait_until(lambda: not upstream.connected, "the upstream to be freed")


def test_a_client_that_leaves_in_its_upload_frees_its_upstream(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(named("a"))
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client:
        client.send_head("POST", Content_Length="1000")
        client.send(b"half")
        wait_until(lambda: upstream.requests, "the request to reach its upstream")

    wait_until(lambda: not upstream.connected, "the upstream to be freed")


def test_a_client_that_does_not_read_is_let_go(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (100 << 20)
    upstream = upstreams.enter_context(Scripted("a", (endless, "close")))
    atlas = start(build_config(upstream.table(), timeouts={"client_write": 0.5}))

    with atlas.client() as client:
        client.send_head()
        wait_until(lambda: upstream.requests, "the request to reach its upstream")
        wait_until(lambda: not upstream.connected, "the upstream to be freed")


@pytest.mark.parametrize("sent", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: example.test\r\n"])
def test_a_slow_head_is_408(sent: bytes, a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(), timeouts={"client_head": 0.5}))

    with atlas.client() as client:
        client.send(sent)
        answer = client.read_answer()

        assert (answer.status, answer.get("Connection")) == (408, "close")
        assert client.is_closed()


def test_a_drip_of_a_request_head_does_not_extend_its_deadline(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(), timeouts={"client_head": 0.5}))
    began = time.monotonic()

    with atlas.client() as client:
        client.send(b"GET / HTTP/1.1\r\nX-Long: ")
        client.sock.settimeout(0.05)
        head = b""
        while not head:
            client.send(b"x")
            with contextlib.suppress(TimeoutError):
                head = client.sock.recv(65536)
            assert time.monotonic() - began < 10

    assert head.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_slow_body_is_408(framing: str, upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table(), timeouts={"client_body": 0.5}))

    with atlas.client() as client:
        client.send(f"POST / HTTP/1.1\r\nHost: example.test\r\n{framing}\r\n\r\n".encode())
        client.send(b"5\r\nhello\r\n" if "chunked" in framing else b"half")

        assert client.read_answer().status == 408
    wait_until(lambda: not upstream.connected, "the upstream to be freed")
    assert not upstream.bodies


def test_idle_clients_are_closed_in_time(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(), timeouts={"client_idle": 0.5}))

    with atlas.client() as used, atlas.client() as mute:
        began = time.monotonic()
        used.get()

        assert used.is_closed()
        assert mute.is_closed()
        assert 0.4 < time.monotonic() - began < 15
    # New connections get the old descriptors' numbers, and must not be taken for the old ones.
    for _ in range(5):
        with atlas.client() as client:
            assert client.get().text == "A"


def hold(atlas: Atlas, number: int, stack: contextlib.ExitStack) -> list[Client]:
    """Connect clients that are not idle: each has sent a part of a request."""
    clients = [stack.enter_context(atlas.client()) for _ in range(number)]
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\n")
    return clients


def test_beyond_the_connection_limit_clients_wait_and_are_served(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(), listen={"max_connections": 3}))

    with contextlib.ExitStack() as stack:
        first = hold(atlas, 3, stack)
        late = [stack.enter_context(atlas.client()) for _ in range(3)]
        for client in late:
            client.send_head()
        atlas.wait_for("listen.max_connections")
        late[0].sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late[0].sock.recv(1, socket.MSG_PEEK)

        for leaving, next_in_line in zip(first, late, strict=True):
            leaving.close()
            next_in_line.sock.settimeout(20)
            assert next_in_line.sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert atlas.count("listen.max_connections") == 1


def test_idle_clients_make_room_for_new_ones_the_oldest_first(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(), listen={"max_connections": 3}))

    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(atlas.client()) for _ in range(3)]
        assert [client.get().status for client in first] == [200] * 3
        began = time.monotonic()
        late = stack.enter_context(atlas.client())
        assert late.get().status == 200

        assert time.monotonic() - began < 15  # not the 75 s of `timeouts.client_idle`
        assert first[0].is_closed()
        assert [client.get().status for client in (*first[1:], late)] == [200] * 3
    assert "listen.max_connections" not in atlas.log


def test_with_few_descriptors_whoever_is_let_in_is_served(
    a: Upstream, upstreams: contextlib.ExitStack, start: Start
) -> None:
    prlimit = find_program("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    b = upstreams.enter_context(named("B"))
    config = build_config(a.table(), b.table(), circuit_breaker={"failures": 1})
    atlas = start(config, prefix=(prlimit, "--nofile=90:90"))

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(80)]
        assert [client.get().status for client in clients[-10:]] == [200] * 10
        assert clients[0].is_closed()
    assert atlas.get().status == 200
    assert "cannot accept" not in atlas.log
    assert "circuit breaker" not in atlas.log
    assert "open files are limited to 90" in atlas.log


def test_without_descriptors_atlas_says_so_once_and_recovers(a: Upstream, start: Start) -> None:
    prlimit = find_program("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    config = build_config(a.table(), circuit_breaker={"failures": 1})
    atlas = start(config)
    assert atlas.get().status == 200
    # Taken away while it runs, so that it could not plan for it.
    subprocess.run([prlimit, f"--pid={atlas.pid}", "--nofile=40:40"], check=True)

    with contextlib.ExitStack() as stack:
        clients = hold(atlas, 80, stack)
        atlas.wait_for("cannot accept")
        cpu_before = atlas.cpu
        quiet_until = time.monotonic() + 0.5
        wait_until(lambda: time.monotonic() > quiet_until)
        assert atlas.cpu - cpu_before < 30  # of 50 ticks: it rests meanwhile

        for leaving in clients[:20]:  # each makes room for one of those who wait
            leaving.close()

    wait_until(lambda: atlas.get().status == 200, "service to go on")
    assert atlas.count("cannot accept") == 1
    assert "circuit breaker" not in atlas.log  # it is not the upstream that failed


def test_more_clients_than_the_usual_limit_of_descriptors(a: Upstream, start: Start) -> None:
    prlimit = find_program("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    atlas = start(build_config(a.table()), prefix=(prlimit, "--nofile=100:1000"))

    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(atlas.client())

        assert atlas.get().text == "A"
    assert "cannot accept" not in atlas.log


def test_nothing_leaks(upstreams: contextlib.ExitStack, start: Start) -> None:
    # Every way for an exchange to end, many times: descriptors and threads come back.
    scripts = {"/cut": (CUT, "close"), "/reset": "reset", "/garbage": (b"garbage\r\n\r\n", "close")}
    upstream = upstreams.enter_context(Scripted("fine", targets=scripts))
    atlas = start(build_config(upstream.table(), timeouts={"client_head": 1.0}))
    targets = ["/", *scripts, "/leave", "/half"]

    def load(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(60):
            with atlas.client() as client:
                target = dice.choice(targets)
                if target == "/half":
                    client.send(b"GET / HTTP/1.1\r\n")
                    continue
                client.send_head("GET", target)
                if target != "/leave":
                    with contextlib.suppress(Cut, ConnectionError):
                        client.read_answer()

    atlas.settle()
    before = atlas.descriptors
    threads = Threads()
    for seed in range(16):
        threads.start(load, seed)
    threads.join()

    # The kept workers may hold an idle upstream connection each.
    wait_until(lambda: atlas.descriptors <= before + 8, "descriptors to be given back")
    assert atlas.get().text == "fine"


def test_thirty_bad_answers_do_not_stop_the_next_good_one(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    bad = upstreams.enter_context(answering(b"garbage\r\n\r\n", name="bad"))
    good = upstreams.enter_context(named("good"))
    atlas = start(build_config(bad.table(), good.table(), routing=ROUND_ROBIN))

    assert [atlas.get().status for _ in range(60)] == [502, 200] * 30


def test_an_upstream_that_speaks_tls_without_being_asked_to_is_named(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(answering(b"\x15\x03\x03\0\2\2\x0a", name="secret"))
    atlas = start(build_config(upstream.table()))

    assert atlas.get().status == 502

    atlas.wait_for("upstream secret head: it speaks TLS, and has no [upstreams.tls]")


def test_a_request_that_goes_in_a_circle_ends_with_508(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    atlases: list[Atlas] = []

    def lead_back(conversation: Conversation, request: Request) -> None:
        lines = [request.line, *(f"{name}: {value}" for name, value in request.fields)]
        with atlases[0].client() as client:
            client.send("\r\n".join([*lines, "", ""]).encode())
            answer = client.read_answer()
        conversation.send(build_answer(answer.body, status=f"{answer.status} Whatever"))

    upstream = upstreams.enter_context(Scripted("a", (lead_back, "close")))
    atlases.append(start(build_config(upstream.table())))

    answer = atlases[0].get()

    assert (answer.status, upstream.requests) == (508, 8)
    assert answer.text == "508 Loop Detected: the request goes in a circle\n"
    atlases[0].wait_for("refused with 508: the request goes in a circle")


def test_fields_are_set_on_answers_of_atlas_itself(start: Start) -> None:
    fields = '[forwarding.set_response_fields]\nX-Lane = "7"\nContent-Type = "text/x-ours"\n'
    atlas = start(build_config() + fields)

    with atlas.client() as client:
        answer = client.get()
        client.send(b"nonsense\r\n\r\n")
        refused = client.read_answer()

    assert (answer.status, refused.status) == (503, 400)
    for own in (answer, refused):
        assert (own.get("X-Lane"), own.get("Content-Type")) == ("7", "text/x-ours")
        assert own.get("Content-Length") == str(len(own.body))


def test_an_answer_without_a_date_gets_one(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("a"))
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client:
        for _ in range(3):
            date = email.utils.parsedate_to_datetime(client.get().get("Date"))
            assert abs(date.timestamp() - time.time()) < 60


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_who_uploads_slowly_gets_to_read_why_it_was_refused(
    framing: str, upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(named("a"))
    atlas = start(build_config(upstream.table(), limits={"body": 1000}))
    piece = b"x" * 500
    if framing == "chunked":
        piece = b"1f4\r\n" + piece + b"\r\n"

    with atlas.client() as client:
        if framing == "chunked":
            client.send_head("POST", Transfer_Encoding="chunked")
        else:
            client.send_head("POST", Content_Length="100000")
        for _ in range(9):  # it looks for an answer only at the end
            client.send(piece)
            time.sleep(0.2)
        answer = client.read_answer()

    assert (answer.status, answer.get("Connection")) == (413, "close")
