"""What a client is known by: its key for the hashes, and the upstream of its cookie."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from atlas_pkg.balancing.lease import ANYWHERE, Affinity
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import Config, Forwarding, Routing, Sticky, UpstreamConfig
from atlas_pkg.http1.message import Request
from atlas_pkg.serving.generation import Generation

PROXY, CLIENT = "10.0.0.1", "192.0.2.7"


def build(strategy: str = "consistent_hash", hash_on: str = "client_ip", **more: Any) -> Generation:
    upstreams = tuple(UpstreamConfig(name, "192.0.2.1", 80) for name in "abc")
    routing = Routing(strategy=strategy, hash_on=hash_on)
    forwarding = Forwarding(trusted_proxies=(ip_network("10.0.0.0/8"),))
    return Generation(
        Config(
            Path("atlas.toml"),
            upstreams=upstreams,
            routing=routing,
            forwarding=forwarding,
            **more,
        )
    )


def read(
    generation: Generation, *fields: str, line: str = "GET / HTTP/1.1", by: str = CLIENT
) -> Affinity:
    head = "\r\n".join([line, "Host: h", *fields, "", ""]).encode()
    request: Request = generation.parser.parse_request(head)
    client = generation.forwarder.describe_client(by, "http")
    if generation.group.affinity is None:  # nothing ties anybody to an upstream
        return ANYWHERE
    return generation.group.affinity.read(request, client)


def mark(generation: Generation, affinity: Affinity, upstream: Upstream) -> bytes:
    assert generation.group.affinity is not None
    return generation.group.affinity.mark(affinity, upstream)


def key(generation: Generation, *fields: str, **more: str) -> bytes:
    return read(generation, *fields, **more).key


def test_without_hashes_and_cookies_nothing_is_looked_at() -> None:
    assert build("round_robin").group.affinity is None
    assert build("least_connections", hash_on="path").group.affinity is None


def test_the_client_is_known_by_its_address() -> None:
    assert key(build()) == b"192.0.2.7"
    assert key(build(), by="2001:db8::1") == b"2001:db8::1"
    assert key(build("ip_hash", hash_on="path")) == b"192.0.2.7"  # `hash_on` is another strategy's


@pytest.mark.parametrize(
    ("forwarded", "by", "expected"),
    [
        ("198.51.100.9", CLIENT, b"192.0.2.7"),  # anybody can write that
        ("198.51.100.9", PROXY, b"198.51.100.9"),
        ("203.0.113.1, 198.51.100.9", PROXY, b"198.51.100.9"),  # the rest is the client's text
        ("198.51.100.9, 10.2.2.2", PROXY, b"198.51.100.9"),
        ("10.2.2.2", PROXY, b"10.0.0.1"),
        ("198.51.100.9, unknown", PROXY, b"10.0.0.1"),
        ("", PROXY, b"10.0.0.1"),
    ],
)
def test_a_forwarded_address_counts_as_far_as_it_is_trusted(
    forwarded: str, by: str, expected: bytes
) -> None:
    assert key(build(), f"X-Forwarded-For: {forwarded}", by=by) == expected


def test_the_path_is_hashed_without_its_query() -> None:
    generation = build(hash_on="path")

    assert key(generation, line="GET /a/b?c=d HTTP/1.1") == b"/a/b"
    assert key(generation, line="GET /a/b HTTP/1.1") == b"/a/b"
    assert key(generation, line="GET /a HTTP/1.1") == b"/a"


def test_a_field_is_hashed_whatever_the_case_of_its_name() -> None:
    generation = build(hash_on="header:X-User")

    assert key(generation, "x-uSER: one") == b"one"
    assert key(generation, "X-User: one", by="192.0.2.9") == b"one"
    assert key(generation, "X-Other: one") == b"192.0.2.7"


def test_a_cookie_is_hashed_in_the_case_of_its_name() -> None:
    generation = build(hash_on="cookie:user")

    assert key(generation, "Cookie: a=b; user=one; c=d") == b"one"
    assert key(generation, "Cookie: a=b", "Cookie: user=one") == b"one"
    assert key(generation, "Cookie: User=one") == b"192.0.2.7"
    assert key(generation) == b"192.0.2.7"


@pytest.mark.parametrize("strategy", ["round_robin", "ip_hash"])
def test_a_cookie_of_ours_names_its_upstream(strategy: str) -> None:
    generation = build(strategy, sticky=Sticky(secret="s"))
    b = generation.group.balancer.by_name["b"]
    line = mark(generation, ANYWHERE, b).decode().rstrip()
    cookie = line.removeprefix("Set-Cookie: ").partition(";")[0]

    found = read(generation, f"Cookie: x=1; {cookie}")

    assert found.sticky is b
    assert mark(generation, found, b) == b""
    assert mark(generation, found, generation.group.balancer.by_name["a"]).startswith(b"Set-")


@pytest.mark.parametrize("cookie", ["atlas=b", "atlas=", "atlas", "b", "atlas=AAAA; atlas=BBBB"])
def test_a_forged_cookie_names_nobody(cookie: str) -> None:
    assert read(build("round_robin", sticky=Sticky()), f"Cookie: {cookie}").sticky is None


def test_without_sticky_sessions_no_answer_is_marked() -> None:
    generation = build()

    assert mark(generation, ANYWHERE, generation.group.balancer.upstreams[0]) == b""


def test_a_secret_that_was_made_up_is_handed_on_to_the_next_generation() -> None:
    first = build("round_robin", sticky=Sticky())
    second = Generation(first.config, first)
    other = build("round_robin", sticky=Sticky())
    a = first.group.balancer.by_name["a"]

    assert mark(first, ANYWHERE, a) == mark(second, ANYWHERE, a)
    assert mark(first, ANYWHERE, a) != mark(other, ANYWHERE, a)
