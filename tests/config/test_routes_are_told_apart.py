"""Routes and groups: what may stand in them, and what is hardly meant."""

from __future__ import annotations

import pytest

from atlas_pkg.config.model import RouteConfig, Routing
from atlas_pkg.config.summary import summary, warnings_of
from tests.config.samples import UPSTREAM, mistakes, parse, problems

API = UPSTREAM.replace('"a"', '"api1"').replace("0.1", "0.3") + 'group = "api"\n'


def route(*lines: str) -> str:
    return "\n".join(["[[routes]]", *lines, ""])


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ('host = "WWW.Example.com."', RouteConfig(host="www.example.com", status=404)),
        ('host = "*.Example.com"', RouteConfig(host="*.example.com", status=404)),
        ('host = "[2001:DB8::0:1]"', RouteConfig(host="2001:db8::1", status=404)),
        ('path = "/"', RouteConfig(status=404)),
        ('path = "/a%20b/caf%c3%a9"', RouteConfig(path="/a%20b/caf%C3%A9", status=404)),
    ],
)
def test_hosts_and_paths_are_kept_as_requests_are_compared(line: str, kept: RouteConfig) -> None:
    assert parse(route(line, "status = 404")).routes == (kept,)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('host = "a.example:80"', 'write "a.example": ports do not count'),
        ('host = "[::1]:80"', 'write "[::1]": ports do not count'),
        ('host = "*"', "leave host out where any is meant"),
        ('host = "*.10.0.0.1"', 'got "*.10.0.0.1"'),
        ('host = "a*.example.com"', 'got "a*.example.com"'),
        ('path = "/v1/"', 'write "/v1", which is for what is beneath it, too'),
        ('path = "/v1/*"', 'write "/v1", which is for what is beneath it, too'),
        ('path = "/café"', 'write "/caf%C3%A9"'),
        ('path = "v1"', 'got "v1"'),
        ('path = "/a//b"', 'got "/a//b"'),
        ('path = "/a/../b"', 'got "/a/../b"'),
        ('path = "/%61"', 'got "/%61"'),
        ('path = "/a%2Fb"', 'got "/a%2Fb"'),
        ('path = "/a;b"', 'got "/a;b"'),
        ('path = "/a?b"', 'got "/a?b"'),
        ('from = ["10.0.0.1/8"]', 'got "10.0.0.1/8"'),
        ("status = 200", "got 200"),
        ("status = 302", "must be 400 to 599 without redirect, got 302"),
        ("strip = true", "needs group and path"),
        ('group = "a b"', 'got "a b"'),
        ('group = "nobody"\nstatus = 0', 'must be "default", got "nobody"'),
    ],
)
def test_what_is_no_route_is_refused_with_what_to_write(line: str, sentence: str) -> None:
    key = line.partition(" ")[0]
    lines = [line] if "status" in line else [line, "status = 404"]

    told = next(told for told in mistakes(route(*lines)) if told.startswith(f"routes[0].{key}"))

    assert told.endswith(sentence)


@pytest.mark.parametrize(
    "redirect",
    [
        "https://new.example.com{uri}",
        "https://new.example.com:8443/x{path}?{query}#top",
        "http://{host}:8080{path}",
        "https://[::1]/",
        "https://{host}",
        "/elsewhere?from={path}",
        "/{host}/x",
        "/",
    ],
)
def test_redirects_lead_where_the_file_says(redirect: str) -> None:
    assert parse(route(f'redirect = "{redirect}"')).routes == (RouteConfig(redirect=redirect),)


@pytest.mark.parametrize(
    "redirect",
    [
        "{uri}",  # //evil.example is a path, too
        "/{path}",
        "/{query}",
        "//new.example.com",
        "/\\\\new.example.com",
        "https://new.example.com{query}",  # .evil.example
        "https://a@new.example.com/",
        "https://{host}.example.com/",
        "https://new.example.com/{port}",
        "https://new.example.com/ x",
        "https://new.example.com$request_uri",
        "javascript:{path}",
        "ftp://new.example.com/",
    ],
)
def test_a_redirect_that_a_client_could_lead_elsewhere_is_refused(redirect: str) -> None:
    (told,) = mistakes(route(f'redirect = "{redirect}"'))[:1]

    assert told.startswith("routes[0].redirect: must be")


@pytest.mark.parametrize(
    "lines",
    [
        ['path = "/x"'],
        ['group = "default"', "status = 404"],
        ['group = "default"', 'redirect = "/x"'],
    ],
)
def test_a_route_leads_to_exactly_one_thing(lines: list[str]) -> None:
    assert "routes[0].group: exactly one of group, redirect and status is needed" in mistakes(
        route(*lines)
    )


def test_a_mistake_in_a_route_is_told_with_its_line() -> None:
    text = UPSTREAM + route("status = 404") + route('path = "/x"', "status = 99")

    (told,) = problems(text)

    assert told.startswith("atlas.toml:9: routes[1].status: must be 400 to 599, or with redirect")


def test_a_group_lays_its_keys_over_those_of_routing() -> None:
    text = (
        '[routing]\nretries = 2\nstrategy = "random"\n'
        '[groups.api]\nstrategy = "ip_hash"\n[groups.b-1]\n'
    )

    loaded = parse(text + API)

    assert dict(loaded.groups) == {
        "api": Routing(strategy="ip_hash", retries=2),
        "b-1": Routing(strategy="random", retries=2),
    }
    assert loaded.routing_of("default") == loaded.routing
    assert loaded.group_names == ("api", "b-1", "default")


def test_slow_start_is_refused_with_a_hash_in_any_group() -> None:
    text = '[slow_start]\n[groups.api]\nstrategy = "ip_hash"\n' + API

    assert mistakes(text) == [
        (
            'slow_start: cannot be used with groups.api.strategy = "ip_hash": '
            "a hash cannot spare an upstream in part"
        )
    ]


def test_a_group_is_named_in_letters_and_holds_what_routing_holds() -> None:
    (named,) = mistakes('[groups."a b"]\n')
    (key,) = mistakes("[groups.api]\nretrys = 1\n")

    assert named.startswith('groups."a b": must be a name of letters')
    assert key == 'groups.api.retrys: unknown key, did you mean "retries"?'


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ([], ['path = "/a"']),
        (['path = "/a"'], ['path = "/a/b"']),
        (['host = "*.b"'], ['host = "a.b"']),
        (['host = "*.b"'], ['host = "*.a.b"']),
        (['from = ["10.0.0.0/8"]'], ['from = ["10.1.0.0/16", "10.2.0.0/16"]']),
        (['path = "/a"'], ['path = "/a"', 'host = "x"', 'from = ["::1"]']),
    ],
)
def test_a_route_to_which_nothing_is_left_is_warned_of(
    earlier: list[str], later: list[str]
) -> None:
    routes = [route(*lines, "status = 404") for lines in (earlier, later)]

    (warning,) = [told for told in warnings_of(parse("".join(routes))) if "never" in told]
    assert warning.endswith("is never taken: route 1 comes before it")
    assert not [told for told in warnings_of(parse("".join(routes[::-1]))) if "never" in told]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (['path = "/a"'], ['path = "/ab"']),
        (['host = "*.b"'], ['host = "b"']),
        (['host = "a"'], []),
        (['from = ["10.0.0.0/8"]'], []),
        (['from = ["10.0.0.0/8"]'], ['from = ["::1"]']),
    ],
)
def test_a_route_to_which_something_is_left_is_not(earlier: list[str], later: list[str]) -> None:
    text = "".join(route(*lines, "status = 404") for lines in (earlier, later))

    assert not [told for told in warnings_of(parse(text)) if "never" in told]


@pytest.mark.parametrize(
    ("status", "field"),
    [(401, "WWW-Authenticate"), (405, "Allow"), (407, "Proxy-Authenticate"), (426, "Upgrade")],
)
def test_a_fixed_answer_that_lacks_what_it_has_to_say_is_warned_of(status: int, field: str) -> None:
    text = UPSTREAM + route('path = "/x"', f"status = {status}")
    is_settable = field != "Upgrade"
    said = f'[forwarding]\nset_response_fields = {{ {field.lower()} = "x" }}\n'

    assert warnings_of(parse(text)) == [f"route 1 (/x): {status} lacks {field}"]
    assert not is_settable or warnings_of(parse(text + said)) == []


def test_groups_that_nobody_reaches_and_that_reach_nobody_are_warned_of() -> None:
    routes = route('path = "/x"', 'group = "empty"') + route("status = 404")
    text = UPSTREAM + API + "[groups.empty]\n" + routes

    assert warnings_of(parse(text)) == [
        "group default: no route leads to it",
        "group api: no route leads to it",
        "group empty has no upstreams: its requests are answered 503",
    ]


def test_the_same_server_in_two_groups_is_no_mistake() -> None:
    text = UPSTREAM + API.replace("0.3", "0.1") + route('group = "api"', 'path = "/x"')

    assert warnings_of(parse(text)) == []


def test_weights_are_judged_by_the_strategy_of_their_group() -> None:
    text = UPSTREAM + "weight = 3\n" + API + "weight = 3\n" + route('group = "api"', 'path = "/x"')

    assert warnings_of(parse(text + '[groups.api]\nstrategy = "least_connections"\n')) == [
        "upstream a: weight 3 has no effect with round_robin, but with weighted_round_robin"
    ]


def test_the_routing_table_is_told() -> None:
    text = (
        UPSTREAM
        + API
        + route('host = "api.example.com"', 'path = "/v1"', 'group = "api"', "strip = true")
        + route('path = "/old"', 'redirect = "https://new.example.com{uri}"')
        + route('path = "/admin"', 'from = ["10.0.0.0/8", "::1"]', 'group = "default"')
        + route('path = "/admin"', "status = 403")
        + '[groups.api]\nstrategy = "ip_hash"\n'
    )

    assert summary(parse(text)).splitlines()[2:] == [
        "upstreams: 2 in 2 groups",
        "  group default, round_robin",
        "    a  10.0.0.1:3000  weight 1",
        "  group api, ip_hash",
        "    api1  10.0.0.3:3000  weight 1",
        "routes:",
        "   1  api.example.com /v1 → group api, without /v1",
        "   2  /old → 308 https://new.example.com{uri}",
        "   3  /admin from 10.0.0.0/8, ::1/128 → group default",
        "   4  /admin → 403",
        "   -  all others → group default",
    ]
