"""A memo of bounded size: what was parsed once need not be parsed again.

Clients repeat themselves, and so do upstreams: most heads differ from the one before in the target,
or in nothing at all. Parsed values never change, so equal bytes may share one value.

Only bytes that are not too long are remembered, and a full memo forgets everything: both bound its
memory, and refilling it costs little. Heads that are never the same twice must not pay for the
memo; so whole heads are only remembered once their block of fields is known already (`message.py`),
and a memo that is not asked for what it knows takes little more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

# At most some 3 MB for each memo.
MAX_ENTRIES = 1024
MAX_KEY_BYTES = 2048

# Where fewer than one key in so many came twice before the memo was full, only one in so many is
# remembered until it is full again. (Every head different: 4 % of the CPU time.)
RARE = 8


class Memo(Generic[Value]):
    """Values by bytes. `get` returns None for what is not remembered.

    Shared by all threads without a lock: it does single dictionary operations only, each atomic by
    itself, and a value built twice or forgotten early does no harm.
    """

    __slots__ = ("_counts_hits", "_known", "_offered", "_takes_all", "get", "hits")

    def __init__(self, *, counts_hits: bool = False) -> None:
        """With `counts_hits`, whoever finds something counts it in `hits`."""
        self._known: dict[bytes, Value] = {}
        self._counts_hits = counts_hits
        self._takes_all = True
        self._offered = 0
        self.hits = 0
        self.get: Callable[[bytes], Value | None] = self._known.get

    def put(self, key: bytes, value: Value) -> None:
        """Remember `value`, unless `key` is long, or keys like it are not asked for again."""
        self._offered += 1
        if len(key) > MAX_KEY_BYTES or not (self._takes_all or self._offered % RARE == 0):
            return
        if len(self._known) >= MAX_ENTRIES:
            self._known.clear()
            self._takes_all = not self._counts_hits or self.hits * RARE >= MAX_ENTRIES
            self.hits = 0
        self._known[key] = value
