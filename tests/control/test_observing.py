"""Who watches the exchanges, and who is asked which are explained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atlas_pkg.config.model import Config, LogConfig
from atlas_pkg.control.observing import Observing
from atlas_pkg.observing.observers import A_FEW, Observers
from atlas_pkg.observing.record import Record
from atlas_pkg.observing.tracer import Asking
from tests.observing.explain_support import CHOICE, build_record

CONFIG = Config(Path("atlas.toml"))


A = "192.0.2.7"


def follow(observers: Observers, record: Record) -> bool:
    """Do as the HTTP loop; returns whether it is timed."""
    if observers.to_time > 0:
        observers.follow(record)
    return record.times is not None


def is_timed(observers: Observers) -> str:
    """A 1 for each exchange that is timed, a 0 for each other, of as many as show the rule."""
    return "".join(str(int(follow(observers, Record(A, b"", 0.0)))) for _ in range(A_FEW + 1))


def test_without_wishes_nobody_watches() -> None:
    observers = Observers()
    Observing(observers, is_counting=False).start(CONFIG)

    assert not observers.are_there


def test_an_access_log_alone_explains_nothing(tmp_path: Path) -> None:
    observers = Observers()
    observing = Observing(observers, is_counting=False)
    observing.start(Config(tmp_path / "atlas.toml", log=LogConfig(access="log")))

    assert is_timed(observers) == "0" * (A_FEW + 1)
    observing.close()


def test_the_admin_address_times_some_exchanges_and_a_log_that_shows_times_all_of_them(
    tmp_path: Path,
) -> None:
    observers = Observers()
    observing = Observing(observers, is_counting=True)
    observing.start(CONFIG)
    some = is_timed(observers)

    observing.follow(Config(tmp_path / "atlas.toml", log=LogConfig(access="log", format="json")))
    every = is_timed(observers)
    observing.follow(
        Config(tmp_path / "atlas.toml", log=LogConfig(access="log", format="combined"))
    )

    assert some == is_timed(observers) == "1" * A_FEW + "0"
    assert every == "1" * (A_FEW + 1)
    observing.close()


def test_what_ended_before_a_change_of_format_is_written_as_it_was(tmp_path: Path) -> None:
    observers = Observers()
    observing = Observing(observers, is_counting=False)
    observing.start(Config(tmp_path / "atlas.toml", log=LogConfig(access="log", format="combined")))
    observers.note(Record(A, b"GET /before HTTP/1.1", 0.0))
    observing.follow(Config(tmp_path / "atlas.toml", log=LogConfig(access="log", format="json")))
    observers.note(Record(A, b"GET /after HTTP/1.1", 0.0))
    observing.close()

    before, after = (tmp_path / "log").read_text(encoding="ascii").splitlines()
    assert before.startswith(A)
    assert after.startswith("{")


def test_the_admin_address_keeps_exchanges_and_explains_those_asked_for() -> None:
    observers = Observers()
    observing = Observing(observers, is_counting=True)
    observing.start(CONFIG)
    ordinary, explained = build_record(), build_record()
    follow(observers, ordinary)
    observing.ask(Asking(next_from=explained.address))
    follow(observers, explained)

    for record in (ordinary, explained):
        observers.note(record)
    observers.publish()

    assert (ordinary.choices, explained.choices) == (None, [])
    assert len(observing.tracer.timelines()) == 2


def test_a_log_that_is_turned_off_gets_what_ended_before(tmp_path: Path) -> None:
    observers = Observers()
    observing = Observing(observers, is_counting=False)
    observing.start(Config(tmp_path / "atlas.toml", log=LogConfig(access="log")))
    observers.note(build_record(b"GET /before HTTP/1.1"))

    observing.follow(CONFIG)
    observers.note(build_record(b"GET /after HTTP/1.1"))
    observers.publish()

    written = (tmp_path / "log").read_text(encoding="ascii")
    assert "/before" in written
    assert "/after" not in written


def test_the_terminal_shows_explained_exchanges_only(capfd: pytest.CaptureFixture[str]) -> None:
    observers = Observers()
    observing = Observing(observers, is_counting=False, explain=2)
    observing.start(CONFIG)

    ordinary = [Record(A, b"", 0.0) for _ in range(4)]
    assert all(follow(observers, record) for record in ordinary)
    observers.note(build_record(b"GET /explained HTTP/1.1", choices=[CHOICE]))
    observers.note(build_record(b"GET /ordinary HTTP/1.1"))
    observing.close()

    assert [record.choices for record in ordinary] == [[], None, [], None]
    assert not observers.are_there
    printed = capfd.readouterr().out
    assert "GET /explained" in printed
    assert "GET /ordinary" not in printed
    os.fstat(1)  # standard output is still open
