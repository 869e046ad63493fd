"""Host names as upstream addresses."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.fakes import black_hole, named
from tests.functional.conftest import Start
from tests.toolkit import build_config, wait_until

# Which addresses a name has does not depend on the engine.
pytestmark = pytest.mark.engines("lane")

UNKNOWN = {"name": "lost", "address": "no-such-host.invalid", "port": 3000}

# Stands for the name server: Python reads it as it starts. Addresses are looked up in a file.
NAME_SERVER = """
import json, os, socket

real = socket.getaddrinfo

def getaddrinfo(host, port, *more, **named):
    with open(os.environ["TEST_NAMES"]) as file:
        known = json.load(file)
    if host not in known:
        return real(host, port, *more, **named)
    if not known[host]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]
    ]

socket.getaddrinfo = getaddrinfo
"""


class Names:
    """What names lead to, as far as an Atlas sees that is started with `env`."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(NAME_SERVER)
        self._path = folder / "names.json"
        paths = [str(folder), os.environ.get("PYTHONPATH", "")]
        self.env = {"PYTHONPATH": os.pathsep.join(paths), "TEST_NAMES": str(self._path)}

    def let(self, name: str, *addresses: str) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({name: addresses}))
        new.replace(self._path)


@pytest.fixture
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    return Names(tmp_path_factory.mktemp("names"))


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 has to be set up")
def test_an_address_that_swallows_connections_costs_a_quarter_of_a_second(
    upstreams: contextlib.ExitStack, names: Names, start: Start
) -> None:
    port = upstreams.enter_context(black_hole("127.0.0.2"))
    upstream = upstreams.enter_context(named("A", port=port))
    names.let("two.test", "127.0.0.2", "127.0.0.1")
    check = {"interval": 0.1, "timeout": 2.0}
    atlas = start(
        build_config(upstream.table(address="two.test"), health_check=check, pool={"idle": 0}),
        env=names.env,
    )

    began = time.monotonic()
    answers = [atlas.get().text for _ in range(4)]

    assert answers == ["A"] * 4
    assert time.monotonic() - began < 15  # a timeout of 5 s for each would be 20
    wait_until(lambda: upstream.accepted >= 8, "probes, which find it, too")
    assert atlas.count("upstream A is down") == 0


def test_a_name_that_is_not_known_at_the_start_is_asked_again_soon(
    upstreams: contextlib.ExitStack, names: Names, start: Start
) -> None:
    upstream = upstreams.enter_context(named("A"))
    names.let("late.test")
    atlas = start(build_config(upstream.table(address="late.test")), env=names.env)
    assert atlas.get().status == 502

    names.let("late.test", "127.0.0.1")

    wait_until(lambda: atlas.get().status == 200, "the name to be known")
