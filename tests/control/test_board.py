"""What stands on the board: the words for upstreams, and what is to be explained."""

from __future__ import annotations

from atlas_pkg.balancing.upstream import AdminState
from atlas_pkg.control.board import Asked, Board, Change, Word
from atlas_pkg.observing.tracer import Asking

A = ("a", "192.0.2.1", 80, "default")


def test_an_empty_board_says_nothing() -> None:
    told = Board().read()

    assert told == (0, {}, Asked())


def test_words_and_orders_do_not_disturb_each_other() -> None:
    board = Board()

    assert board.change(A, Change(AdminState.DRAIN, 5))
    assert board.ask(Asking(one_in=10))
    assert board.change(A, Change(resets_weight=True))

    assert board.read() == (3, {A: Word(AdminState.DRAIN, None)}, Asked(10, "", 0))


def test_each_order_for_a_client_counts_once_more() -> None:
    board = Board()
    board.ask(Asking(next_from="192.0.2.7"))
    board.ask(Asking(one_in=5))
    first = board.read()
    board.ask(Asking(next_from="192.0.2.7"))
    second = board.read()

    assert first is not None
    assert second is not None
    assert (first.asked, second.asked) == (Asked(5, "192.0.2.7", 1), Asked(5, "192.0.2.7", 2))


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    board = Board(128)
    board.ask(Asking(one_in=3))
    before = board.read()

    assert not board.change(("n" * 100, "192.0.2.1", 80, "default"), Change(AdminState.DRAIN))
    assert board.read() == before
