"""What is remembered, for how long, and what is not worth it."""

from __future__ import annotations

from atlas_pkg.http1.memo import MAX_ENTRIES, MAX_KEY_BYTES, RARE, Memo


def key(number: int) -> bytes:
    return b"key %d" % number


def fill(memo: Memo[int], begin: int, count: int) -> int:
    """Offer so many new keys; returns how many of them are known afterwards."""
    for number in range(begin, begin + count):
        memo.put(key(number), number)
    return sum(memo.get(key(number)) is not None for number in range(begin, begin + count))


def test_it_knows_what_it_was_given() -> None:
    memo: Memo[int] = Memo()

    memo.put(b"a", 1)

    assert memo.get(b"a") == 1
    assert memo.get(b"b") is None


def test_long_keys_are_not_remembered() -> None:
    memo: Memo[int] = Memo()

    memo.put(b"a" * MAX_KEY_BYTES, 1)
    memo.put(b"b" * (MAX_KEY_BYTES + 1), 2)

    assert memo.get(b"a" * MAX_KEY_BYTES) == 1
    assert memo.get(b"b" * (MAX_KEY_BYTES + 1)) is None


def test_a_full_one_begins_anew() -> None:
    memo: Memo[int] = Memo()
    assert fill(memo, 0, MAX_ENTRIES) == MAX_ENTRIES

    memo.put(b"one more", 1)

    assert memo.get(key(0)) is None
    assert memo.get(b"one more") == 1
    assert fill(memo, 0, MAX_ENTRIES // 2) == MAX_ENTRIES // 2


def test_what_never_comes_twice_is_rarely_remembered() -> None:
    memo: Memo[int] = Memo(counts_hits=True)
    assert fill(memo, 0, MAX_ENTRIES) == MAX_ENTRIES
    memo.put(b"one more", 1)  # full, and nothing was ever asked for

    assert fill(memo, MAX_ENTRIES, MAX_ENTRIES) == MAX_ENTRIES // RARE


def test_what_comes_again_is_remembered_again() -> None:
    memo: Memo[int] = Memo(counts_hits=True)
    fill(memo, 0, MAX_ENTRIES + 1)
    memo.hits = MAX_ENTRIES // RARE  # those that were kept are asked for after all
    fill(memo, MAX_ENTRIES, MAX_ENTRIES * RARE)

    assert fill(memo, 0, MAX_ENTRIES // 2) == MAX_ENTRIES // 2
