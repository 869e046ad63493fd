"""The tables for fine-tuning: what may be written in them, and how one is laid over another."""

from __future__ import annotations

import pytest

from atlas_pkg.config import rules, summary
from atlas_pkg.config.diff import live_changes, restart_changes
from atlas_pkg.config.model import (
    Admin,
    CircuitBreaker,
    Config,
    HealthCheck,
    Routing,
    SlowStart,
    Sticky,
    UpstreamConfig,
)
from atlas_pkg.config.rules import Statuses
from tests.config.reference import example_file
from tests.config.samples import NAME, UPSTREAMS, mistakes, parse


def checks(text: str) -> list[HealthCheck | None]:
    """Return the checks in force for each upstream."""
    return [upstream.health_check for upstream in parse(text).upstreams]


def test_without_the_tables_the_features_are_off() -> None:
    loaded = parse(UPSTREAMS)

    assert loaded.health_check is None
    assert loaded.circuit_breaker is None
    assert loaded.sticky is None
    assert loaded.slow_start is None
    assert checks(UPSTREAMS) == [None, None]


def test_an_empty_table_is_the_feature_with_its_defaults() -> None:
    loaded = parse("[health_check]\n[circuit_breaker]\n[sticky]\n[slow_start]")

    assert loaded == Config(
        NAME,
        health_check=HealthCheck(),
        circuit_breaker=CircuitBreaker(),
        sticky=Sticky(),
        slow_start=SlowStart(),
    )


def test_every_key_may_be_written() -> None:
    loaded = parse(
        """
        [health_check]
        path = "/health?full=1"
        interval = 5
        timeout = 1.5
        rise = 1
        fall = 2
        expect = "200,204,300-302"
        host = "app.example:8080"
        [circuit_breaker]
        failures = 1
        open_for = 1
        max_open_for = 1
        half_open_requests = 3
        statuses = [502, 503]
        [sticky]
        cookie = "__Host-app"
        secret = "${SECRET}"
        max_age = 3600
        secure = true
        same_site = "None"
        path = "/"
        [slow_start]
        duration = 10
        """,
        {"SECRET": "from the environment"},
    )

    assert loaded == Config(
        NAME,
        health_check=HealthCheck(
            path="/health?full=1",
            interval=5.0,
            timeout=1.5,
            rise=1,
            fall=2,
            expect=Statuses("200,204,300-302"),
            host="app.example:8080",
        ),
        circuit_breaker=CircuitBreaker(1, 1.0, 1.0, 3, (502, 503)),
        sticky=Sticky("__Host-app", "from the environment", 3600, True, "None", "/"),
        slow_start=SlowStart(10.0),
    )


# Health checks


def test_a_file_of_the_first_atlas_with_its_spellings_loads() -> None:
    text = UPSTREAMS + '[upstreams.health_check]\ninterval_secs = 10\ntimeout_secs = 5\npath = "/h"'

    assert checks(text) == [None, HealthCheck(path="/h", interval=10.0, timeout=5.0)]


def test_the_common_checks_hold_for_every_upstream() -> None:
    text = UPSTREAMS + '[health_check]\npath = "/health"'

    assert checks(text) == [HealthCheck(path="/health")] * 2


def test_an_upstreams_own_checks_are_laid_over_the_common_ones_key_by_key() -> None:
    text = UPSTREAMS + (
        "[upstreams.health_check]\ninterval_secs = 10\nrise = 2\n"
        '[health_check]\npath = "/health"\ninterval = 20\nrise = 7\ntimeout_secs = 1\n'
    )

    common, own = checks(text)

    assert common == HealthCheck(path="/health", interval=20.0, timeout=1.0, rise=7)
    assert own == HealthCheck(path="/health", interval=10.0, timeout=1.0, rise=2)


def test_an_upstream_may_ask_for_a_connect_where_others_have_a_path() -> None:
    text = UPSTREAMS + '[upstreams.health_check]\npath = ""\n[health_check]\npath = "/health"'

    assert checks(text) == [HealthCheck(path="/health"), HealthCheck(path="")]


def test_a_mistake_in_the_common_checks_is_told_once() -> None:
    text = UPSTREAMS + "[upstreams.health_check]\nrise = 3\n[health_check]\nfall = 0"

    assert mistakes(text) == ["health_check.fall: must be 1 to 1000, got 0"]


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("200-399", {200, 301, 399}, {199, 400, 503}),
        ("200", {200}, {199, 201}),
        ("200,204,300-302", {200, 204, 300, 302}, {201, 299, 303}),
        (" 200 - 201 , 500 ", {200, 201, 500}, {202}),
        ("100-599", {100, 599}, set()),
    ],
)
def test_expected_statuses_are_read_as_ranges(
    text: str, inside: set[int], outside: set[int]
) -> None:
    statuses = Statuses(text)

    assert all(status in statuses for status in inside)
    assert not any(status in statuses for status in outside)


def test_statuses_are_equal_whatever_they_are_written_like() -> None:
    assert Statuses("200-399") == Statuses("300-399, 200-299")
    assert hash(Statuses("200-201")) == hash(Statuses("200,201"))
    assert Statuses("200") != Statuses("201")
    assert str(Statuses("200,204")) == '"200,204"'


@pytest.mark.parametrize(
    "text", ["", "ok", "2xx", "200-", "-299", "299-200", "99", "600", "0200", "200;204", "200,,201"]
)
def test_what_is_no_list_of_statuses_is_refused(text: str) -> None:
    allowed = 'status codes like "200-399" or "200,204,300-302"'

    told = mistakes(f'[health_check]\nexpect = "{text}"')

    assert told == [f'health_check.expect: must be {allowed}, got "{text}"']


@pytest.mark.parametrize("path", ["health", "http://a/", " /", "/a b", "/a#b", "/ä", "/\\t"])
def test_a_path_that_cannot_be_asked_for_is_refused(path: str) -> None:
    (problem,) = mistakes(f'[health_check]\npath = "{path}"')

    assert problem.startswith('health_check.path: must be empty, or a path that begins with "/"')


@pytest.mark.parametrize("host", ["", "a", "a.b:1", "[::1]", "[::1]:80", "10.0.0.1:65535"])
def test_the_host_field_of_probes_may_be_set(host: str) -> None:
    assert parse(f'[health_check]\nhost = "{host}"').health_check == HealthCheck(host=host)


@pytest.mark.parametrize("host", ["a b", "a:", "a:0", "a:65536", ":80", "[::1", "::1", "a/b", "ä"])
def test_what_is_no_host_field_is_refused(host: str) -> None:
    assert mistakes(f'[health_check]\nhost = "{host}"') == [
        f'health_check.host: must be empty, or a host with an optional port, got "{host}"'
    ]


# The circuit breaker


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("failures = 0", "failures: must be 1 to 1000000, got 0"),
        ("half_open_requests = 0", "half_open_requests: must be 1 to 1000, got 0"),
        ("open_for = 0", "open_for: must be 0.001 to 1000000000, got 0"),
        ("statuses = [99]", "statuses[0]: must be 100 to 599, got 99"),
        ("statuses = [600]", "statuses[0]: must be 100 to 599, got 600"),
        ("statuses = 503", "statuses: must be an array, got 503"),
        ('statuses = ["503"]', 'statuses[0]: must be an integer (100 to 599), got "503"'),
        ("open_for = 301", "max_open_for: must be at least open_for (301), got 300"),
    ],
)
def test_a_breaker_that_makes_no_sense_is_refused(line: str, sentence: str) -> None:
    assert mistakes(f"[circuit_breaker]\n{line}") == [f"circuit_breaker.{sentence}"]


# Sticky sessions


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('cookie = ""', 'cookie: must be a cookie name, got ""'),
        ('cookie = "a b"', 'cookie: must be a cookie name, got "a b"'),
        ('cookie = "a;b"', 'cookie: must be a cookie name, got "a;b"'),
        ('same_site = "lax"', 'same_site: must be "Strict", "Lax" or "None", got "lax"'),
        ('same_site = "None"', 'same_site: "None" needs secure = true'),
        ('cookie = "__Secure-a"', 'cookie: "__Secure-a" needs secure = true'),
        (
            'cookie = "__Host-a"\nsecure = true\npath = "/a"',
            'cookie: "__Host-a" needs path = "/"',
        ),
        ('path = "a"', 'path: must be a path that begins with "/", without spaces and ";"'),
        ('path = "/a;b"', 'path: must be a path that begins with "/", without spaces and ";"'),
        ("max_age = -1", "max_age: must be 0 to 2147483647, got -1"),
        ("max_age = 0.5", "max_age: must be a number of seconds (0 to 2147483647), got 0.5"),
    ],
)
def test_a_cookie_that_browsers_would_not_keep_is_refused(lines: str, sentence: str) -> None:
    (problem,) = mistakes(f"[sticky]\n{lines}")

    assert problem.startswith(f"sticky.{sentence}")


def test_the_secret_is_never_printed() -> None:
    loaded = parse('[sticky]\nsecret = "hunter2"')
    changed = parse('[sticky]\nsecret = "hunter3"')
    told = [repr(loaded), summary.summary(loaded), *live_changes(loaded, changed)]
    told += mistakes("[sticky]\nsecret = 8271")
    told += mistakes('[sticky]\nsecret = "hunter2"\nsame_site = "None"')

    assert live_changes(loaded, changed) == ("sticky.secret: changed",)
    assert not any(secret in text for text in told for secret in ("hunter", "8271"))


# Administration


def test_the_admin_port_is_off_until_it_is_asked_for() -> None:
    assert parse(UPSTREAMS).admin is None
    assert parse("[admin]").admin == Admin("127.0.0.1", 9090, "")


def test_every_key_of_the_admin_port_may_be_written() -> None:
    loaded = parse(
        '[admin]\naddress = "[::1]"\nport = 0\ntoken = "${SECRET}"',
        {"SECRET": "from the environment"},
    )

    assert loaded.admin == Admin("::1", 0, "from the environment")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("port = 65536", "admin.port: must be 0 to 65535, got 65536"),
        ('address = ""', 'admin.address: must be an IPv4 or IPv6 address or a host name, got ""'),
        ("token = 1", "admin.token: must be printable US-ASCII without spaces at its ends"),
        ('token = "a\\n"', "admin.token: must be printable US-ASCII without spaces at its ends"),
        ('tokn = ""', 'admin.tokn: unknown key, did you mean "token"?'),
    ],
)
def test_an_admin_port_that_cannot_be_is_refused(line: str, sentence: str) -> None:
    assert mistakes(f"[admin]\n{line}") == [sentence]


def test_the_admin_port_needs_a_restart() -> None:
    off, on = parse("[log]"), parse("[admin]")
    other = parse('[admin]\naddress = "::1"\nport = 1\ntoken = "x"')

    assert restart_changes(off, on) == restart_changes(on, off) == ("admin",)
    assert restart_changes(on, other) == ("admin.address", "admin.port", "admin.token")
    assert live_changes(off, on) == live_changes(on, other) == ()


def test_the_token_is_never_printed() -> None:
    loaded = parse('[admin]\ntoken = "hunter2"')

    told = [repr(loaded), summary.summary(loaded), *restart_changes(loaded, parse("[admin]"))]

    assert not any("hunter" in text for text in told)


# Slow start, and what concerns several tables


@pytest.mark.parametrize("strategy", ["ip_hash", "consistent_hash"])
def test_slow_start_is_refused_with_the_hashes(strategy: str) -> None:
    loaded = Config(NAME, routing=Routing(strategy), slow_start=SlowStart())

    ((place, sentence),) = loaded.clashes()

    assert place == "slow_start"
    assert sentence == (
        f'cannot be used with routing.strategy = "{strategy}": '
        "a hash cannot spare an upstream in part"
    )


@pytest.mark.parametrize("strategy", ["round_robin", "weighted_round_robin", "random"])
def test_slow_start_goes_with_the_other_strategies(strategy: str) -> None:
    assert parse(f'[routing]\nstrategy = "{strategy}"\n[slow_start]').slow_start == SlowStart()


def test_what_clashes_is_told_together_with_all_other_mistakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Config, "clashes", lambda _: iter([("slow_start", "does not fit")]))

    told = mistakes('[listen]\nport = 99999\n[slow_start]\n[sticky]\nsame_site = "None"')

    assert [problem.partition(":")[0] for problem in told] == [
        "listen.port",
        "sticky.same_site",
        "slow_start",
    ]


def test_a_changed_check_is_named_for_the_upstreams_that_it_concerns() -> None:
    before = UPSTREAMS + "[upstreams.health_check]\nfall = 1\n"

    (change,) = live_changes(parse(before), parse(before + 'path = "/x"\nexpect = "200,204"'))

    assert change == (
        'upstreams: changed b (health_check.path "" -> /x, '
        'health_check.expect 200-399 -> "200,204")'
    )


def test_equal_checks_written_differently_are_no_change() -> None:
    short = UPSTREAMS + "[health_check]\ninterval_secs = 5"
    long = UPSTREAMS + '[health_check]\ninterval = 5.0\nexpect = "200-299,300-399"'

    assert live_changes(parse(short), parse(long)) == ()


def test_the_reference_has_the_tables_and_no_secret() -> None:
    text = example_file()

    assert "#interval = 10.0 " in text
    assert '#expect = "200-399"' in text
    assert '#secret = "" ' in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("client_ip", ("client_ip", "")),
        ("path", ("path", "")),
        ("header:X-User", ("header", "X-User")),
        ("cookie:user", ("cookie", "user")),
    ],
)
def test_what_is_hashed_on_is_taken_apart(text: str, parts: tuple[str, str]) -> None:
    assert rules.parse_hash_on(text) == parts


@pytest.mark.parametrize(
    "text", ["", "ip", "path:", "client_ip:x", "header:", "cookie:a b", "Path"]
)
def test_what_cannot_be_hashed_on_is_refused(text: str) -> None:
    (problem,) = mistakes(f'[routing]\nhash_on = "{text}"')

    assert problem.startswith('routing.hash_on: must be "client_ip", "path", "header:NAME" or')


def test_upstreams_keep_what_else_is_said_of_them() -> None:
    loaded = parse(UPSTREAMS + 'weight = 3\n[health_check]\npath = "/"')

    assert loaded.upstreams[1] == UpstreamConfig(
        "b", "10.0.0.2", 3000, weight=3, health_check=HealthCheck(path="/")
    )
