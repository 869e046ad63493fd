"""The common road is short: so few calls of Python functions make a small GET on kept connections.

The test takes the lane's steps itself, in its own thread, and counts. Counts are the same on every
machine; times are not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Self

import pytest

from atlas_pkg.serving.lane import HAS_EPOLL
from tests.fakes import build_answer
from tests.serving.lane_support import Scene

pytestmark = [
    pytest.mark.skipif(not HAS_EPOLL, reason="without an epoll every client has a thread"),
    pytest.mark.no_cover,  # whoever traces calls cannot count them
]

MOST_CALLS = 30

BODY = b"x" * 1024
ANSWER = build_answer(BODY, fields="Server: nginx\r\nContent-Type: text/plain\r\n")


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def exchange(scene: Scene) -> None:
    scene.ask()
    scene.upstream.sendall(ANSWER)
    scene.step()
    assert scene.read(BODY).endswith(b"\r\n\r\n" + BODY)


class Calls:
    """Notes each Python function of Atlas that is called in this thread, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/atlas_pkg/" in frame.f_code.co_filename:
            place = frame.f_code.co_filename.rpartition("/atlas_pkg/")[2]
            self.names.append(f"{place} {frame.f_code.co_qualname}")


def test_a_small_get_takes_few_calls(scene: Scene) -> None:
    for _ in range(3):  # what is remembered is remembered from the second time on
        exchange(scene)

    with Calls() as calls:
        exchange(scene)

    assert len(calls.names) <= MOST_CALLS, "\n".join(["too many calls:", *calls.names])
