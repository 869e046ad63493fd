"""What would go wrong at the start, or is hardly meant, is said before."""

from __future__ import annotations

import pytest

from atlas_pkg.config import summary
from atlas_pkg.config.summary import warnings_of
from tests.config.samples import UPSTREAM, UPSTREAMS, parse, problems

# What is allowed and yet hardly meant


@pytest.mark.parametrize("strategy", ["round_robin", "random"])
def test_a_weight_without_effect_is_warned_of(strategy: str) -> None:
    text = f'{UPSTREAMS}weight = 3\n[routing]\nstrategy = "{strategy}"'

    assert warnings_of(parse(text)) == [
        f"upstream b: weight 3 has no effect with {strategy}, but with weighted_round_robin"
    ]


@pytest.mark.parametrize("weight", [0, 1])
def test_a_weight_of_0_or_1_has_its_effect_with_every_strategy(weight: int) -> None:
    assert warnings_of(parse(f"{UPSTREAMS}weight = {weight}")) == []


@pytest.mark.parametrize(
    "strategy",
    ["weighted_round_robin", "least_connections", "power_of_two", "ip_hash", "consistent_hash"],
)
def test_strategies_that_heed_weights_are_not_warned_of(strategy: str) -> None:
    assert warnings_of(parse(f'{UPSTREAMS}weight = 3\n[routing]\nstrategy = "{strategy}"')) == []


def test_weights_that_are_all_0_are_warned_of() -> None:
    text = UPSTREAM + "weight = 0\n" + UPSTREAM.replace('"a"', '"b"').replace("3000", "1")

    assert warnings_of(parse(text + "weight = 0")) == [
        "the weight of every upstream is 0: no new client is served"
    ]
    assert warnings_of(parse(text)) == []


def test_a_server_that_is_there_twice_is_warned_of() -> None:
    text = UPSTREAM.replace("10.0.0.1", "App.example")

    assert warnings_of(parse(text + text.replace('"a"', '"b"').lower())) == [
        "upstreams a, b are the same server, app.example:3000"
    ]
    assert warnings_of(parse(text + text.replace('"a"', '"b"').replace("3000", "3001"))) == []


@pytest.mark.parametrize("value", ["$remote_addr", "for=%[src]", "{remote_host}"])
@pytest.mark.parametrize("table", ["set_request_fields", "set_response_fields"])
def test_another_programs_variable_is_warned_of(table: str, value: str) -> None:
    text = f'{UPSTREAM}[forwarding.{table}]\nX-Real-IP = "{value}"'

    assert warnings_of(parse(text)) == [
        f"forwarding.{table}: X-Real-IP is sent as it stands: there are no variables"
    ]


@pytest.mark.parametrize("value", ["max-age=1", '{"group": "a"}', "US$ 5", "100%"])
def test_a_value_that_holds_no_variable_is_not_warned_of(value: str) -> None:
    assert warnings_of(parse(f"{UPSTREAM}[forwarding.set_response_fields]\nX = '{value}'")) == []


def test_the_summary_ends_with_the_warnings() -> None:
    told = summary.summary(parse(UPSTREAM + "weight = 3"))

    assert told.endswith(
        "warnings:\n"
        "  upstream a: weight 3 has no effect with round_robin, but with weighted_round_robin"
    )


# What cannot be started


@pytest.mark.parametrize(
    ("listen", "upstream"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.8.8.8"),
        ("0.0.0.0", "localhost"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "[::1]"),
        ("::", "127.0.0.1"),
        ("::", "LOCALHOST"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("localhost", "::1"),
        ("::1", "::"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8::1", "2001:db8:0::1"),
        ("app.example", "App.Example"),
    ],
)
def test_an_upstream_that_is_atlas_itself_is_refused(listen: str, upstream: str) -> None:
    text = UPSTREAM.replace("10.0.0.1", upstream) + f'[listen]\naddress = "{listen}"\nport = 3000\n'

    (problem,) = problems(text)

    assert problem.startswith("atlas.toml:1: upstreams[0]: is Atlas itself, which listens on ")
    assert problem.endswith(':3000 (name = "a")')


@pytest.mark.parametrize(
    ("listen", "upstream", "port"),
    [
        ("0.0.0.0", "127.0.0.1", 3001),
        ("0.0.0.0", "127.0.0.1", 0),
        ("0.0.0.0", "10.0.0.1", 3000),
        ("0.0.0.0", "app.example", 3000),
        ("0.0.0.0", "::1", 3000),
        ("127.0.0.1", "127.0.0.2", 3000),
        ("::1", "127.0.0.1", 3000),
        ("10.0.0.1", "127.0.0.1", 3000),
    ],
)
def test_an_upstream_that_may_be_another_server_is_accepted(
    listen: str, upstream: str, port: int
) -> None:
    text = f'[listen]\naddress = "{listen}"\nport = {port}\n'

    assert parse(UPSTREAM.replace("10.0.0.1", upstream) + text).listen.port == port


@pytest.mark.parametrize(
    ("listen", "admin"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("localhost", "127.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_an_admin_port_that_is_taken_by_the_listener_is_refused(listen: str, admin: str) -> None:
    text = f'[listen]\naddress = "{listen}"\n[admin]\naddress = "{admin}"\nport = '

    assert problems(text + "8080") == [
        "atlas.toml:5: admin.port: must not be one of [listen], got 8080"
    ]
    assert parse(text + "8081").admin is not None


def test_one_port_on_two_addresses_is_accepted() -> None:
    assert parse('[listen]\naddress = "10.0.0.1"\n[admin]\nport = 8080').admin is not None
    assert parse("[listen]\nport = 0\n[admin]\nport = 0").admin is not None
