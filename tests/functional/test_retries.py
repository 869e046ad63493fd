"""What is tried again, and what never is: the table of failures, to the letter.

Upstreams note the token of every request that reaches them, so a test sees what was sent twice.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections.abc import Mapping

import pytest

from tests.fakes import CUT, Scripted, black_hole
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import Answer, Atlas, Cut, Threads, build_config, free_port, wait_until

IDEMPOTENT = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]
OTHERS = ["POST", "PATCH", "MKCOL", "X-OTHER"]
HEADS = {"HEAD"}

TOKENS = (f"token-{number}" for number in itertools.count())


@pytest.fixture
def bad(upstreams: contextlib.ExitStack) -> Scripted:
    return upstreams.enter_context(Scripted("bad", "reset"))


@pytest.fixture
def good(upstreams: contextlib.ExitStack) -> Scripted:
    return upstreams.enter_context(Scripted("good"))


def config(*tables: dict[str, object], retries: int = 1, **more: Mapping[str, object]) -> str:
    routing = {"strategy": "round_robin", "retries": retries}
    return build_config(*tables, routing=routing, **more)


def refused(name: str = "refused") -> dict[str, object]:
    return {"name": name, "address": "127.0.0.1", "port": free_port()}


def ask(atlas: Atlas, method: str = "GET", body: bytes = b"", **fields: str) -> Answer:
    """Ask once on a connection of its own, head and body in one piece."""
    lines = [f"{method} / HTTP/1.1", "Host: h", f"X-Token: {next(TOKENS)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    if body and "Transfer_Encoding" not in fields:
        lines.append(f"Content-Length: {len(body)}")
    with atlas.client() as client:
        client.send("\r\n".join([*lines, "", ""]).encode() + body)
        return client.read_head() if method in HEADS else client.read_answer()


# By default: never


def test_by_default_nothing_is_tried_again(bad: Scripted, good: Scripted, start: Start) -> None:
    atlas = start(build_config(bad.table(), refused(), good.table()))

    for method in ("GET", "POST"):
        statuses = [ask(atlas, method).status for _ in range(6)]

        assert statuses == [502, 502, 200] * 2
    assert (bad.requests, good.requests) == (4, 4)


# Connecting


def test_a_failed_connect_is_tried_elsewhere_whatever_the_method(
    good: Scripted, start: Start
) -> None:
    atlas = start(config(refused(), good.table()))

    for method in IDEMPOTENT + OTHERS:
        for _ in range(4):
            assert ask(atlas, method, b"body" if method == "POST" else b"").status == 200
    assert good.requests == 40
    assert len(set(good.tokens())) == 40


def test_a_body_that_was_not_touched_yet_goes_to_the_next_one(good: Scripted, start: Start) -> None:
    atlas = start(config(refused(), good.table()))
    body = bytes(range(256)) * 8192  # 2 MiB, of which none has been read when connecting fails

    answer = ask(atlas, "POST", body)

    assert answer.status == 200
    assert good.bodies == [body]


def test_so_many_are_tried_as_are_allowed(good: Scripted, start: Start) -> None:
    dead = [refused(f"dead{number}") for number in range(3)]
    atlas = start(config(*dead, good.table(), retries=2))

    assert ask(atlas).status == 502  # the first three
    assert ask(atlas).status == 200  # the fourth is good

    atlas.reload(config(*dead, good.table(), retries=100))
    assert [ask(atlas).status for _ in range(4)] == [200] * 4
    atlas.reload(config(*dead, retries=100))
    assert [ask(atlas).status for _ in range(4)] == [502] * 4  # each once, and that was it


def test_a_backup_answers_when_all_others_have_failed(good: Scripted, start: Start) -> None:
    atlas = start(config(refused(), good.table(backup=True)))

    assert [ask(atlas, method).status for method in ("GET", "POST") * 3] == [200] * 6


def test_a_connect_that_times_out_is_tried_elsewhere(good: Scripted, start: Start) -> None:
    with black_hole() as port:
        table = {"name": "hole", "address": "127.0.0.1", "port": port}
        atlas = start(config(table, good.table(), timeouts={"connect": 0.3}))

        assert ask(atlas, "POST", b"body").status == 200


# After something was sent


def test_an_idempotent_request_without_an_answer_is_tried_elsewhere(
    bad: Scripted, good: Scripted, start: Start
) -> None:
    atlas = start(config(bad.table(), good.table(), timeouts={"upstream_head": 2.0}))

    pairs = [(script, method) for script in ("reset", "close") for method in IDEMPOTENT]
    for count, (bad.script, method) in enumerate([*pairs, ("wait", "GET")], start=1):
        assert ask(atlas, method).status == 200
        assert bad.tokens() == good.tokens()
        assert bad.requests == count


def test_another_request_is_never_sent_twice(bad: Scripted, good: Scripted, start: Start) -> None:
    atlas = start(config(bad.table(), good.table(), timeouts={"upstream_head": 2.0}))

    scripts = ("reset", "close", ("unread", "reset"))
    pairs = [(script, method) for script in scripts for method in OTHERS]
    for bad.script, method in [*pairs, ("wait", "POST")]:
        before = good.requests
        assert ask(atlas, method, b"body").status == (504 if bad.script == "wait" else 502)
        assert good.requests == before
        assert ask(atlas, method, b"body").status == 200  # the other one's turn
    assert bad.requests == good.requests == len(pairs) + 1
    assert len(set(bad.tokens() + good.tokens())) == 2 * len(pairs) + 2


def test_bad_answers_are_tried_elsewhere_too(
    good: Scripted, upstreams: contextlib.ExitStack, start: Start
) -> None:
    odd = upstreams.enter_context(Scripted("odd", b"HTTP/1.1 200 OK\r\nBad Field: x\r\n\r\n"))
    atlas = start(config(odd.table(), good.table()))

    assert [ask(atlas).status for _ in range(4)] == [200] * 4
    assert good.requests == 4


def test_an_upstreams_own_answer_is_passed_on_and_never_tried_again(
    bad: Scripted, good: Scripted, start: Start
) -> None:
    atlas = start(config(bad.table(), good.table(), circuit_breaker={"statuses": [502, 503]}))

    for count, status in enumerate((500, 502, 503, 404)):
        bad.script = status
        assert ask(atlas).status == status
        assert (bad.requests, good.requests) == (count + 1, count)
        assert ask(atlas).status == 200  # the other one's turn


def test_nothing_is_tried_after_the_first_byte(bad: Scripted, good: Scripted, start: Start) -> None:
    bad.script = (CUT, "reset")
    atlas = start(config(bad.table(), good.table()))

    with atlas.client() as client:
        client.send_head()
        assert client.read_head().status == 200
        body = client.read_body(Answer(200, (("Content-Length", "1000000"),)))
        with pytest.raises((Cut, ConnectionError)):
            list(body)
    assert good.requests == 0


def test_nothing_is_tried_after_an_interim_answer(
    good: Scripted, upstreams: contextlib.ExitStack, start: Start
) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    early = upstreams.enter_context(Scripted("early", (hints, "reset")))
    atlas = start(config(early.table(), good.table()))

    with atlas.client() as client:
        client.send_head()
        assert client.read_head().status == 103
        assert client.read_answer().status == 502
    assert good.requests == 0


# Bodies


def test_a_small_body_is_sent_again(bad: Scripted, good: Scripted, start: Start) -> None:
    atlas = start(config(bad.table(), good.table()))
    bodies = [(b"0123456789" * size)[:size] for size in (1, 10, 5000)]

    assert [ask(atlas, "PUT", body).status for body in bodies] == [200] * 3
    chunked = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    assert ask(atlas, "PUT", chunked, Transfer_Encoding="chunked").status == 200

    assert bad.bodies == good.bodies == [*bodies, b"hello world"]


def test_a_large_body_is_not_sent_again(bad: Scripted, good: Scripted, start: Start) -> None:
    atlas = start(config(bad.table(), good.table()))

    for count, size in enumerate((2_000_000, 20_000_000)):
        assert ask(atlas, "PUT", b"x" * size).status == 502
        assert (bad.requests, good.requests) == (count + 1, count)
        assert ask(atlas, "PUT", b"x" * size).status == 200  # the other one's turn


def test_a_body_that_follows_its_head_later_is_not_sent_twice(
    bad: Scripted, good: Scripted, start: Start
) -> None:
    atlas = start(config(bad.table(), good.table()))
    token = next(TOKENS)

    with atlas.client() as client:
        client.send_head("PUT", Content_Length="4", X_Token=token)
        wait_until(lambda: bad.requests, "the head to arrive")
        client.send(b"body")
        status = client.read_answer().status

    # It may be kept or not; what arrives is whole.
    assert status in (200, 502)
    assert good.bodies in ([b"body"], [])
    assert bad.requests == 1


# Stale connections are no retries


def test_a_stale_connection_is_replaced_without_retries(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    # Closes without a word when the second request comes.
    upstream = upstreams.enter_context(Scripted("short", (200, "next", "close")))
    atlas = start(config(upstream.table(), retries=0, circuit_breaker={"failures": 1}))

    with atlas.client() as client:
        assert [client.get().status for _ in range(6)] == [200] * 6
    assert upstream.requests == 6 + 5
    assert atlas.count("circuit breaker") == 0


def test_a_post_on_a_stale_connection_is_not_repeated(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    script = (200, "next", "reset")
    one, two = (upstreams.enter_context(Scripted(name, script)) for name in ("one", "two"))
    atlas = start(config(one.table(), two.table()))

    with atlas.client() as client:
        assert [client.get().status for _ in range(2)] == [200, 200]
        client.send_head("POST", X_Token="only once", Content_Length="0")
        assert client.read_answer().status == 502
    assert sorted(one.tokens() + two.tokens()) == ["", "", "only once"]


# The budget


def test_retries_stay_within_their_budget(bad: Scripted, good: Scripted, start: Start) -> None:
    # Forty requests fail together: a fifth of what is in flight may be tried again, or three.
    bad.script, good.script = ("hold", "reset"), ("hold", 200)
    routing = {"strategy": "weighted_round_robin", "retries": 1}
    tables = (bad.table(weight=1000), good.table())
    atlas = start(build_config(*tables, routing=routing, admin=ADMIN))
    statuses: list[int] = []
    threads = Threads()

    for _ in range(40):
        threads.start(lambda: statuses.append(ask(atlas).status))
    wait_until(lambda: bad.requests == 40, "all of them to be stuck")
    bad.let_go(40)
    wait_until(lambda: len(statuses) + good.requests == 40, "all of them to fail")

    print(f"of 40 that failed together {good.requests} were tried again at the same time")
    assert 3 <= good.requests <= 8
    assert set(statuses) == {502}
    good.let_go(40)
    threads.join()
    assert statuses.count(200) == good.requests
    refused = AdminClient(atlas).metrics()["atlas_retries_refused_total bad"]
    assert refused == statuses.count(502)


def test_connect_failures_are_outside_the_budget(good: Scripted, start: Start) -> None:
    good.script = ("hold", 200)
    atlas = start(config(refused(), good.table()))
    threads = Threads()

    for _ in range(20):  # ten of them by way of the dead one, all at the same time
        threads.start(ask, atlas, "POST")
    wait_until(lambda: good.requests == 20, "all of them to arrive")
    good.let_go(20)

    assert [answer.status for answer in threads.join()] == [200] * 20


def test_a_client_that_leaves_is_noticed_before_a_retry(
    bad: Scripted, good: Scripted, start: Start
) -> None:
    bad.script = "wait"
    atlas = start(config(bad.table(), good.table(), timeouts={"upstream_head": 60.0}))

    with atlas.client() as client:
        client.send_head()
        wait_until(lambda: bad.requests, "the request")
        # A reset: one that only ends its sending might still be reading.
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: not bad.connected, "the upstream to be freed")

    assert good.requests == 0
