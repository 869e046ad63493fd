"""What has changed is said in a few words, and a whole configuration on one screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from atlas_pkg.config.diff import live_changes, restart_changes
from atlas_pkg.config.model import Config, UpstreamConfig
from atlas_pkg.config.summary import summary
from tests.config.samples import NAME, UPSTREAM, parse


def test_live_and_restart_changes_are_told_apart() -> None:
    old = parse(UPSTREAM + "[listen]\nport = 1")
    new = parse(
        '[listen]\nport = 2\naddress = "::1"\npin = false\nmax_connections = 9\n'
        '[routing]\nstrategy = "random"\n' + UPSTREAM
    )

    assert restart_changes(old, new) == ("listen.address", "listen.port", "listen.pin")
    assert live_changes(old, new) == (
        "listen.max_connections: 4096 -> 9",
        "routing.strategy: round_robin -> random",
    )


def test_changed_upstreams_are_one_phrase() -> None:
    old = Config(NAME, upstreams=(UpstreamConfig("a", "h", 1), UpstreamConfig("b", "h", 2)))
    new = Config(
        NAME, upstreams=(UpstreamConfig("b", "h", 2, weight=3), UpstreamConfig("c", "h", 3))
    )

    assert live_changes(old, new) == ("upstreams: added c, removed a, changed b (weight 1 -> 3)",)
    assert live_changes(old, replace(old, upstreams=old.upstreams[::-1])) == (
        "upstreams: reordered",
    )


def with_checks(interval: int, path: str = "", common: str = "/") -> Config:
    """Two upstreams under common checks, the second perhaps with a path of its own."""
    own = f'[upstreams.health_check]\npath = "{path}"\n' if path else ""
    checks = f'[health_check]\ninterval = {interval}\npath = "{common}"\n'
    return parse(checks + UPSTREAM + UPSTREAM.replace('"a"', '"b"') + own)


def test_changed_health_checks_are_told_once() -> None:
    told = "health_check.interval: 5.0 -> 10.0"

    assert live_changes(with_checks(5), with_checks(10)) == (told,)
    assert live_changes(with_checks(5, "/b"), with_checks(10, "/b")) == (told,)
    assert live_changes(with_checks(5, "/b"), with_checks(10, "/c")) == (
        "upstreams: changed b (health_check.path /b -> /c)",
        told,
    )
    assert live_changes(with_checks(5), with_checks(5, "/b")) == (
        "upstreams: changed b (health_check.path / -> /b)",
    )
    assert live_changes(parse(UPSTREAM), parse("[health_check]\n" + UPSTREAM)) == (
        "health_check: added",
    )


def test_equal_configurations_have_no_changes() -> None:
    old, new = parse(UPSTREAM), parse(UPSTREAM)

    assert live_changes(old, new) == restart_changes(old, new) == ()
    assert live_changes(old, replace(new, path=Path("moved.toml"))) == ()


def test_secrets_are_in_no_change_and_no_summary() -> None:
    old = parse(UPSTREAM)
    new = parse('[forwarding]\nset_request_fields = { Authorization = "hush" }\n' + UPSTREAM)

    told = "\n".join((*live_changes(old, new), summary(new)))

    assert "hush" not in told
    assert live_changes(old, new) == ("forwarding.set_request_fields: changed",)


def test_the_summary_fits_one_screen() -> None:
    text = "[timeouts]\nconnect = 3\n[listen]\naddress = '::1'\nport = 80\n" + UPSTREAM

    assert summary(parse(text)) == (
        "atlas.toml: valid\n"
        "listen: [::1]:80, mode http\n"
        "upstreams: 1, round_robin\n"
        "  a  10.0.0.1:3000  weight 1\n"
        "not at their defaults:\n"
        "  timeouts.connect = 3.0"
    )


def test_the_summary_of_very_many_upstreams_is_cut() -> None:
    many = tuple(UpstreamConfig(f"u{number}", f"h{number}", 1) for number in range(500))

    lines = summary(Config(NAME, upstreams=many)).splitlines()

    assert lines[2] == "upstreams: 500, round_robin"
    assert lines[-1] == "  and 490 more"
    assert len(lines) == 14


def test_the_summary_says_what_no_upstreams_mean() -> None:
    told = summary(Config(NAME))

    assert "upstreams: none" in told
    assert told.endswith("warnings:\n  no upstreams are configured: every request is answered 503")
