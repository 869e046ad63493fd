"""Health checks, circuit breaker, backups and slow start, as a user of the program sees them."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fakes import CUT, STREAM, Scripted, named
from tests.functional.conftest import Start
from tests.functional.test_failure import UpstreamProcess
from tests.toolkit import Atlas, Cut, Threads, build_config, free_port, wait_until

CHECK = {"path": "/health", "interval": 0.1, "timeout": 10.0, "rise": 2, "fall": 3}
BREAKER = {"failures": 3, "open_for": 0.4}
ROUND_ROBIN = {"strategy": "round_robin"}


@pytest.fixture
def mortal() -> Iterator[UpstreamProcess]:
    upstream = UpstreamProcess("mortal")
    yield upstream
    upstream.program.end()


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Scripted:
    return upstreams.enter_context(Scripted("A"))


@pytest.fixture
def b(upstreams: contextlib.ExitStack) -> Scripted:
    return upstreams.enter_context(Scripted("B"))


def ask(atlas: Atlas, times: int) -> Counter[str]:
    """Ask on one connection; counts who answered, or with which status."""
    with atlas.client() as client:
        answers = [client.get() for _ in range(times)]
    return Counter(a.text if a.status == 200 else str(a.status) for a in answers)


# Health checks


@pytest.mark.engines("lane")
def test_a_stalled_upstream_is_taken_out_and_comes_back(
    mortal: UpstreamProcess, a: Scripted, start: Start
) -> None:
    check = {**CHECK, "path": "/", "timeout": 0.5}
    atlas = start(build_config(mortal.table(), a.table(), routing=ROUND_ROBIN, health_check=check))
    assert ask(atlas, 10) == {"mortal": 5, "A": 5}

    mortal.program.send_signal(signal.SIGSTOP)
    line = atlas.wait_for("upstream mortal is down")
    assert "no answer in time" in line
    assert ask(atlas, 10) == {"A": 10}

    mortal.program.send_signal(signal.SIGCONT)
    atlas.wait_for("upstream mortal is up: status 200")
    assert ask(atlas, 10) == {"mortal": 5, "A": 5}
    assert atlas.count("upstream mortal is ") == 2


@pytest.mark.engines("lane")
def test_a_killed_upstream_is_taken_out_and_comes_back(
    mortal: UpstreamProcess, a: Scripted, start: Start
) -> None:
    check = {**CHECK, "path": ""}
    atlas = start(build_config(mortal.table(), a.table(), routing=ROUND_ROBIN, health_check=check))

    mortal.kill()
    atlas.wait_for("upstream mortal is down: connect refused")
    assert ask(atlas, 10) == {"A": 10}

    mortal.start()
    atlas.wait_for("upstream mortal is up: connected")
    assert ask(atlas, 10) == {"mortal": 5, "A": 5}


@pytest.mark.engines("lane")
def test_fall_and_rise_are_counted(a: Scripted, b: Scripted, start: Start) -> None:
    atlas = start(build_config(a.table(), b.table(), health_check=CHECK, routing=ROUND_ROBIN))
    wait_until(lambda: a.probes >= 3, "probes")

    a.health = 500
    probes = a.probes
    atlas.wait_for("upstream A is down: status 500")
    # One may have been under way when the script changed; and one more be by now.
    assert 3 <= a.probes - probes <= 5
    a.health = 204
    probes = a.probes
    atlas.wait_for("upstream A is up: status 204")
    assert 2 <= a.probes - probes <= 4


@pytest.mark.engines("lane")
def test_what_is_healthy_can_be_said(
    a: Scripted, b: Scripted, upstreams: contextlib.ExitStack, start: Start
) -> None:
    c = upstreams.enter_context(Scripted("C"))
    a.health, b.health, c.health = 200, 404, 301
    check = {**CHECK, "expect": "404"}
    tables = [upstream.table() for upstream in (a, b, c)]
    atlas = start(build_config(*tables, health_check=check, routing=ROUND_ROBIN))

    atlas.wait_for("upstream A is down: status 200")
    atlas.wait_for("upstream C is down: status 301")
    wait_until(lambda: b.probes > 5, "more probes")
    assert ask(atlas, 4) == {"B": 4}


def test_all_down_is_503_with_retry_after(a: Scripted, b: Scripted, start: Start) -> None:
    a.health = b.health = 503
    atlas = start(build_config(a.table(), b.table(), health_check=CHECK))
    atlas.wait_for("upstream A is down")
    atlas.wait_for("upstream B is down")

    with atlas.client() as client:
        answer, again = client.get(), client.get()
    assert (answer.status, again.status) == (503, 503)
    assert int(answer.get("Retry-After")) > 0
    assert a.requests == b.requests == 0

    a.health = 200
    atlas.wait_for("upstream A is up")
    assert ask(atlas, 3) == {"A": 3}


@pytest.mark.engines("lane")
def test_an_upstream_that_a_reload_adds_serves_after_its_first_passed_probe(
    a: Scripted, b: Scripted, start: Start
) -> None:
    def config(*listed: Scripted) -> str:
        tables = [upstream.table() for upstream in listed]
        return build_config(*tables, health_check=CHECK, routing=ROUND_ROBIN)

    atlas = start(config(a))
    b.health = 500
    atlas.reload(config(a, b))
    wait_until(lambda: b.probes >= 5, "probes of the new one")
    assert ask(atlas, 10) == {"A": 10}
    assert b.requests == 0
    atlas.reload(config(b, a))  # another reload is no probe
    assert ask(atlas, 10) == {"A": 10}

    b.health = 200
    atlas.wait_for("upstream B is up")
    assert ask(atlas, 10) == {"A": 5, "B": 5}
    assert a.health == 200
    assert atlas.count("upstream A is ") == 0


@pytest.mark.engines("lane")
@pytest.mark.parametrize("way", ["others", "renamed"])
def test_a_reload_that_replaces_all_upstreams_costs_no_request(
    way: str, a: Scripted, upstreams: contextlib.ExitStack, start: Start
) -> None:
    b = upstreams.enter_context(Scripted("B", targets={"/health": ("hold", 200)}))
    new = b.table() if way == "others" else {**b.table(), "name": "C"}
    old = a.table() if way == "others" else b.table()
    check = {"health_check": {**CHECK, "timeout": 60.0, "interval": 60.0}}
    atlas = start(build_config(old, **check))

    atlas.reload(build_config(new, **check))

    assert ask(atlas, 10) == {"B": 10}  # and no probe has been answered


@pytest.mark.engines("lane")
def test_checks_of_one_upstream_are_laid_over_those_of_all(
    a: Scripted, b: Scripted, start: Start
) -> None:
    a.health = b.health = 418
    text = build_config(a.table(), b.table(), routing=ROUND_ROBIN, health_check=CHECK)
    last = '[upstreams.health_check]\nexpect = "418"\n'
    text = text.replace("[routing]", f"{last}[routing]")
    atlas = start(text)

    atlas.wait_for("upstream A is down: status 418")
    assert b.probes
    assert ask(atlas, 4) == {"B": 4}


@pytest.mark.engines("lane")
def test_verdicts_survive_a_reload_and_end_with_the_checks(
    a: Scripted, b: Scripted, start: Start
) -> None:
    a.health = 500
    tables = [a.table(), b.table()]
    atlas = start(build_config(*tables, health_check=CHECK, routing=ROUND_ROBIN))
    atlas.wait_for("upstream A is down")

    tables = [b.table(weight=2), a.table(weight=2)]
    atlas.reload(build_config(*tables, health_check=CHECK, routing=ROUND_ROBIN))
    assert ask(atlas, 6) == {"B": 6}

    atlas.reload(build_config(*tables, routing=ROUND_ROBIN))
    assert ask(atlas, 6) == {"A": 3, "B": 3}
    assert atlas.count("upstream A is down") == 1


# The circuit breaker


def test_the_breaker_opens_tries_and_closes(a: Scripted, b: Scripted, start: Start) -> None:
    atlas = start(build_config(a.table(), b.table(), routing=ROUND_ROBIN, circuit_breaker=BREAKER))

    a.script = "reset"
    assert ask(atlas, 20) == {"502": 3, "B": 17}
    atlas.wait_for("upstream A: circuit breaker open for 0.4 s")
    assert a.requests == 3

    # Its time is up: one trial, which fails.
    atlas_answers = wait_until(lambda: ask(atlas, 2)["502"], "a trial")
    assert atlas_answers == 1
    assert a.requests == 4
    atlas.wait_for("upstream A: circuit breaker open for 0.8 s")

    # And another, which is held: nobody else is sent there meanwhile.
    a.script = ("hold", 200)
    threads = Threads()

    def is_tried() -> bool:
        threads.start(atlas.get)
        return a.requests == 5

    wait_until(is_tried, "the next trial")
    assert ask(atlas, 10) == {"B": 10}
    assert a.requests == 5
    a.script = 200
    a.let_go()
    atlas.wait_for("upstream A: circuit breaker closed")
    assert {answer.status for answer in threads.join()} == {200}
    assert ask(atlas, 10) == {"A": 5, "B": 5}
    assert atlas.count("circuit breaker closed") == 1


def test_a_trial_is_over_with_the_head_of_its_answer(
    a: Scripted, b: Scripted, start: Start
) -> None:
    atlas = start(build_config(a.table(), b.table(), routing=ROUND_ROBIN, circuit_breaker=BREAKER))
    a.script = "reset"
    assert ask(atlas, 20) == {"502": 3, "B": 17}

    a.script = (STREAM, "hold", "reset")
    with contextlib.ExitStack() as stack:

        def is_tried() -> bool:
            client = stack.enter_context(atlas.client())
            client.send_head()
            return client.read_head().get("Transfer-Encoding") == "chunked"

        wait_until(is_tried, "a trial that does not end")
        atlas.wait_for("upstream A: circuit breaker closed")
        a.script = 200
        assert ask(atlas, 10) == {"A": 5, "B": 5}

        # What becomes of its body counts as it always does.
        a.script = "reset"
        assert ask(atlas, 4) == {"502": 2, "B": 2}
        a.let_go()
        atlas.wait_for("upstream A: circuit breaker open for 0.4 s", times=2)


@pytest.mark.engines("lane")
def test_only_the_statuses_that_are_listed_count(a: Scripted, b: Scripted, start: Start) -> None:
    breaker = {**BREAKER, "open_for": 60.0, "statuses": [502, 503]}
    atlas = start(build_config(a.table(), b.table(), routing=ROUND_ROBIN, circuit_breaker=breaker))

    for status in (500, 404):
        a.script = status
        assert ask(atlas, 40) == {str(status): 20, "B": 20}
    a.script = 503
    assert ask(atlas, 40) == {"503": 3, "B": 37}


def test_every_failure_of_an_upstream_counts(upstreams: contextlib.ExitStack, start: Start) -> None:
    scripts = {"r": "reset", "c": "close", "t": (CUT, "reset"), "w": "wait", "well": 200}
    ill = [upstreams.enter_context(Scripted(*both)) for both in scripts.items()]
    refused = {"name": "refused", "address": "127.0.0.1", "port": free_port()}
    atlas = start(
        build_config(
            *(upstream.table() for upstream in ill),
            refused,
            routing=ROUND_ROBIN,
            circuit_breaker={**BREAKER, "open_for": 60.0},
            timeouts={"upstream_head": 0.3},
        )
    )

    outcomes: Counter[str] = Counter()
    for _ in range(40):
        try:
            outcomes += ask(atlas, 1)
        except (Cut, ConnectionError):
            outcomes["cut"] += 1

    assert outcomes == {"502": 9, "504": 3, "cut": 3, "well": 25}
    assert [upstream.requests for upstream in ill] == [3, 3, 3, 3, 25]
    atlas.wait_for("circuit breaker open for 60 s", times=5)
    assert atlas.count("circuit breaker open for 60 s") == 5


@pytest.mark.parametrize("way", ["close", "reset"])
def test_an_answer_that_is_cut_counts_on_a_kept_connection_too(
    way: str, a: Scripted, b: Scripted, start: Start
) -> None:
    breaker = {**BREAKER, "failures": 1, "open_for": 60.0}
    atlas = start(build_config(a.table(), b.table(), routing=ROUND_ROBIN, circuit_breaker=breaker))
    assert ask(atlas, 2) == {"A": 1, "B": 1}

    a.script = (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf", "hold", way)
    with atlas.client() as client:
        client.send_head()
        assert client.read_head().status == 200
        a.let_go()

        atlas.wait_for("upstream A: circuit breaker open for 60 s")
    assert "malformed" not in atlas.wait_for("answer cut for GET /")


def test_what_clients_do_wrong_never_counts(a: Scripted, b: Scripted, start: Start) -> None:
    breaker = {**BREAKER, "failures": 1, "open_for": 60.0}
    atlas = start(
        build_config(
            a.table(),
            b.table(),
            routing=ROUND_ROBIN,
            circuit_breaker=breaker,
            timeouts={"client_body": 0.3},
            limits={"body": 100_000},
        )
    )
    head = "POST / HTTP/1.1\r\nHost: h\r\n"

    for text in (
        f"{head}Content-Length: 1000\r\n\r\nhalf",  # 408
        f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",  # 400
        f"{head}Transfer-Encoding: chunked\r\n\r\n{0x20000:x}\r\n" + "x" * 0x20000,  # 413
    ):
        for _ in range(4):
            with atlas.client() as client:
                client.send(text.encode())
                assert client.read_answer().status in (400, 408, 413)
    for _ in range(4):  # the client leaves in the middle of its body
        with atlas.client() as client:
            client.send(f"{head}Content-Length: 1000\r\n\r\nhalf".encode())
    a.script = b.script = ("hold", 200)
    for _ in range(4):  # and while it waits for an answer
        before = a.requests + b.requests
        with atlas.client() as client:
            client.send_head()
            wait_until(lambda before=before: a.requests + b.requests > before)  # type: ignore[misc]
    wait_until(lambda: a.connected + b.connected <= 4, "the upstreams to be freed")
    a.script = b.script = 200

    assert ask(atlas, 10) == {"A": 5, "B": 5}
    assert atlas.count("circuit breaker") == 0


@pytest.mark.engines("lane")
def test_the_last_upstream_available_is_never_taken_out(
    a: Scripted, b: Scripted, start: Start
) -> None:
    breaker = {**BREAKER, "open_for": 60.0}
    atlas = start(build_config(a.table(), b.table(), routing=ROUND_ROBIN, circuit_breaker=breaker))
    a.script = b.script = "reset"

    assert ask(atlas, 40) == {"502": 40}
    a.script = b.script = 200
    assert len(ask(atlas, 10)) == 1
    atlas.wait_for("circuit breaker open")
    assert atlas.count("circuit breaker open") == 1


@pytest.mark.engines("lane")
def test_the_breaker_survives_a_reload(a: Scripted, b: Scripted, start: Start) -> None:
    def config(weight: int) -> str:
        tables = [a.table(weight=weight), b.table()]
        breaker = {**BREAKER, "open_for": 60.0}
        return build_config(*tables, routing=ROUND_ROBIN, circuit_breaker=breaker)

    a.script = "reset"
    atlas = start(config(1))
    assert ask(atlas, 20)["502"] == 3
    a.script = 200

    atlas.reload(config(2))

    assert ask(atlas, 20) == {"B": 20}


# Backups


@pytest.mark.engines("lane")
def test_a_backup_serves_while_nobody_else_can(a: Scripted, b: Scripted, start: Start) -> None:
    atlas = start(build_config(a.table(), b.table(backup=True), health_check=CHECK))
    assert ask(atlas, 6) == {"A": 6}

    a.health = 500
    atlas.wait_for("upstream A is down")
    assert ask(atlas, 6) == {"B": 6}

    a.health = 200
    atlas.wait_for("upstream A is up")
    assert ask(atlas, 6) == {"A": 6}


# Slow start


@pytest.mark.engines("lane")
def test_a_recovered_upstream_ramps_up(a: Scripted, b: Scripted, start: Start) -> None:
    def config(duration: float) -> str:
        tables = {"health_check": CHECK, "slow_start": {"duration": duration}}
        return build_config(a.table(), b.table(), routing=ROUND_ROBIN, **tables)

    atlas = start(config(3600.0))
    assert ask(atlas, 10) == {"A": 5, "B": 5}  # at the start nobody has recovered
    a.health = 500
    atlas.wait_for("upstream A is down")
    a.health = 200
    atlas.wait_for("upstream A is up")
    recovered = time.monotonic()

    # Chance gives it 10 of these, and more than 50 not once in a million million times.
    assert ask(atlas, 200)["A"] < 50

    atlas.reload(config(1.0))
    wait_until(lambda: time.monotonic() > recovered + 1.0, "the end of its time")
    assert ask(atlas, 200) == {"A": 100, "B": 100}


# By load


@pytest.mark.parametrize(
    ("strategy", "most"), [("round_robin", 16), ("power_of_two", 10), ("least_connections", 6)]
)
def test_by_load_a_stalled_upstream_does_not_spoil_the_rest(
    strategy: str,
    most: int,
    a: Scripted,
    b: Scripted,
    upstreams: contextlib.ExitStack,
    start: Start,
) -> None:
    stalled = upstreams.enter_context(Scripted("stalled", ("hold", 200)))
    tables = [upstream.table() for upstream in (a, b, stalled)]
    atlas = start(build_config(*tables, routing={"strategy": strategy}))
    done: list[Counter[str]] = []
    threads = Threads()

    for _ in range(16):
        threads.start(lambda: done.append(ask(atlas, 15)))
    wait_until(lambda: len(done) + stalled.requests == 16, "all to be done or stuck")
    stuck = stalled.requests
    stalled.script = 200
    stalled.let_go(16)
    threads.join()

    # By load it gets no more than the others have under way, so that at most 6 of 16 are stuck, or
    # where two are compared 8, and the few that chance compares with nobody.
    assert stuck <= most
    assert (stuck == 16) == (strategy == "round_robin")


# What survives a reload


def test_requests_in_flight_are_counted_over_reloads(
    a: Scripted, b: Scripted, start: Start
) -> None:
    def config(**more: object) -> str:
        routing = {"strategy": "least_connections"}
        return build_config(a.table(**more), b.table(), routing=routing)

    atlas = start(config())
    a.script = b.script = ("hold", 200)
    threads = Threads()
    for _ in range(3):
        threads.start(atlas.get)
    wait_until(lambda: a.requests + b.requests == 3, "three requests in flight")
    busy, idle = (a, b) if a.requests == 2 else (b, a)

    atlas.reload(config(weight=1, max_connections=50))
    threads.start(atlas.get)
    wait_until(lambda: idle.requests == 2, "the fourth to go where there are fewer")

    a.let_go(9)
    b.let_go(9)
    assert busy.requests == 2
    assert [answer.status for answer in threads.join()] == [200] * 4


@pytest.mark.engines("lane")
def test_the_state_of_all_upstreams_is_logged_on_demand(a: Scripted, start: Start) -> None:
    backup = named("backup")
    with backup:
        atlas = start(
            build_config(
                a.table(weight=3),
                backup.table(backup=True),
                circuit_breaker=BREAKER,
                health_check={**CHECK, "path": ""},
            )
        )
        atlas.send_signal(signal.SIGUSR1)

        for name, weight in (("A", 3), ("backup (backup)", 1)):
            line = atlas.wait_for(f" {name}  ")
            assert " up" in line
            assert line.split()[-3:] == [f"{weight}", "0", "0"]
