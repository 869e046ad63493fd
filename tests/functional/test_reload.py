"""Changing the configuration of a running Atlas, in every way that people change files.

That the watcher notices each kind of change is tested closer by, in `tests/control/`; here the
whole program does, and the answers prove which configuration is in force.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import Upstream, named
from tests.functional.conftest import Start
from tests.toolkit import Atlas, Threads, build_config, wait_until, write_toml

# What is noticed and taken over does not depend on the engine, but for the tests that say so.
pytestmark = pytest.mark.engines("lane")

RELOADED = "Configuration hot-reloaded"


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("A"))


@pytest.fixture
def b(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("B"))


def write_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def rename_over(path: Path, text: str) -> None:
    new = path.with_name("atlas.toml.new")
    new.write_text(text)
    new.replace(path)


@pytest.mark.parametrize("save", [write_in_place, rename_over])
def test_each_way_of_saving_is_noticed_twice_in_a_row(
    save: Callable[[Path, str], None], a: Upstream, b: Upstream, start: Start
) -> None:
    atlas = start(build_config(a.table()))

    for times, upstream in enumerate((b, a, b), start=1):
        save(atlas.path, build_config(upstream.table()))
        atlas.wait_for(RELOADED, times=times)

        assert atlas.get().text == upstream.name


def test_a_server_appended_to_the_file_is_used(a: Upstream, b: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(), routing={"strategy": "round_robin"}))

    with atlas.path.open("a") as file:
        file.write(write_toml({"upstreams": [b.table()]}))
    line = atlas.wait_for(RELOADED)

    assert "added B" in line
    assert {atlas.get().text, atlas.get().text} == {"A", "B"}


def test_a_volume_that_swaps_a_link_beside_the_file_is_noticed(
    a: Upstream, b: Upstream, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"

    def publish(version: str, upstream: Upstream) -> None:
        (volume / version).mkdir(parents=True)
        (volume / version / "atlas.toml").write_text(build_config(upstream.table()))
        (volume / "..data_tmp").symlink_to(version)
        (volume / "..data_tmp").replace(volume / "..data")

    publish("..1", a)
    (volume / "atlas.toml").symlink_to("..data/atlas.toml")
    with Atlas(volume / "atlas.toml").wait_until_listening() as atlas:
        for times, upstream in enumerate((b, a), start=1):
            publish(f"..{times + 1}", upstream)
            atlas.wait_for(RELOADED, times=times)

            assert atlas.get().text == upstream.name


def test_a_file_that_is_deleted_stays_in_force_until_it_returns(
    a: Upstream, b: Upstream, start: Start
) -> None:
    atlas = start(build_config(a.table()))

    atlas.path.unlink()
    atlas.wait_for("cannot be read")
    assert atlas.get().text == "A"

    write_in_place(atlas.path, build_config(b.table()))
    atlas.wait_for(RELOADED)
    assert atlas.get().text == "B"


def test_sighup_looks_at_once(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table()))

    atlas.send_signal(signal.SIGHUP)

    atlas.wait_for("SIGHUP")
    atlas.wait_for("configuration unchanged")
    assert atlas.count(RELOADED) == 0
    assert atlas.get().text == "A"


def test_an_access_log_beside_the_file_causes_no_look_at_it(a: Upstream, start: Start) -> None:
    log = {"access": "access.log", "level": "debug"}
    atlas = start(build_config(a.table(), log=log))
    atlas.wait_for("looked at, unchanged")

    for _ in range(20):
        assert atlas.get().text == "A"
    wait_until(lambda: atlas.path.with_name("access.log").read_text().count("\n") == 20)
    # The kernel keeps the order: once this has been noticed, all of the above was passed over.
    atlas.reload(build_config(a.table(weight=2), log=log))

    assert atlas.count("looked at, unchanged") == 1


def test_sighup_ends_the_alarm_of_a_file_that_was_refused(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table()))
    good = atlas.path.read_text()
    atlas.rewrite("garbage [[[")
    atlas.wait_for("Configuration refused")

    atlas.rewrite(good)
    atlas.send_signal(signal.SIGHUP)

    atlas.wait_for("the file that was refused is gone")
    atlas.wait_for("configuration unchanged")
    assert atlas.count("the file that was refused is gone") == 1


def test_a_burst_of_writes_is_one_reload(a: Upstream, b: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table()))

    began = time.monotonic()
    for weight in range(2, 30):
        write_in_place(atlas.path, build_config(b.table(weight=weight)))
    took = time.monotonic() - began
    atlas.wait_for(RELOADED)
    atlas.reload(build_config(a.table(weight=7)))

    # The burst and the one after it, unless the machine has stopped us in the middle of it.
    assert atlas.count(RELOADED) == 2 or took > 0.1


def test_a_broken_file_is_refused_with_all_its_errors(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table()))

    atlas.rewrite(build_config(a.table(weigth=3, port=99999)))
    atlas.wait_for("Configuration refused")
    atlas.wait_for('did you mean "weight"?')
    atlas.wait_for("99999")

    assert atlas.get().text == "A"
    assert atlas.count(RELOADED) == 0


@pytest.mark.parametrize("garbage", ["", "[listen\n", "\0\0\0", "a = 1\n", "[[upstreams]]\n"])
def test_garbage_is_refused_and_the_next_good_file_is_taken(
    garbage: str, a: Upstream, b: Upstream, start: Start
) -> None:
    atlas = start(build_config(a.table()))

    write_in_place(atlas.path, garbage)
    atlas.wait_for("Configuration refused")
    assert atlas.get().text == "A"

    atlas.reload(build_config(b.table()))
    assert atlas.get().text == "B"


def test_an_equal_configuration_is_no_reload(a: Upstream, start: Start) -> None:
    text = build_config(a.table())
    atlas = start(text)

    atlas.rewrite(f"# A comment changes nothing.\n{text}")
    atlas.wait_for("configuration unchanged")

    assert atlas.count(RELOADED) == 0


def test_what_needs_a_restart_is_named(a: Upstream, b: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table()))

    atlas.rewrite(build_config(b.table(), listen={"port": 1234, "max_threads": 7}))
    line = atlas.wait_for("needs a restart")

    assert "listen.port" in line
    assert "listen.max_threads" in line
    atlas.wait_for(RELOADED)
    assert atlas.get().text == "B"


def test_what_is_hardly_meant_is_told_at_a_reload(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table()))

    atlas.reload(build_config({**a.table(), "weight": 3}))

    atlas.wait_for("WARNING atlas: upstream A: weight 3 has no effect with round_robin")


def test_a_new_level_of_the_log_is_taken_over(a: Upstream, start: Start) -> None:
    atlas = start(build_config(a.table(), log={"level": "warning"}).replace("warning", "info"))

    atlas.reload(build_config(a.table(), log={"level": "debug"}))
    atlas.rewrite(build_config(a.table(), log={"level": "debug"}) + "\n")

    atlas.wait_for("DEBUG")


@pytest.mark.engines("lane", "road")
def test_a_request_under_way_ends_as_it_began(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    slow, b = upstreams.enter_context(named("slow", delay=1.0)), upstreams.enter_context(named("B"))
    atlas = start(build_config(slow.table()))

    with atlas.client() as client:
        client.send_head()
        wait_until(lambda: slow.requests, "the request to reach its upstream")
        atlas.reload(build_config(b.table()))

        assert client.read_answer().text == "slow"
        assert client.get().text == "B"


def test_a_reload_goes_on_where_the_turns_were(a: Upstream, b: Upstream, start: Start) -> None:
    def config(timeout: float) -> str:
        return build_config(
            a.table(),
            b.table(),
            routing={"strategy": "weighted_round_robin"},
            timeouts={"connect": timeout},
        )

    atlas = start(config(1.0))
    answers = []
    for number in range(2, 6):
        answers.append(atlas.get().text)
        atlas.reload(config(float(number)))

    assert "".join(answers) == "ABAB"


@pytest.mark.engines("lane", "road")
def test_connections_to_a_removed_upstream_are_closed(
    a: Upstream, b: Upstream, start: Start
) -> None:
    atlas = start(build_config(a.table()))
    with atlas.client() as client:  # without a lane its connections would leave with it
        assert client.get().text == "A"
        assert a.connected == 1

        atlas.reload(build_config(b.table()))

        wait_until(lambda: not a.connected, "the idle connection to be closed")


@pytest.mark.engines("lane", "road")
def test_forty_reloads_under_load_cost_no_request(
    a: Upstream, b: Upstream, upstreams: contextlib.ExitStack, start: Start
) -> None:
    last = upstreams.enter_context(named("last"))
    weighted = {"strategy": "weighted_round_robin"}
    atlas = start(build_config(a.table(), b.table(), routing=weighted))
    is_over = threading.Event()
    asked = [0] * 12

    def load(seed: int) -> None:
        """Ask again and again, sometimes on a new connection; any failure raises."""
        dice = random.Random(seed)
        while not is_over.is_set():
            with atlas.client() as client:
                for _ in range(dice.choice((1, 5, 50))):
                    is_over.wait(0.01)  # if they never paused, they would take all of the CPU
                    answer = client.get()
                    assert answer.status == 200, answer
                    assert answer.text in {"A", "B", "last"}
                    asked[seed] += 1

    threads = Threads()
    for seed in range(len(asked)):
        threads.start(load, seed)
    try:
        for round_ in range(10):
            atlas.reload(build_config(a.table(weight=2 + round_), b.table(), routing=weighted))
            atlas.reload(build_config(a.table(), routing=weighted))
            atlas.reload(build_config(b.table(), last.table(), a.table(), routing=weighted))
            atlas.rewrite(f"garbage {round_} [[[")
            atlas.wait_for("Configuration refused", times=round_ + 1)
        atlas.reload(build_config(last.table()))
        wait_until(lambda: last.requests > 0)
        now = list(asked)
        wait_until(
            lambda: all(late > early + 1 for early, late in zip(now, asked, strict=True)),
            "all to ask under the last configuration",
        )
        before = a.requests, b.requests
        served = last.requests
        wait_until(lambda: last.requests > served + 200, "more requests")
        assert (a.requests, b.requests) == before
    finally:
        is_over.set()
    threads.join()

    assert sum(asked) == a.requests + b.requests + last.requests
    assert atlas.count(RELOADED) == 31
    assert "WARNING" not in atlas.log
