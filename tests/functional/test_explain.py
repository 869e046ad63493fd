"""How a balancer thinks, on the real program: at the admin address and on the terminal."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Upstream, named
from tests.functional.admin_client import ADMIN, TOKEN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import Atlas, build_config, wait_until

# What is told of a choice does not depend on the engine that asks.
pytestmark = pytest.mark.engines("lane")

FORM = {
    "Authorization": f"Bearer {TOKEN}",
    "Content-Type": "application/x-www-form-urlencoded",
}


def explain(admin: AdminClient, query: str = "") -> list[dict[str, Any]]:
    status, text = admin.ask(f"/explain.json{query}")
    assert status == 200, text
    exchanges: list[dict[str, Any]] = json.loads(text)["exchanges"]
    return exchanges


def order(admin: AdminClient, body: str) -> None:
    status, text = admin.ask("/-/explain", "POST", body, FORM)
    assert status == 200, text


def wait_for_exchanges(admin: AdminClient, number: int, query: str = "") -> list[dict[str, Any]]:
    """Wait until so many exchanges are told: the last one is noted when its answer has left."""
    return wait_until(lambda: found if len(found := explain(admin, query)) >= number else [])


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("a"))


@pytest.fixture
def b(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("b"))


@pytest.fixture
def open_atlas(start: Start, a: Upstream, b: Upstream) -> Callable[..., tuple[Atlas, AdminClient]]:
    """Start Atlas in front of `a` and `b`, with an admin address."""

    def open_one(*arguments: str, **tables: Any) -> tuple[Atlas, AdminClient]:
        atlas = start(build_config(a.table(), b.table(), admin=ADMIN, **tables), *arguments)
        admin = AdminClient(atlas)
        admin.wait_until_ready(tables.get("listen", {}).get("workers", 1))
        return atlas, admin

    return open_one


def test_the_last_exchanges_are_told_without_being_asked_for(
    open_atlas: Callable[..., tuple[Atlas, AdminClient]],
) -> None:
    atlas, admin = open_atlas()
    for number in range(3):
        atlas.get(f"/{number}?secret=1")

    exchanges = wait_for_exchanges(admin, 3)

    assert [item["line"] for item in exchanges] == [f"GET /{n}?… HTTP/1.1" for n in (2, 1, 0)]
    assert {item["upstream"] for item in exchanges} == {"a", "b"}
    first = exchanges[0]
    assert (first["status"], first["end"], first["client"]) == (200, "done", "127.0.0.1")
    assert first["choices"] is None
    stages = ("head_ms", "choice_ms", "connect_ms", "wait_ms", "body_ms")
    assert all(first[stage] >= 0 for stage in stages)
    assert sum(first[stage] for stage in stages) == pytest.approx(first["total_ms"], abs=0.01)


@pytest.mark.parametrize("workers", [1, 2], ids=["alone", "two workers"])
def test_one_in_so_many_is_explained_in_all_processes(
    open_atlas: Callable[..., tuple[Atlas, AdminClient]], workers: int
) -> None:
    atlas, admin = open_atlas(
        listen={"workers": workers}, routing={"strategy": "weighted_round_robin"}
    )
    atlas.get("/before")

    order(admin, "one_in=1")
    for number in range(12):
        atlas.get(f"/{number}")

    exchanges = wait_for_exchanges(admin, 12, "?explained=1")
    assert "/before" not in str(exchanges)
    for item in exchanges:
        (choice,) = item["choices"]
        assert (choice["strategy"], choice["cause"]) == ("weighted_round_robin", "strategy")
        assert choice["chosen"] == item["upstream"]
        assert {candidate["name"] for candidate in choice["candidates"]} == {"a", "b"}
        assert all(
            re.fullmatch(r"turn at \d\.50, weight 1", candidate["score"])
            for candidate in choice["candidates"]
        )
    assert json.loads(admin.ask("/explain.json")[1])["one_in"] == 1
    assert "explain one in 1, by an administrator" in str(admin.stats()["events"])

    order(admin, "one_in=0")
    atlas.get("/after")
    after = wait_for_exchanges(admin, 14)
    assert [item["choices"] for item in after if item["line"].startswith("GET /after")] == [None]


def test_the_next_of_a_client_is_explained_once(
    open_atlas: Callable[..., tuple[Atlas, AdminClient]],
) -> None:
    atlas, admin = open_atlas(forwarding={"trusted_proxies": ["127.0.0.1"]})
    order(admin, "next_from=192.0.2.7")

    for address in ("192.0.2.8", "192.0.2.7", "192.0.2.7"):
        atlas.get("/", **{"X-Forwarded-For": address})

    exchanges = wait_for_exchanges(admin, 3)
    told = [(item["client"], item["choices"] is not None) for item in reversed(exchanges)]
    assert told == [("192.0.2.8", False), ("192.0.2.7", True), ("192.0.2.7", False)]


def test_a_reload_does_not_end_what_was_asked_for(
    open_atlas: Callable[..., tuple[Atlas, AdminClient]], a: Upstream, b: Upstream
) -> None:
    atlas, admin = open_atlas()
    order(admin, "one_in=1")

    atlas.reload(build_config(a.table(), b.table(), admin=ADMIN, routing={"strategy": "random"}))
    atlas.get("/")

    (item,) = wait_for_exchanges(admin, 1)
    assert item["choices"][0]["strategy"] == "random"


def test_why_somebody_was_left_out_and_why_it_was_tried_elsewhere(
    start: Start, a: Upstream
) -> None:
    with named("dead") as upstream:
        dead = upstream.table()  # nobody listens there any more
    atlas = start(build_config(dead, a.table(), admin=ADMIN, routing={"retries": 1}), "--explain")
    admin = AdminClient(atlas)

    assert atlas.get("/").status == 200

    (item,) = wait_for_exchanges(admin, 1)
    assert item["failures"] == [{"upstream": "dead", "stage": "connect-failed"}]
    first, second = item["choices"]
    assert (first["chosen"], first["cause"]) == ("dead", "strategy")
    assert (second["chosen"], second["cause"]) == ("a", "strategy, for a retry")
    assert second["candidates"][-1] == {"name": "dead", "score": "", "left_out": "tried already"}
    assert "x dead  left out: tried already" in atlas.wait_for("tried already", printed=True)


def test_where_nobody_is_available_it_is_told_who_and_why(start: Start, a: Upstream) -> None:
    atlas = start(build_config({**a.table(), "weight": 0}, admin=ADMIN), "--explain")

    assert atlas.get("/").status == 503

    (item,) = wait_for_exchanges(AdminClient(atlas), 1)
    (choice,) = item["choices"]
    assert (item["end"], choice["chosen"], choice["waits"]) == ("no-upstream", "", "")
    assert choice["candidates"] == [{"name": "a", "score": "", "left_out": "weight 0"}]


# On the terminal


def read_blocks(atlas: Atlas) -> list[str]:
    """The blocks that were printed, after the end."""
    return [block for block in "\n".join(atlas.printed).split("\n\n") if block.strip()]


@pytest.mark.parametrize("workers", [1, 2], ids=["alone", "two workers"])
def test_the_terminal_shows_each_exchange_in_a_block(
    start: Start, a: Upstream, b: Upstream, workers: int
) -> None:
    atlas = start(build_config(a.table(), b.table(), listen={"workers": workers}), "--explain")
    for number in range(20):
        atlas.get(f"/{number}")

    assert atlas.end(signal.SIGTERM) == 0

    blocks = read_blocks(atlas)
    assert len(blocks) == 20
    for block in blocks:
        lines = block.strip("\n").splitlines()
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  127\.0\.0\.1  GET /\d+ HTTP/1\.1", lines[0])
        assert lines[1].startswith("  200, done, upstream ")
        assert [line.split()[0] for line in lines[2:7]] == [
            "head",
            "choice",
            "connect",
            "wait",
            "body",
        ]
        assert re.fullmatch(r"  round_robin chose [ab]: strategy", lines[7])
        assert re.fullmatch(r"    > [ab]  its turn", lines[8])
        assert max(map(len, lines)) <= 100


def test_the_terminal_shows_one_in_so_many(start: Start, a: Upstream) -> None:
    atlas = start(build_config(a.table()), "--explain=4")
    for number in range(8):
        atlas.get(f"/{number}")

    assert atlas.end(signal.SIGTERM) == 0

    lines = [line.split("  ")[2] for line in atlas.printed if "HTTP/1.1" in line]
    assert lines == ["GET /0 HTTP/1.1", "GET /4 HTTP/1.1"]


def test_without_the_option_nothing_is_printed(start: Start, a: Upstream) -> None:
    atlas = start(build_config(a.table()))
    atlas.get("/")

    assert atlas.end(signal.SIGTERM) == 0

    assert atlas.printed == []


@pytest.mark.parametrize(
    "word", ["--explain=0", "--explain=-1", "--explain=often", "--explain=1.5"]
)
def test_a_wrong_number_is_a_wrong_argument(tmp_path: Path, word: str) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(build_config())
    with Atlas(path, word) as atlas:
        assert atlas.wait() == 2

    assert "argument --explain: N is a number from 1 to 1000000" in atlas.log
