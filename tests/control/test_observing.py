"""Who watches the exchanges, and who is asked which are explained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from atlas_pkg.config import Config, LogConfig
from atlas_pkg.control.observing import Observing
from atlas_pkg.record import Observer
from atlas_pkg.serving.explaining import Tracer
from tests.serving.explain_support import CHOICE, build_record

CONFIG = Config(Path("atlas.toml"))


class Watched:
    """Remembers who was to watch last."""

    def __init__(self) -> None:
        self.observers: Sequence[Observer] = ()
        self.tracer: Tracer | None = None

    def __call__(self, observers: Sequence[Observer], tracer: Tracer | None) -> None:
        self.observers, self.tracer = observers, tracer


def test_without_wishes_nobody_watches() -> None:
    watched = Watched()
    Observing(watched, is_counting=False).start(CONFIG)

    assert (watched.observers, watched.tracer) == ((), None)


def test_an_access_log_alone_explains_nothing(tmp_path: Path) -> None:
    watched = Watched()
    observing = Observing(watched, is_counting=False)
    observing.start(Config(tmp_path / "atlas.toml", log=LogConfig(access="log")))
    observing.close()

    assert watched.tracer is None


def test_the_admin_address_keeps_exchanges_and_explains_those_asked_for() -> None:
    watched = Watched()
    observing = Observing(watched, is_counting=True)
    observing.start(CONFIG)

    for observer in watched.observers:
        observer(build_record())

    assert watched.tracer is observing.tracer
    assert not observing.tracer.wants("192.0.2.7")
    assert len(observing.tracer.timelines()) == 1


def test_the_terminal_shows_explained_exchanges_only(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    observing = Observing(watched, is_counting=False, explain=2)
    observing.start(CONFIG)
    tracer = watched.tracer
    assert tracer is not None

    wanted = [tracer.wants("192.0.2.7") for _ in range(4)]
    for observer in watched.observers:
        observer(build_record(b"GET /explained HTTP/1.1", choices=[CHOICE]))
        observer(build_record(b"GET /ordinary HTTP/1.1"))
    observing.close()

    assert wanted == [True, False, True, False]
    assert watched.observers == ()
    printed = capfd.readouterr().out
    assert "GET /explained" in printed
    assert "GET /ordinary" not in printed
    os.fstat(1)  # standard output is still open
