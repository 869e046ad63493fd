"""The admin address of the real program: metrics, readiness, steering, with one process and two."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes import Scripted, Upstream
from tests.functional.admin_client import ADMIN, TOKEN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Client, Cut, Threads, build_config, free_port, wait_until

# What the admin address says does not depend on the engine that serves clients.
pytestmark = pytest.mark.engines("lane")

Open = Callable[..., tuple[Atlas, AdminClient]]

# So many connections that each of two processes gets some.
CONNECTIONS = 28


def choosy(name: str) -> Scripted:
    """An upstream that answers 404 where the path says so."""
    return Scripted(name, targets={"/missing": 404})


@pytest.fixture
def upstreams() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(choosy("a"))


@pytest.fixture
def b(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(choosy("b"))


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def open_admin(start: Start) -> Open:
    """Start Atlas with an admin address and wait until all of it is ready."""

    def open_it(
        *tables: dict[str, object], workers: int = 1, **more: dict[str, object]
    ) -> tuple[Atlas, AdminClient]:
        atlas = start(build(*tables, workers=workers, **more))
        admin = AdminClient(atlas)
        if tables:
            admin.wait_until_ready(workers)
        return atlas, admin

    return open_it


def build(*tables: dict[str, object], workers: int = 1, **more: dict[str, object]) -> str:
    return build_config(*tables, listen={"workers": workers}, **{"admin": dict(ADMIN), **more})


def dead(name: str = "dead") -> dict[str, object]:
    """An upstream whose port nobody listens on."""
    return {"name": name, "address": "127.0.0.1", "port": free_port()}


def ask_many(atlas: Atlas, *targets: str, connections: int = CONNECTIONS) -> int:
    """Ask for every target, on some connections at once; returns the bytes of all bodies."""
    threads = Threads()

    def ask(share: tuple[str, ...]) -> int:
        with atlas.client() as client:
            return sum(len(client.get(target).body) for target in share)

    for number in range(connections):
        threads.start(ask, targets[number::connections])
    return sum(threads.join())


def pid_of(atlas: Atlas, name: str, life: int = 1) -> int:
    return int(atlas.wait_for(f"{name} is process ", times=life).rpartition(" ")[2])


# Metrics


def check_counters(open_admin: Open, a: Upstream, workers: int, share: int) -> None:
    """Make known requests in four shares of two to one: 200, 404, 502, 503; look at all sums."""
    atlas, admin = open_admin(a.table(), dead(), workers=workers)

    assert admin.steer("dead", "state=drain") == 200
    size = ask_many(atlas, *(["/good"] * 2 * share + ["/missing"] * share))
    assert admin.steer("dead", "state=ready") == admin.steer("a", "state=drain") == 200
    size += ask_many(atlas, *["/good"] * share)
    assert admin.steer("dead", "state=maintenance") == 200
    size += ask_many(atlas, *["/good"] * share)

    expected = {
        "atlas_requests_total a 2xx": 2 * share,
        "atlas_requests_total a 4xx": share,
        "atlas_requests_total a 5xx": 0,
        "atlas_requests_total - 5xx": 2 * share,
        "atlas_requests_total - 4xx": 0,
        "atlas_request_duration_seconds_count a": 3 * share,
        "atlas_request_duration_seconds_bucket a +Inf": 3 * share,
        "atlas_request_duration_seconds_count -": 2 * share,
        "atlas_upstream_failures_total dead connect-failed": share,
        "atlas_upstream_failures_total - no-upstream": share,
        "atlas_retries_total dead": 0,
        "atlas_bytes_total in": 0,
        "atlas_bytes_total out": size,
        "atlas_upstream_up a": 0,
        "atlas_upstream_active a": 0,
        "atlas_config_last_reload_success": 1,
    }
    # A request is counted a moment after its answer has been sent.
    wait_until(lambda: admin.metrics()["atlas_requests_total - 5xx"] == 2 * share, "the sums")
    metrics = admin.metrics()
    assert {name: metrics.get(name) for name in expected} == expected
    assert admin.stats()["totals"]["requests"] == 5 * share


def test_counters_agree_with_ten_thousand_requests(
    open_admin: Open, a: Upstream, workers: int
) -> None:
    check_counters(open_admin, a, workers, share=2000)


def test_connections_and_idle_connections_are_told(open_admin: Open, a: Upstream) -> None:
    atlas, admin = open_admin(a.table())

    with atlas.client() as client:
        client.get()
        wait_until(lambda: admin.metrics()["atlas_upstream_idle a"] == 1, "it to be kept")
        metrics = admin.metrics()

    assert metrics["atlas_connections"] == 1
    assert metrics["atlas_connections_limit"] == 4096
    assert metrics["atlas_queue"] == 0
    assert metrics["process_open_fds"] > 5


def test_without_the_table_there_is_no_admin_address(start: Start, a: Upstream) -> None:
    atlas = start(build_config(a.table()))

    assert atlas.get().text == "a"
    assert atlas.count("admin address") == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_one_line_and_no_start(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "atlas.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path.write_text(build(workers=workers, admin={"port": port}))
        with Atlas(path) as atlas:
            status = atlas.wait()

    (line,) = atlas.lines
    assert line.endswith(
        f"admin: cannot listen on 127.0.0.1:{port}: the port is in use by another program"
    )
    assert status == 1


# Readiness


def test_readiness_fails_first_while_draining(open_admin: Open, a: Upstream, workers: int) -> None:
    atlas, admin = open_admin(a.table(), workers=workers, timeouts={"pre_drain": 3.0})
    assert admin.ask("/-/live") == (200, "alive\n")
    assert admin.ask("/-/ready") == (200, "ready: 1 of 1 upstreams usable\n")

    atlas.send_signal(signal.SIGTERM)
    wait_until(lambda: admin.ask("/-/ready")[0] == 503, "readiness to fail")

    assert admin.ask("/-/ready") == (503, "not ready: draining\n")
    assert admin.ask("/-/live")[0] == 200
    assert atlas.get().text == "a"
    assert admin.stats()["state"] == "draining"
    assert atlas.wait() == 0


def test_the_admin_address_stays_until_all_is_finished(
    open_admin: Open, upstreams: contextlib.ExitStack, workers: int
) -> None:
    slow = upstreams.enter_context(Scripted("slow", ("hold", 200)))
    atlas, admin = open_admin(slow.table(), workers=workers)

    with atlas.client() as client:
        client.send_head()
        wait_until(lambda: admin.upstream("slow")["in_flight"], "the request to be under way")
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients")

        assert admin.ask("/-/ready")[0] == 503
        assert admin.metrics()["atlas_upstream_active slow"] == 1
        slow.let_go()
        assert client.read_answer().text == "slow"
    assert atlas.wait() == 0


def test_without_a_usable_upstream_atlas_is_not_ready(
    open_admin: Open, a: Upstream, workers: int
) -> None:
    _, admin = open_admin(a.table(), workers=workers)

    assert admin.steer("a", "weight=0") == 200
    assert admin.ask("/-/ready") == (503, "not ready: no upstream is usable\n")
    assert admin.steer("a", "weight=&state=maintenance") == 200
    assert admin.ask("/-/ready")[0] == 503
    assert admin.steer("a", "state=ready") == 200
    assert admin.ask("/-/ready")[0] == 200


def test_without_upstreams_atlas_is_not_ready(open_admin: Open) -> None:
    _, admin = open_admin()

    reason = "not ready: no upstreams are configured\n"
    wait_until(lambda: admin.ask("/-/ready") == (503, reason), "the reason")


# Steering


def test_a_drained_upstream_gets_nothing_new_and_finishes_what_it_has(
    open_admin: Open, upstreams: contextlib.ExitStack, b: Upstream, workers: int
) -> None:
    slow = upstreams.enter_context(Scripted("slow", ("hold", 200)))
    atlas, admin = open_admin(slow.table(), b.table(), workers=workers)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(8)]
        for client in clients:
            client.send_head()
        wait_until(lambda: admin.upstream("slow")["in_flight"] + b.requests >= 8, "all under way")

        assert admin.steer("slow", "state=drain") == 200
        before = admin.upstream("slow")["in_flight"]
        ask_many(atlas, *["/"] * 56)

        assert before
        slow.let_go(before)
        assert {client.read_answer().text for client in clients} == {"slow", "b"}
    assert slow.requests == before
    row = admin.upstream("slow")
    assert (row["kind"], row["in_flight"]) == ("drain", 0)
    metrics = admin.metrics()
    assert (metrics["atlas_upstream_up slow"], metrics["atlas_upstream_state slow drain"]) == (0, 1)
    assert (metrics["atlas_upstream_state slow up"], metrics["atlas_upstream_state b up"]) == (0, 1)


def test_the_weight_is_steered_and_given_back(open_admin: Open, a: Upstream, b: Upstream) -> None:
    atlas, admin = open_admin(a.table(), b.table(), routing={"strategy": "weighted_round_robin"})

    assert admin.steer("a", "weight=3") == 200
    ask_many(atlas, *["/"] * 40, connections=1)
    assert (a.requests, b.requests) == (30, 10)
    assert admin.upstream("a")["configured_weight"] == 1
    assert admin.steer("a", "weight=") == 200
    ask_many(atlas, *["/"] * 40, connections=1)

    assert (a.requests, b.requests) == (50, 30)


def test_what_was_steered_survives_a_reload(
    open_admin: Open, a: Upstream, b: Upstream, workers: int
) -> None:
    atlas, admin = open_admin(a.table(), b.table(), workers=workers)
    assert admin.steer("a", "state=maintenance") == admin.steer("b", "weight=7") == 200

    atlas.rewrite(build(a.table(weight=2), b.table(weight=2), workers=workers))
    atlas.wait_for("Configuration hot-reloaded", times=workers)
    ask_many(atlas, *["/"] * 28)

    assert (a.requests, b.requests) == (0, 28)
    assert (admin.upstream("a")["kind"], admin.upstream("a")["weight"]) == ("maintenance", 2)
    assert (admin.upstream("b")["configured_weight"], admin.upstream("b")["weight"]) == (2, 7)


def test_what_left_and_came_back_is_as_it_was(open_admin: Open, a: Upstream, b: Upstream) -> None:
    atlas, admin = open_admin(a.table(), b.table())
    assert admin.steer("a", "state=maintenance") == 200

    atlas.reload(build(b.table()))
    assert admin.steer("a", "state=ready") == 404
    atlas.reload(build(a.table(), b.table()))
    ask_many(atlas, *["/"] * 10)

    assert a.requests == 0


def test_steering_reaches_every_worker_process(open_admin: Open, a: Upstream, b: Upstream) -> None:
    atlas, admin = open_admin(a.table(), b.table(), workers=2)

    assert admin.steer("a", "state=maintenance") == 200
    ask_many(atlas, *["/"] * 56)

    assert (a.requests, b.requests) == (0, 56)


def test_a_replaced_worker_process_knows_what_was_steered(
    open_admin: Open, a: Upstream, b: Upstream
) -> None:
    atlas, admin = open_admin(a.table(), b.table(), workers=2)
    assert admin.steer("a", "state=maintenance") == 200

    os.kill(pid_of(atlas, "worker 1"), signal.SIGKILL)
    pid_of(atlas, "worker 1", 2)
    admin.wait_until_ready(2)
    ask_many(atlas, *["/"] * 56)

    assert (a.requests, b.requests) == (0, 56)


def test_a_replaced_admin_process_knows_what_was_steered(
    open_admin: Open, a: Upstream, b: Upstream
) -> None:
    atlas, admin = open_admin(a.table(), b.table(), workers=2)
    assert admin.steer("a", "state=maintenance") == 200

    os.kill(pid_of(atlas, "admin"), signal.SIGKILL)
    pid_of(atlas, "admin", 2)
    admin.wait_until_ready(2)
    assert admin.steer("b", "weight=2") == 200

    assert admin.upstream("a")["kind"] == "maintenance"
    assert atlas.get().text == "b"


# Who may steer


@pytest.mark.parametrize(
    ("method", "fields", "status"),
    [
        ("POST", {}, 401),
        ("POST", {"Authorization": "Bearer wrong"}, 401),
        ("POST", {"Authorization": f"Basic {TOKEN}"}, 401),
        ("GET", {"Authorization": f"Bearer {TOKEN}"}, 405),
        ("PUT", {"Authorization": f"Bearer {TOKEN}"}, 405),
        ("DELETE", {"Authorization": f"Bearer {TOKEN}"}, 405),
        ("POST", {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.test"}, 403),
        ("POST", {"Authorization": f"Bearer {TOKEN}", "Origin": "null"}, 403),
        ("POST", {"Authorization": f"Bearer {TOKEN}", "Host": "rebound.test"}, 403),
        ("POST", {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}, 400),
    ],
)
def test_nothing_changes_without_the_right_to(
    open_admin: Open, a: Upstream, method: str, fields: dict[str, str], status: int
) -> None:
    fields = {"Content-Type": "application/x-www-form-urlencoded", **fields}
    _, admin = open_admin(a.table())

    got, _ = admin.ask("/-/upstreams/a", method, "state=maintenance", fields)

    assert got == status
    assert admin.upstream("a")["kind"] == "up"


def test_without_a_token_all_is_read_only(open_admin: Open, a: Upstream) -> None:
    _, admin = open_admin(a.table(), admin={"port": 0})

    assert admin.steer("a", "state=maintenance") == admin.steer("a", "state=drain", "") == 403
    assert admin.upstream("a")["kind"] == "up"
    assert admin.stats()["may_steer"] is False


def test_the_port_for_clients_knows_nothing_of_it(open_admin: Open, a: Upstream) -> None:
    atlas, _ = open_admin(a.table())

    assert atlas.get("/-/upstreams/a").text == atlas.get("/metrics").text == "a"


def test_another_token_needs_a_restart(open_admin: Open, a: Upstream) -> None:
    atlas, admin = open_admin(a.table())

    atlas.rewrite(build(a.table(), admin={"port": 0, "token": "another"}))
    line = atlas.wait_for("needs a restart")

    assert "admin.token" in line
    assert "another" not in line
    assert admin.steer("a", "state=ready", "another") == 401


# Several processes, and what happens to them


def test_a_killed_worker_process_takes_nothing_back(open_admin: Open, a: Upstream) -> None:
    atlas, admin = open_admin(a.table(), workers=2)
    ask_many(atlas, *["/"] * 56)
    wait_until(lambda: admin.metrics()["atlas_requests_total a 2xx"] == 56, "all to be counted")

    os.kill(pid_of(atlas, "worker 1"), signal.SIGKILL)
    while admin.metrics()["atlas_requests_total a 2xx"] == 56:
        if len(admin.stats()["pids"]) == 2 and atlas.count("worker 1 is process") == 2:
            break
    ask_many(atlas, *["/"] * 56)

    wait_until(lambda: admin.metrics()["atlas_requests_total a 2xx"] == 112, "all to be counted")
    wait_until(lambda: len(admin.stats()["pids"]) == 2, "the new process")
    events = [event["kind"] for event in admin.stats()["events"]]
    wait_until(lambda: "process" in events or admin.stats()["events"], "an event")


def test_a_worker_process_that_hangs_is_left_out(open_admin: Open, a: Upstream) -> None:
    _, admin = open_admin(a.table(), workers=2)
    pid = admin.stats()["pids"][0]

    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        stats = admin.stats()
        took = time.monotonic() - began
        steered = admin.steer("a", "weight=5")
    finally:
        os.kill(pid, signal.SIGCONT)

    assert pid not in stats["pids"]
    assert took < 15
    assert steered == 503
    wait_until(lambda: admin.upstream("a")["weight"] == 5, "it to follow")
    wait_until(lambda: pid in admin.stats()["pids"], "it to be back")


def test_reloads_are_told_once(open_admin: Open, a: Upstream, b: Upstream, workers: int) -> None:
    atlas, admin = open_admin(a.table(), workers=workers)

    atlas.rewrite(build(a.table(), b.table(), workers=workers))
    atlas.wait_for("Configuration hot-reloaded", times=workers)
    wait_until(lambda: "reload" in kinds(admin), "the event")
    atlas.rewrite("[listen]\nport = true\n")
    atlas.wait_for("Configuration refused", times=workers)
    wait_until(lambda: "refused" in kinds(admin), "the event")

    metrics = admin.metrics()
    assert metrics["atlas_config_reloads_total success"] == 1
    assert metrics["atlas_config_reloads_total failure"] == 1
    assert metrics["atlas_config_last_reload_success"] == 0
    assert "listen.port" in admin.stats()["last_reload"]["error"]
    assert admin.stats()["verdict"]["text"] == "The configuration file was refused"
    assert kinds(admin).count("reload") == kinds(admin).count("refused") == 1


def test_a_refused_file_that_is_put_back_ends_the_alarm(
    open_admin: Open, a: Upstream, workers: int
) -> None:
    atlas, admin = open_admin(a.table(), workers=workers)
    good = atlas.path.read_text()

    def succeeded() -> bool:
        return admin.metrics()["atlas_config_last_reload_success"] == 1

    atlas.rewrite("[listen]\nport = true\n")
    wait_until(lambda: not succeeded(), "the alarm")
    assert admin.stats()["verdict"]["text"] == "The configuration file was refused"
    atlas.rewrite(good)
    wait_until(succeeded, "the end of the alarm")

    assert admin.stats()["last_reload"]["ok"]
    assert "refused" not in admin.stats()["verdict"]["text"]
    metrics = admin.metrics()
    assert metrics["atlas_config_reloads_total success"] == 0  # nothing was taken over
    assert metrics["atlas_config_reloads_total failure"] == 1


def kinds(admin: AdminClient) -> list[str]:
    return [event["kind"] for event in admin.stats()["events"]]


def test_errors_are_listed(open_admin: Open, workers: int) -> None:
    atlas, admin = open_admin(dead(), workers=workers)

    assert [atlas.get(f"/path?secret={number}").status for number in range(5)] == [502] * 5

    wait_until(lambda: sum(item["count"] for item in admin.stats()["errors"]) == 5, "the errors")
    (error,) = admin.stats()["errors"]
    assert (error["status"], error["upstream"]) == (502, "dead")
    assert "secret" not in error["line"]


def test_the_page_is_shown(open_admin: Open, a: Upstream, workers: int) -> None:
    _, admin = open_admin(a.table(), workers=workers)

    assert [admin.ask(path)[0] for path in ("/", "/page.css", "/page.js")] == [200] * 3


def test_the_status_is_told_as_text(open_admin: Open, a: Upstream, workers: int) -> None:
    _, admin = open_admin(a.table(), workers=workers)

    status, text = admin.ask("/status.txt")

    assert status == 200
    assert text.startswith("The upstream is up\n")


def test_clients_who_stay_do_not_keep_atlas_from_ending(open_admin: Open, a: Upstream) -> None:
    atlas, admin = open_admin(a.table())

    with Client(admin.port) as client:
        client.send(b"GET /-/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_answer().status == 200
        atlas.send_signal(signal.SIGTERM)
        assert atlas.wait() == 0
        with contextlib.suppress(Cut, OSError):
            client.read_answer()
