"""The reference for users says what the dataclasses say."""

from __future__ import annotations

import re
from ipaddress import ip_network

from atlas_pkg.config import loader
from atlas_pkg.config.model import (
    Admin,
    CircuitBreaker,
    Config,
    HealthCheck,
    Listen,
    ListenTls,
    ProxyProtocol,
    RouteConfig,
    SlowStart,
    Sticky,
    TlsHost,
    UpstreamConfig,
    UpstreamTls,
)
from atlas_pkg.config.rules import find_strategies
from tests.config.reference import EXAMPLE, STRATEGIES_LINE, entries, example_file, read_strategies
from tests.config.samples import NAME, parse

HOST = TlsHost(("example.com",), "cert.pem", "key.pem")
TLS = ListenTls("cert.pem", "key.pem", hosts=(HOST,))


def test_the_reference_lists_every_key_once() -> None:
    names = [entry.place for entry in entries()]

    assert len(names) == len(set(names))
    assert {"listen.port", "upstreams.weight", "forwarding.trusted_proxies"} <= set(names)
    assert "path" not in names


def test_the_reference_tells_which_keys_need_a_restart() -> None:
    restart = [entry.place for entry in entries() if not entry.is_live]

    assert restart == [
        "listen.address",
        "listen.port",
        "listen.mode",
        "listen.workers",
        "listen.lanes",
        "listen.pin",
        "listen.max_threads",
        "listen.http_redirect",
        "admin.address",
        "admin.port",
        "admin.token",
        "admin.hosts",
    ]


def test_the_reference_says_of_a_key_what_is_to_be_known() -> None:
    lines = example_file().splitlines()

    assert "port = 8080                 # 0 = any free port; the log says which (restart)" in lines


def test_the_example_that_is_the_reference_is_up_to_date() -> None:
    # Whoever has added a strategy for themselves need not offer it to everybody.
    written, due = (
        STRATEGIES_LINE.sub("", text)
        for text in (EXAMPLE.read_text(encoding="utf-8"), example_file())
    )

    assert written == due, "run: python -m tests.config.reference"


def test_the_reference_offers_only_strategies_that_exist() -> None:
    offered = read_strategies()

    assert "round_robin" in offered
    assert offered <= set(find_strategies())


def test_the_example_that_is_the_reference_is_all_defaults() -> None:
    assert loader.load_config(EXAMPLE, {}) == Config(EXAMPLE)


def test_the_example_without_its_marks_is_all_defaults_with_every_feature_on() -> None:
    text = re.sub(r"^#(?=[\[a-z])", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)

    loaded = parse(text)

    assert loaded == Config(
        NAME,
        listen=Listen(tls=TLS, proxy_protocol=ProxyProtocol((ip_network("10.0.0.0/8"),))),
        upstreams=(
            UpstreamConfig(
                "backend1", "10.0.0.1", 3000, tls=UpstreamTls(), health_check=HealthCheck()
            ),
        ),
        health_check=HealthCheck(),
        circuit_breaker=CircuitBreaker(),
        sticky=Sticky(),
        slow_start=SlowStart(),
        routes=(RouteConfig(group="default"),),
        admin=Admin(),
    )


def test_the_example_has_every_key_that_does_something() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    written = set(re.findall(r"^#?([a-z_]+) = ", text, re.MULTILINE))

    known = {entry.place for entry in entries()}
    assert written == {place.rpartition(".")[2] for place in known}
