"""Host names as upstream addresses."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.fakes import Conversation, Upstream, black_hole, build_answer, named
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import Atlas, build_config, free_port, wait_until

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
    with open(os.environ["TEST_NAMES"] + ".asked", "a") as file:
        file.write(host + "\\n")
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

    def wait_until_asked(self, times: int) -> None:
        """Wait until so many more look-ups have begun."""
        asked = self._path.with_name(self._path.name + ".asked")
        before = asked.stat().st_size
        wait_until(lambda: asked.stat().st_size >= before + times * len("app.test\n"), "look-ups")


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
    atlas.wait_for("cannot resolve no-such-host.invalid")


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
    port = upstreams.enter_context(black_hole("127.0.0.2", free_port()))
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


# Every address a server of its own


@pytest.fixture
def servers(upstreams: contextlib.ExitStack) -> list[Upstream]:
    """Four servers on one port, at addresses of this machine; each answers with its last number."""
    if sys.platform != "linux":
        pytest.skip("elsewhere these addresses have to be set up")
    first = upstreams.enter_context(named("2", address="127.0.0.2"))
    others = [named(str(end), address=f"127.0.0.{end}", port=first.port) for end in (3, 4, 5)]
    return [first, *map(upstreams.enter_context, others)]


def table(servers: list[Upstream], **more: object) -> dict[str, object]:
    port = servers[0].port
    return {"name": "app", "address": "app.test", "port": port, "resolve": 0.05, **more}


def ask(atlas: Atlas, times: int = 4) -> list[str]:
    with atlas.client() as client:
        return [client.get().text for _ in range(times)]


def test_every_address_is_a_server_and_comes_and_goes_with_the_answer(
    servers: list[Upstream], names: Names, start: Start
) -> None:
    names.let("app.test", "127.0.0.3", "127.0.0.2")
    atlas = start(build_config(table(servers), admin=ADMIN), env=names.env)
    admin = AdminClient(atlas)
    assert ask(atlas) == ["2", "3", "2", "3"]
    count = "atlas_requests_total app@127.0.0.2 2xx"
    wait_until(lambda: admin.metrics()[count] == 2, "the requests to be counted")

    names.let("app.test", "127.0.0.4", "127.0.0.3")
    line = atlas.wait_for("host names lead elsewhere")

    assert line.endswith("upstreams: added app@127.0.0.4, removed app@127.0.0.2")
    assert sorted(ask(atlas)) == ["3", "3", "4", "4"]


def test_those_that_stay_keep_their_state_and_those_that_leave_their_requests(
    servers: list[Upstream], names: Names, upstreams: contextlib.ExitStack, start: Start
) -> None:
    slow = upstreams.enter_context(named("9", delay=1.0, address="127.0.0.9", port=servers[0].port))
    names.let("app.test", "127.0.0.2", "127.0.0.3", "127.0.0.9")
    atlas = start(build_config(table(servers), admin=ADMIN), env=names.env)
    admin = AdminClient(atlas)
    wait_until(lambda: admin.steer("app@127.0.0.2", "state=maintenance") == 200, "the first answer")
    with contextlib.ExitStack() as clients:
        waiting = [clients.enter_context(atlas.client()) for _ in range(2)]
        for client in waiting:
            client.send_head()
        wait_until(lambda: slow.requests, "one to wait")

        names.let("app.test", "127.0.0.2", "127.0.0.3", "127.0.0.4")
        atlas.wait_for("removed app@127.0.0.9")

        assert sorted(client.read_answer().text for client in waiting) == ["3", "9"]
    assert set(ask(atlas, 6)) == {"3", "4"}


def test_the_order_of_an_answer_says_nothing(
    servers: list[Upstream], names: Names, start: Start
) -> None:
    names.let("app.test", "127.0.0.2", "127.0.0.3")
    atlas = start(build_config(table(servers)), env=names.env)
    assert ask(atlas) == ["2", "3", "2", "3"]

    names.let("app.test", "127.0.0.3", "127.0.0.2")
    names.wait_until_asked(3)

    assert "lead elsewhere" not in atlas.log


def test_a_failed_look_up_keeps_the_last_answer(
    servers: list[Upstream], names: Names, start: Start
) -> None:
    names.let("app.test", "127.0.0.2", "127.0.0.3")
    atlas = start(build_config(table(servers)), env=names.env)
    assert ask(atlas) == ["2", "3", "2", "3"]

    names.let("app.test")
    atlas.wait_for("cannot resolve app.test")

    assert ask(atlas) == ["2", "3", "2", "3"]
    names.let("app.test", "127.0.0.3")
    atlas.wait_for("app.test is resolved again")
    atlas.wait_for("removed app@127.0.0.2")
    assert ask(atlas) == ["3"] * 4


def test_a_name_that_is_not_known_yet_is_one_server_that_fails(
    servers: list[Upstream], names: Names, start: Start
) -> None:
    names.let("app.test")
    atlas = start(build_config(table(servers)), env=names.env)
    assert atlas.get().status == 502

    names.let("app.test", "127.0.0.2", "127.0.0.3")
    atlas.wait_for("added app@127.0.0.2, added app@127.0.0.3, removed app")

    assert sorted(ask(atlas)) == ["2", "2", "3", "3"]


def test_newcomers_serve_after_a_passed_probe_that_asks_for_the_name(
    upstreams: contextlib.ExitStack, names: Names, start: Start
) -> None:
    hosts: list[str] = []

    def serve(conversation: Conversation) -> None:
        while request := conversation.read_head():
            if request.target == "/health":
                hosts.append(request.get("Host"))
                conversation.send(build_answer(status="503 Not yet"))
            else:
                conversation.send(build_answer(b"3"))

    servers: list[Upstream] = [upstreams.enter_context(named("2", address="127.0.0.2"))]
    port = servers[0].port
    upstreams.enter_context(Upstream(serve, address="127.0.0.3", port=port))
    names.let("app.test", "127.0.0.2")
    check = {"path": "/health", "interval": 0.1}
    atlas = start(build_config(table(servers), health_check=check), env=names.env)
    assert ask(atlas) == ["2"] * 4

    names.let("app.test", "127.0.0.2", "127.0.0.3")
    wait_until(lambda: len(hosts) > 2, "probes")

    assert set(hosts) == {f"app.test:{port}"}
    assert ask(atlas) == ["2"] * 4


def test_a_sticky_client_stays_while_its_server_does(
    servers: list[Upstream], names: Names, start: Start
) -> None:
    names.let("app.test", "127.0.0.2", "127.0.0.3")
    atlas = start(build_config(table(servers), sticky={"cookie": "s"}), env=names.env)
    answers = {answer.text: answer for answer in (atlas.get(), atlas.get())}
    cookie = answers["3"].get("Set-Cookie").partition(";")[0]

    names.let("app.test", "127.0.0.3", "127.0.0.4", "127.0.0.5")
    atlas.wait_for("removed app@127.0.0.2")

    assert {atlas.get(Cookie=cookie).text for _ in range(6)} == {"3"}


def test_a_reload_keeps_the_servers_that_are_known(
    servers: list[Upstream], names: Names, start: Start
) -> None:
    names.let("app.test", "127.0.0.2", "127.0.0.3")
    atlas = start(build_config(table(servers)), env=names.env)

    atlas.reload(build_config(table(servers, weight=2), routing={"strategy": "least_connections"}))

    assert "changed app (weight 1 -> 2)" in atlas.log
    assert set(ask(atlas, 20)) == {"2", "3"}
    atlas.reload(build_config(table(servers, resolve=0)))
    with atlas.client() as client:
        assert client.get().text in {"2", "3"}
