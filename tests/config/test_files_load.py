"""Files as people write them load, and mean what they say."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from ipaddress import ip_network
from pathlib import Path

import pytest

from atlas_pkg.config import loader, model
from atlas_pkg.config.model import Config, UpstreamConfig
from tests.config.samples import NAME, UPSTREAM, parse

FIRST_ATLAS_LOAD_BALANCING = """
[listen]
address = "0.0.0.0"
port = 8080

[[upstreams]]
name = "backend1"
address = "127.0.0.1"
port = 3001
weight = 3

[[upstreams]]
name = "backend2"
address = "127.0.0.1"
port = 3002
weight = 2

[routing]
strategy = "weighted_round_robin"

# appended with >> while Atlas runs
[[upstreams]]
name = "backend3"
address = "127.0.0.1"
port = 3003
"""

FIRST_ATLAS_REVERSE_PROXY = """
[listen]
address = "[::1]"
port = 80
mode = "http"
workers = 1

[[upstreams]]
name = "app"
address = "localhost"
port = 3000
weight = 1

# [upstreams.health_check]
# interval_secs = 10
# timeout_secs = 5
# path = "/health"
"""


def test_a_file_of_the_first_atlas_with_an_appended_upstream_loads() -> None:
    loaded = parse(FIRST_ATLAS_LOAD_BALANCING)

    assert loaded.listen == model.Listen(address="0.0.0.0", port=8080)
    assert loaded.routing.strategy == "weighted_round_robin"
    assert loaded.upstreams == (
        UpstreamConfig("backend1", "127.0.0.1", 3001, weight=3),
        UpstreamConfig("backend2", "127.0.0.1", 3002, weight=2),
        UpstreamConfig("backend3", "127.0.0.1", 3003, weight=1),
    )


def test_a_file_of_the_first_atlas_in_front_of_one_app_loads() -> None:
    loaded = parse(FIRST_ATLAS_REVERSE_PROXY)

    assert loaded.listen.address == "::1"
    assert loaded.upstreams == (UpstreamConfig("app", "localhost", 3000),)


@pytest.mark.parametrize("strategy", ["round_robin", "weighted_round_robin", "random"])
def test_a_file_without_upstreams_loads(strategy: str) -> None:
    loaded = parse(f'[listen]\naddress = "::"\nport = 0\n[routing]\nstrategy = "{strategy}"')

    assert loaded.upstreams == ()
    assert loaded.routing.strategy == strategy


def test_an_empty_table_is_all_defaults() -> None:
    assert parse("[listen]") == Config(NAME)


def test_every_default_may_be_written_out() -> None:
    text = """
upstreams = []
[listen]
address = "0.0.0.0"
port = 8080
mode = "http"
workers = 1
lanes = 1
pin = true
max_connections = 4096
max_threads = 1024
root = "/var/www/html"
[routing]
strategy = "round_robin"
hash_on = "client_ip"
retries = 0
[timeouts]
tls_handshake = 10.0
client_head = 10.0
client_body = 30.0
client_write = 60.0
client_idle = 75.0
client_gone = 3.0
connect = 5.0
upstream_head = 60.0
upstream_body = 60.0
upstream_idle = 60.0
tunnel_idle = 3600.0
queue = 5.0
drain = 30.0
pre_drain = 0.0
[limits]
request_line = 8192
head = 32768
fields = 100
body = 0
requests_per_connection = 1000
upstream_head = 65536
[pool]
idle = 1
max_age = 3600.0
max_requests = 1000
[forwarding]
x_forwarded = true
via = true
trusted_proxies = []
request_id = false
set_request_fields = {}
remove_request_fields = []
set_response_fields = {}
remove_response_fields = []
[log]
level = "info"
access = "off"
format = "combined"
"""
    assert parse(text) == Config(NAME)


def test_every_default_of_an_upstream_may_be_written_out() -> None:
    text = UPSTREAM + (
        "weight = 1\nmax_connections = 0\nbackup = false\nproxy_protocol = 0\nresolve = 0.0\n"
    )

    assert parse(text).upstreams == (UpstreamConfig("a", "10.0.0.1", 3000),)


def test_forwarding_is_read_into_tuples_and_networks() -> None:
    text = """
[forwarding]
trusted_proxies = ["10.0.0.0/8", "192.168.1.1", "fd00::/8", "::1"]
set_request_fields = { X-Env = "live", Authorization = "Bearer ${TOKEN}", Host = "app" }
remove_response_fields = ["Server", "X-Powered-By"]
"""
    loaded = parse(text, {"TOKEN": "s3cret"}).forwarding

    assert loaded.trusted_proxies == (
        ip_network("10.0.0.0/8"),
        ip_network("192.168.1.1/32"),
        ip_network("fd00::/8"),
        ip_network("::1/128"),
    )
    assert loaded.set_request_fields == (
        ("X-Env", "live"),
        ("Authorization", "Bearer s3cret"),
        ("Host", "app"),
    )
    assert loaded.remove_response_fields == ("Server", "X-Powered-By")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    data = b"\xef\xbb\xbf[listen]\r\nport = 81\r\n"

    assert loader.parse_config(data, NAME, {}).listen.port == 81


def test_the_process_environment_is_used_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATLAS_TEST_LEVEL", "debug")

    loaded = loader.parse_config(b'[log]\nlevel = "${ATLAS_TEST_LEVEL}"', NAME)

    assert loaded.log.level == "debug"


def test_equal_files_are_equal_configurations() -> None:
    text = UPSTREAM + "[timeouts]\nconnect = 3"
    rewritten = "# moved\n[timeouts]\nconnect = 3.0\n" + UPSTREAM

    assert parse(text) == parse(rewritten)
    assert hash(parse(text)) == hash(parse(rewritten))
    assert parse(text) != loader.parse_config(text.encode(), Path("other.toml"), {})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("off", None),
        ("-", "-"),
        ("access.log", "/etc/atlas/access.log"),
        ("../log/atlas", "/etc/atlas/../log/atlas"),
        ("./off", "/etc/atlas/off"),
        ("/var/log/atlas/access.log", "/var/log/atlas/access.log"),
    ],
)
def test_the_access_log_is_found_from_the_configuration_file(
    written: str, meant: str | None
) -> None:
    data = f'[log]\naccess = "{written}"'.encode()

    assert loader.parse_config(data, Path("/etc/atlas/atlas.toml"), {}).access_log == meant


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Config(NAME).listen.port = 1  # type: ignore[misc]
