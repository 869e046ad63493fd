"""Which route a request takes, and that nobody gets around a fence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.config.loader import parse_config
from atlas_pkg.errors import ClientError
from atlas_pkg.http1.target import find_readings, without_prefix
from atlas_pkg.serving.generation import Generation
from tests.serving.route_cases import CASES, GROUPS, PAGE, ROUTES


def build(routes: str, *groups: str) -> Generation:
    upstreams = "".join(
        f'[[upstreams]]\nname = "{name}"\naddress = "192.0.2.1"\nport = 80\ngroup = "{name}"\n'
        for name in groups
    )
    return Generation(parse_config((upstreams + routes).encode(), Path("atlas.toml"), {}))


def settle(generation: Generation, host: str, target: str, address: str = "192.0.2.7") -> str:
    """What becomes of a request, as in `CASES`."""
    head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"
    request = generation.parser.parse_request(head.encode())
    client = generation.forwarder.describe_client(address, "http")
    assert generation.router is not None
    try:
        route = generation.router.find(request, client)
    except ClientError as error:
        return str(error.status)
    if route is None:
        return "default"
    if not route.group:
        return str(route.status)
    told = without_prefix(request.target, route.strip) if route.strip else request.target
    return f"{route.group} {told.decode()}"


TABLE = build(ROUTES, *GROUPS)


@pytest.mark.parametrize(("host", "target", "outcome"), CASES)
def test_paths_and_hosts(host: str, target: str, outcome: str) -> None:
    assert settle(TABLE, host, target) == outcome


def test_the_page_beside_the_example_has_these_cases() -> None:
    rows = re.findall(r"^\| `(.*?)` \| `(.*?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    told = [
        (target if host == "www.example.com" else f"{host} {target}", outcome)
        for host, target, outcome in CASES
    ]
    assert rows == told, "run: python -m tests.serving.route_cases"
    assert len(rows) >= 60


def test_whoever_lists_what_is_open_is_not_got_around_either() -> None:
    generation = build(
        '[[routes]]\npath = "/public"\ngroup = "web"\n[[routes]]\nstatus = 403', "web"
    )

    def found(target: str) -> str:
        return settle(generation, "h", target).partition(" ")[0]

    assert [found(target) for target in ("/public", "/public/a/../b", "/public//a%2Fb;c")] == [
        "web"
    ] * 3
    assert found("/public/../private") == "403"
    assert found("/public/..%2f..;/private") == "403"
    assert found("/public/..%c0%af/private") == "400"


def test_a_name_of_any_length_is_known_by_its_end() -> None:
    for labels in (100, 10_000):
        host = "a." * labels + "shop.example.com:80"

        assert settle(TABLE, host, "/") == "shop /"
        assert settle(TABLE, f"{'a' * labels}shop.example.com", "/") == "web /"


@pytest.mark.parametrize("behind", [":" + "0" * 600 + "80", "." * 600])
def test_nobody_gets_around_a_fence_with_what_is_no_part_of_the_name(behind: str) -> None:
    """nginx takes `admin.example.com:000…080` for admin.example.com."""
    generation = build('[[routes]]\nhost = "admin.example.com"\nstatus = 403\n')

    assert settle(generation, f"admin.example.com{behind}", "/") == "403"


def test_a_route_for_some_clients_is_a_fence() -> None:
    generation = build(
        '[[routes]]\npath = "/a"\nfrom = ["192.0.2.0/24", "2001:db8::/32"]\ngroup = "inner"\n'
        '[[routes]]\npath = "/a"\nstatus = 404\n[[routes]]\ngroup = "outer"\n',
        *("inner", "outer"),
    )

    assert settle(generation, "h", "/a/x") == "inner /a/x"
    assert settle(generation, "h", "/a/x", "2001:db8::1") == "inner /a/x"
    assert settle(generation, "h", "/a/x", "198.51.100.1") == "404"
    # Whoever may go in is not kept out of what else there is.
    assert settle(generation, "h", "/x/../a") == "inner /x/../a"
    assert settle(generation, "h", "/a/../x") == "inner /a/../x"
    assert settle(generation, "h", "/x/../a", "198.51.100.1") == "404"


def test_where_readings_lead_to_different_fences_nobody_decides() -> None:
    routes = "".join(
        f'[[routes]]\npath = "/{name}"\nfrom = ["192.0.2.0/24"]\ngroup = "{name}"\n'
        for name in ("a", "b")
    )
    generation = build(routes, "a", "b")

    assert settle(generation, "h", "/x/../a//../b") == "400"


def test_what_no_fence_is_concerned_with_passes_as_it_is() -> None:
    generation = build('[[routes]]\npath = "/a"\ngroup = "a"\n', "a")

    assert settle(generation, "h", "/x/../a/%00%zz") == "default"
    assert settle(generation, "h", "/a/../%c0%af") == "a /a/../%c0%af"


@pytest.mark.parametrize("number", [0, 50, 99])
def test_of_a_hundred_routes_the_first_in_the_file_is_taken(number: int) -> None:
    names = [f"g{index}" for index in range(100)]
    routes = "".join(
        f'[[routes]]\npath = "/s{index}/t"\ngroup = "{name}"\n' for index, name in enumerate(names)
    )
    wide = '[[routes]]\npath = "/s50"\ngroup = "wide"\n'
    generation = build(routes + wide, *names, "wide")

    assert settle(generation, "h", f"/s{number}/t/u") == f"g{number} /s{number}/t/u"
    assert settle(generation, "h", "/s50/x") == "wide /s50/x"
    assert settle(build(wide + routes, *names, "wide"), "h", "/s50/t") == "wide /s50/t"


PIECES = (
    "a",
    "admin",
    "/",
    "//",
    ".",
    "..",
    "/../",
    "%2e",
    "%2F",
    "%252e",
    "%5c",
    "\\",
    ";",
    ";x=1",
    "%3B",
    "%3f",
    "%61",
    "%25",
    "?",
)


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_no_server_that_normalises_finds_what_is_fenced_off(pieces: list[str]) -> None:
    """Whatever a server may make of a path that is let through, it is not /admin."""
    path = "/" + "".join(pieces).partition("?")[0]
    outcome = settle(TABLE, "www.example.com", path)

    if outcome in {"403", "400"}:
        return
    told = outcome.partition(" ")[2].partition("?")[0]
    prefix = "/v1" if told != path else ""
    readings = find_readings((prefix + told).encode())
    assert readings is not None
    assert not [one for one in readings if re.match(rb"/admin(?:/|\Z)", one)]
