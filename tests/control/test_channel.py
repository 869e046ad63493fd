"""Two processes and what is between them, whoever dies and whenever."""

from __future__ import annotations

import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atlas_pkg.control.channel import (
    Asker,
    Bell,
    End,
    SharedText,
    answer_forever,
    open_bell,
    open_channel,
)
from tests.toolkit import wait_until

SIZE = 4096

Answer = Callable[[Any], Any]


def test_the_newest_text_is_read() -> None:
    text = SharedText(SIZE)
    assert text.read() == b""

    for number in range(5):
        text.write(b"text %d" % number)
        assert text.read() == b"text %d" % number


def test_a_text_that_is_too_long_is_refused_and_the_old_one_stays() -> None:
    text = SharedText(8)
    text.write(b"12345678")

    with pytest.raises(ValueError, match="9 bytes does not fit into 8"):
        text.write(b"123456789")

    assert text.read() == b"12345678"


@pytest.mark.parametrize("written", range(1, 40))
def test_a_writer_who_dies_halfway_leaves_the_text_before(written: int) -> None:
    text, other = SharedText(64), SharedText(64)
    for version in (b"one", b"two", b"three"):
        text.write(version)
        other.write(version)
    text.write(b"four, and this is longer")
    before, after = other._memory[:], text._memory[:]

    # In the order in which it is written: the text, then the head before it.
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    head = [at for at in changed if at % 80 < 16]
    order = [at for at in changed if at not in head] + head
    for at in order[: min(written, len(order) - 1)]:
        other._memory[at] = after[at]

    assert other.read() == b"three"
    other.write(b"five")
    assert other.read() == b"five"


def test_the_checksum_covers_the_version() -> None:
    text = SharedText(SIZE)
    text.write(b"one")
    text._memory[16 + SIZE] ^= 2  # a version of 3

    assert text.read() == b""
    assert zlib.crc32(b"one", 3) != zlib.crc32(b"one", 1)


def test_a_reader_never_sees_half_a_text() -> None:
    text = SharedText(SIZE)
    pid = os.fork()
    if pid == 0:
        number = 0
        while True:
            number += 1
            text.write(b"%d " % (number % 10) * (number % 1000))
    try:
        deadline = time.monotonic() + 0.5
        seen = set()
        while time.monotonic() < deadline or len(seen) <= 5:
            words = text.read().split()
            assert len(set(words)) <= 1
            seen.add(len(words))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_words_through_a_bell_stay_apart(bells: tuple[Bell, Bell]) -> None:
    bell, its_bell = bells
    for word in (b"r", b"u", b"r"):
        bell.ring(word)

    assert its_bell.wait() == b"rur"
    assert its_bell.wait(0) == b""


def test_who_does_not_listen_stops_nobody(bells: tuple[Bell, Bell]) -> None:
    bell, its_bell = bells

    for _ in range(100_000):
        bell.ring()

    assert its_bell.wait(0)


def test_the_end_of_the_other_side_is_told(bells: tuple[Bell, Bell]) -> None:
    bell, its_bell = bells
    its_bell.ring()

    bell.close()

    assert its_bell.wait() is None
    its_bell.ring()


Channels = list[tuple[End, End]]
Serve = Callable[[End, Answer], None]


@pytest.fixture
def channels() -> Iterator[Channels]:
    made = [open_channel(SIZE), open_channel(SIZE)]
    yield made
    for ends in made:
        for end in ends:
            end.bell.close()


@pytest.fixture
def serve(channels: Channels) -> Iterator[Serve]:
    """Answer at one end of a channel, in a thread."""
    threads = []

    def start(end: End, answer: Answer) -> None:
        threads.append(threading.Thread(target=answer_forever, args=(end, answer)))
        threads[-1].start()

    yield start
    for ours, _ in channels:
        ours.bell.close()  # ends them
    for thread in threads:
        thread.join(20)


@pytest.fixture
def bells() -> Iterator[tuple[Bell, Bell]]:
    made = open_bell()
    yield made
    for bell in made:
        bell.close()


def asker(channels: Channels, patience: float = 15.0) -> Asker:
    return Asker([ours for ours, _ in channels], patience)


def test_all_are_asked_and_answer(channels: Channels, serve: Serve) -> None:
    serve(channels[0][1], lambda question: [1, question])
    serve(channels[1][1], lambda question: [2, question])
    both = asker(channels)

    assert both.ask("a") == {1: [1, "a"], 2: [2, "a"]}
    assert both.ask("b") == {1: [1, "b"], 2: [2, "b"]}


def test_many_may_ask_at_once(channels: Channels, serve: Serve) -> None:
    for _, its in channels:
        serve(its, lambda question: question)
    both = asker(channels)
    wrong: list[object] = []

    def ask(number: int) -> None:
        for turn in range(20):
            question = f"{number} {turn}"
            found = both.ask(question)
            if found != {1: question, 2: question}:
                wrong.append((question, found))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert wrong == []


def test_nobody_waits_twice_for_one_that_hangs(channels: Channels, serve: Serve) -> None:
    may_answer = threading.Event()

    def hang(question: str) -> str:
        may_answer.wait(15)
        return question

    serve(channels[0][1], lambda question: question)
    serve(channels[1][1], hang)
    both = asker(channels, patience=0.2)

    assert both.ask("a") == {1: "a"}
    both._patience = 15.0
    assert both.ask("b") == {1: "b"}
    may_answer.set()
    # It has heard of the newest question only, and is waited for again.
    wait_until(lambda: both.ask("c") == {1: "c", 2: "c"}, "it to be back")


def test_a_failure_to_answer_does_not_end_the_answering(
    channels: Channels, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(question: str) -> str:
        if question == "bad":
            raise ValueError("toy")
        return question if question != "long" else "x" * SIZE

    serve(channels[0][1], answer)
    one = asker(channels[:1], patience=0.2)

    assert one.ask("bad") == {}
    assert one.ask("long") == {}
    one._patience = 15.0
    wait_until(lambda: one.ask("good") == {1: "good"}, "an answer")
    assert "this process cannot answer" in caplog.text


def test_who_replaces_one_that_answers_knows_what_was_asked(
    channels: Channels, serve: Serve
) -> None:
    one = asker(channels[:1], patience=0.05)
    its = channels[0][1]
    assert one.ask("before it was there") == {}

    assert its.heard()["question"] == "before it was there"
    serve(its, lambda question: question)

    one._patience = 15.0
    wait_until(lambda: one.ask("now") == {1: "now"}, "an answer")


def test_who_replaces_the_one_that_asks_goes_on_with_its_numbers(
    channels: Channels, serve: Serve
) -> None:
    for _, its in channels:
        serve(its, lambda question: question)
    for number in range(3):
        assert asker(channels).ask(number) == {1: number, 2: number}

    assert channels[0][0].said() == {"number": 3, "question": 2}
