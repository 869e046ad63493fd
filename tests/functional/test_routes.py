"""One address, many services: which group answers, what is redirected, and who is kept out."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes import Upstream, echoing_fields, named, silent
from tests.functional.admin_client import ADMIN, TOKEN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import Answer, Atlas, Threads, build_config, wait_until

Group = dict[str, object]


def ask(
    atlas: Atlas, target: str = "/", *fields: str, host: str = "example.test", method: str = "GET"
) -> Answer:
    """Ask once, under any host."""
    head = "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""])
    with atlas.client() as client:
        client.send(head.encode())
        return client.read_head() if method == "HEAD" else client.read_answer()


@pytest.fixture
def shop(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("shop"))


@pytest.fixture
def blog(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("blog"))


@pytest.fixture
def rest(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("rest"))


def test_the_first_route_that_matches_decides(
    shop: Upstream, blog: Upstream, rest: Upstream, start: Start
) -> None:
    atlas = start(
        build_config(
            shop.table(group="shop"),
            blog.table(group="blog"),
            rest.table(),
            routes=[
                {"host": "shop.example.com", "path": "/blog", "group": "blog"},
                {"host": "shop.example.com", "group": "shop"},
                {"host": "*.example.com", "group": "blog"},
            ],
        )
    )

    found = [
        ask(atlas, target, host=host).text
        for host, target in [
            ("shop.example.com", "/"),
            ("SHOP.example.com.:8080", "/blog?x"),
            ("shop.example.com", "/blogger"),
            ("a.b.example.com", "/blog"),
            ("example.com", "/"),
            ("elsewhere.test", "/blog"),
        ]
    ]

    assert found == ["shop", "blog", "shop", "blog", "rest", "rest"]


def test_what_a_group_does_not_say_is_as_in_routing(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    a, b = (upstreams.enter_context(named(name)) for name in "ab")
    c, d = (upstreams.enter_context(named(name)) for name in "cd")
    atlas = start(
        build_config(
            a.table(weight=2),
            b.table(),
            c.table(weight=2, group="api"),
            d.table(group="api"),
            routing={"strategy": "weighted_round_robin", "retries": 1},
            routes=[{"path": "/api", "group": "api"}],
            **{"groups.api": {"strategy": "round_robin"}},
        )
    )
    targets = ["/"] * 6 + ["/api"] * 6

    with atlas.client() as client:
        found = Counter(client.get(target).text for target in targets)
        d.close()
        retried = [client.get("/api").text for _ in range(4)]

    assert found == {"a": 4, "b": 2, "c": 3, "d": 3}
    assert retried == ["c"] * 4


def test_a_group_that_is_down_takes_no_other_with_it(
    shop: Upstream, blog: Upstream, start: Start
) -> None:
    atlas = start(
        build_config(
            shop.table(group="shop"),
            blog.table(group="blog"),
            routes=[{"path": "/shop", "group": "shop"}, {"path": "/blog", "group": "blog"}],
            health_check={"interval": 0.05, "fall": 1},
        )
    )
    shop.close()

    wait_until(lambda: ask(atlas, "/shop").status == 503)

    assert ask(atlas, "/blog").text == "blog"
    assert ask(atlas, "/nobody").status == 503  # the group default has no upstreams


def test_each_group_has_a_queue_of_its_own(
    upstreams: contextlib.ExitStack, rest: Upstream, start: Start
) -> None:
    slow = upstreams.enter_context(silent("slow"))
    atlas = start(
        build_config(
            slow.table(group="slow", max_connections=1),
            rest.table(max_connections=1),
            routes=[{"path": "/slow", "group": "slow"}],
            timeouts={"queue": 20.0},
        )
    )

    with atlas.client() as first, atlas.client() as second:
        first.send_head("GET", "/slow")
        wait_until(lambda: slow.requests)
        second.send_head("GET", "/slow")

        assert ask(atlas).text == "rest"


def test_a_browser_keeps_an_upstream_in_each_group(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    tables = []
    for name in "abcd":
        upstream = upstreams.enter_context(echoing_fields(name))
        group = "default" if name in "ab" else "api"
        tables.append(upstream.table(group=group))
    atlas = start(
        build_config(*tables, sticky={"cookie": "keep"}, routes=[{"path": "/api", "group": "api"}])
    )

    jar = [
        ask(atlas, target).get("Set-Cookie").partition(";")[0] for target in ("/", "/api", "/api")
    ]
    cookies = f"Cookie: own=1; {jar[0]}; {jar[1]}"
    answers = [ask(atlas, target, cookies) for target in ("/", "/api") * 3]

    assert [cookie.partition("=")[0] for cookie in jar] == ["keep", "keep-api", "keep-api"]
    assert [answer.get("Set-Cookie") for answer in answers] == [""] * 6
    assert all("Cookie: own=1" in answer.text.splitlines() for answer in answers)


@pytest.mark.parametrize(
    ("redirect", "status", "location"),
    [
        ("https://new.example.com{uri}", 308, "https://new.example.com/a//b/%7Ec?d=/e&{path}"),
        ("https://{host}{path}", 308, "https://example.test/a//b/%7Ec"),
        ("/found?{query}#{host}", 308, "/found?d=/e&{path}#example.test"),
    ],
)
def test_redirects_are_filled_in(redirect: str, status: int, location: str, start: Start) -> None:
    atlas = start(build_config(routes=[{"redirect": redirect}]))

    answer = ask(atlas, "/a//b/%7Ec?d=/e&{path}", host="example.test:8080")

    assert (answer.status, answer.get("Location")) == (status, location)
    assert answer.get("Connection") == ""  # the client may go on


def test_a_redirect_of_a_host_that_is_not_named_is_refused(start: Start) -> None:
    atlas = start(build_config(routes=[{"redirect": "https://{host}{uri}", "status": 301}]))

    with atlas.client() as client:
        client.send(b"GET /x HTTP/1.0\r\n\r\n")

        assert client.read_answer().status == 400
    assert ask(atlas, "/x", host="[::1]:80").get("Location") == "https://[::1]/x"


def test_a_fixed_answer_is_whole_and_keeps_the_connection(start: Start) -> None:
    atlas = start(
        build_config(
            routes=[{"path": "/gone", "status": 410}, {"status": 503}],
            **{"forwarding.set_response_fields": {"X-By": "atlas"}},
        )
    )

    with atlas.client() as client:
        gone, closed = client.get("/gone/x"), client.get("/", Accept="text/html")
    head = ask(atlas, method="HEAD")
    refused = ask(atlas, "/", "Content-Length: 5", method="POST")

    assert (gone.status, gone.text, gone.get("X-By")) == (410, "410 Gone\n", "atlas")
    assert closed.status == 503
    assert closed.get("Retry-After")
    assert "<h1>503 Service Unavailable</h1>" in closed.text
    assert (head.status, int(head.get("Content-Length")) > 0) == (503, True)
    assert (refused.status, refused.get("Connection")) == (503, "close")


def test_a_fence_holds_whatever_the_upstream_makes_of_a_path(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(echoing_fields())
    atlas = start(
        build_config(
            upstream.table(),
            routes=[
                {"path": "/admin", "from": ["192.0.2.0/24"], "group": "default"},
                {"path": "/admin", "status": 403},
            ],
        )
    )

    def statuses(*targets: str) -> list[int]:
        return [ask(atlas, target).status for target in targets]

    assert statuses("/admin", "/%61dmin/x", "//admin", "/x/../admin", "/x;/..;y/admin") == [403] * 5
    assert statuses("/x%2F..%2fadmin", "/x/%252e%252e/admin", "/x/..\\admin") == [403] * 3
    assert statuses("/%00/admin", "/%c0%ae%c0%ae/admin", "/%u002e/admin") == [400] * 3
    assert statuses("/ADMIN", "/adminx", "/x;/y//z", "/a%2Fb", "/caf%C3%A9?/../admin") == [200] * 5


def test_whoever_is_let_through_is_known_by_what_trusted_proxies_say(
    rest: Upstream, start: Start
) -> None:
    atlas = start(
        build_config(
            rest.table(),
            routes=[
                {"from": ["198.51.100.0/24", "2001:db8::/32"], "group": "default"},
                {"status": 403},
            ],
            forwarding={"trusted_proxies": ["127.0.0.1"]},
        )
    )

    def status(said: str) -> int:
        return ask(atlas, "/", f"X-Forwarded-For: {said}").status

    assert status("198.51.100.7") == 200
    assert status("2001:db8::7") == 200
    assert status("198.51.100.7, 203.0.113.9") == 403
    assert status("203.0.113.9") == 403
    assert ask(atlas).status == 403


def test_what_is_stripped_the_upstream_is_told(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(echoing_fields())
    atlas = start(
        build_config(
            upstream.table(group="api"),
            routes=[
                {"path": "/api/admin", "status": 403},
                {"path": "/api/v1", "group": "api", "strip": True},
            ],
        )
    )

    def told(target: str, *fields: str) -> tuple[str, list[str]]:
        line, *rest = ask(atlas, target, *fields).text.splitlines()
        return line.split()[1], [field for field in rest if "prefix" in field.lower()]

    said = ["X-Forwarded-Prefix: /api/v1"]
    assert told("/api/v1") == ("/", said)
    assert told("/api/v1?x=/y", "X-Forwarded-Prefix: /lie") == ("/?x=/y", said)
    assert told("/%61pi/v1/a%2Fb/?", "X_Forwarded_Prefix: /lie") == ("/a%2Fb/?", said)
    # To the upstream these would be /../admin and //../admin.
    assert ask(atlas, "/api/v1/../admin").status == 403
    assert ask(atlas, "/api/v1//../../admin").status in (400, 403)


def test_routes_and_groups_change_while_clients_ask(
    shop: Upstream, blog: Upstream, start: Start
) -> None:
    limits = {"requests_per_connection": 1_000_000}
    one = build_config(shop.table(), blog.table(), limits=limits)
    two = build_config(
        shop.table(group="shop"),
        blog.table(group="blog"),
        routes=[{"path": "/", "host": "*.test", "group": "shop"}],
        health_check={"interval": 0.1},
        limits=limits,
        **{"groups.blog": {"strategy": "least_connections"}},
    )
    three = build_config(shop.table(), routes=[{"redirect": "/x"}], limits=limits)
    atlas = start(one)
    is_over = False

    def go_on() -> Counter[int]:
        found: Counter[int] = Counter()
        with atlas.client() as client:
            while not is_over:
                found[client.get().status] += 1
        return found

    threads = Threads()
    for _ in range(4):
        threads.start(go_on)
    for _ in range(3):
        for text in (two, three, one):
            atlas.reload(text)
    is_over = True
    found = sum(threads.join(), Counter())

    assert set(found) == {200, 308}
    assert "routes: added *.test → group shop" in atlas.log
    assert "groups.blog: added" in atlas.log


def test_all_that_shows_upstreams_shows_their_groups(
    shop: Upstream, rest: Upstream, tmp_path: Path, start: Start
) -> None:
    atlas = start(
        build_config(
            shop.table(group="shop"),
            rest.table(),
            {"name": "gone", "address": "127.0.0.1", "port": 9, "group": "empty"},
            routes=[
                {"path": "/shop", "group": "shop"},
                {"path": "/gone", "group": "empty"},
                {"path": "/closed", "status": 503},
            ],
            log={"access": "access.log", "format": "json"},
            admin=ADMIN,
        ),
        "--explain",
    )
    admin = AdminClient(atlas)
    targets = ("/shop", "/gone", "/closed", "/")
    for target in targets:
        ask(atlas, target)
    route = "route 1 (/shop) → group shop"

    log = tmp_path / "access.log"
    wait_until(lambda: log.read_text().count("\n") == 4)
    found = {(entry := json.loads(line))["target"]: entry for line in log.read_text().splitlines()}
    entries = [found[target] for target in targets]
    assert [(entry["group"], entry["upstream"]) for entry in entries] == [
        ("shop", "shop"),
        ("empty", "gone"),
        (None, None),
        ("default", "rest"),
    ]
    assert [entry["route"] and entry["route"][:7] for entry in entries] == [
        *(f"route {number}" for number in (1, 2, 3)),
        None,
    ]
    assert (entries[2]["end"], entries[2]["status"]) == ("route", 503)
    atlas.wait_for("upstream gone of group empty connect: connection refused")

    _, metrics = admin.ask("/metrics")
    for group, upstream, kind in (
        ("shop", "shop", "2xx"),
        ("empty", "-", "5xx"),
        ("-", "-", "5xx"),
    ):
        labels = f'group="{group}",upstream="{upstream}",code_class="{kind}"'
        assert f"atlas_requests_total{{{labels}}} 1" in metrics
    _, status = admin.ask("/status.txt")
    assert re.search(r"^upstream +group +address", status, re.MULTILINE)
    assert re.search(r"^shop +shop +127", status, re.MULTILINE)
    stats = json.loads(admin.ask("/stats.json")[1])
    assert [item["group"] for item in stats["upstreams"]] == ["shop", "default", "empty"]
    assert {error["group"] for error in stats["errors"]} == {"empty", "-"}
    exchanges = json.loads(admin.ask("/explain.json?upstream=shop")[1])["exchanges"]
    assert [item["route"] for item in exchanges] == [route]
    atlas.wait_for(f"  {route}", printed=True)


def test_an_upstream_of_a_group_is_steered_by_its_name(
    shop: Upstream, rest: Upstream, start: Start
) -> None:
    text = build_config(
        shop.table(group="shop"),
        rest.table(),
        routes=[{"path": "/shop", "group": "shop"}],
        admin=ADMIN,
    )
    atlas = start(text)
    admin = AdminClient(atlas)

    status, _ = admin.ask(
        "/-/upstreams/shop", "POST", "state=maintenance", {"Authorization": f"Bearer {TOKEN}"}
    )

    assert status == 200
    assert ask(atlas, "/shop").status == 503
    assert ask(atlas).text == "rest"
