"""Host names as upstream addresses."""

from __future__ import annotations

import contextlib

from tests.fakes import named
from tests.functional.conftest import Start
from tests.toolkit import build_config

UNKNOWN = {"name": "lost", "address": "no-such-host.invalid", "port": 3000}


def test_a_host_name_is_resolved(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table(address="localhost")))

    assert atlas.get().text == "A"


def test_an_unknown_name_is_502_and_the_rest_is_served(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(UNKNOWN, upstream.table(), routing={"strategy": "round_robin"}))

    assert [atlas.get().status for _ in range(4)] == [502, 200, 502, 200]
    assert "cannot resolve no-such-host.invalid" in atlas.log


def test_an_unknown_name_that_comes_with_a_reload_is_no_end(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(named("A"))
    atlas = start(build_config(upstream.table()))

    atlas.reload(build_config(UNKNOWN))
    assert atlas.get().status == 502
    atlas.reload(build_config(upstream.table(address="localhost")))
    assert atlas.get().text == "A"
