"""What a path is compared by, and what servers in use may make of it."""

from __future__ import annotations

import doctest

import pytest

from atlas_pkg.http1 import target
from atlas_pkg.http1.target import MOST_BYTES, find_readings, is_odd, normalize_host, normalize_path


def test_examples_in_docstrings_are_true() -> None:
    done = doctest.testmod(target)

    assert done.attempted
    assert not done.failed


def test_a_normal_path_stays_so() -> None:
    for escape in range(256):
        once = normalize_path(b"/%%%02x" % escape)

        assert normalize_path(once) == once
        assert normalize_path(b"/%%%02X" % escape) == once


@pytest.mark.parametrize(
    ("path", "reading"),
    [
        (b"/x/../a", b"/a"),
        (b"/x/%2e%2E/a", b"/a"),
        (b"/x%2f..%2Fa", b"/a"),
        (b"/x/%25252e./a", b"/a"),
        (b"//x/..//a", b"/a"),
        (b"/x/..;y=1/a;z", b"/a"),
        (b"/x\\..%5ca", b"/a"),
        (b"/a%3fx", b"/a"),
        (b"/a%23/../x", b"/a"),
        (b"/x/..", b"/"),
        (b"/a%3B%2F..", b"/"),
    ],
)
def test_what_a_server_may_come_to_is_found(path: bytes, reading: bytes) -> None:
    assert is_odd(path)
    assert reading in (find_readings(path) or ())


@pytest.mark.parametrize(
    "path", [b"/%", b"/%z", b"/a%00", b"/%0d", b"/%7f", b"/%2500", b"/%c0%ae", b"/%e0%80%ae"]
)
def test_what_nobody_can_say_is_not_guessed(path: bytes) -> None:
    assert find_readings(path) is None


@pytest.mark.parametrize("piece", [b"/..;%2f", b"/%2525", b"//./", b"%5c..%2f"])
def test_the_work_on_a_path_has_an_end(piece: bytes) -> None:
    readings = find_readings(piece * 1000)

    assert readings is None or sum(map(len, readings)) <= MOST_BYTES + 8000


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"A.example.", "a.example"),
        (b"a%2Eexample:", "a.example"),
        (b"[2001:DB8:0::1]:443", "2001:db8::1"),
        (b"192.0.2.1:80", "192.0.2.1"),
    ],
)
def test_hosts_have_one_form(host: bytes, name: str) -> None:
    assert normalize_host(host) == name
