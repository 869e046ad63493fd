"""A memo of bounded size: what was parsed once need not be parsed again.

Clients repeat themselves, and so do upstreams: most heads differ from the one before in the target,
or in nothing at all. Parsed values never change, so equal bytes may share one value.

Only bytes that are not too long are remembered, and a full memo forgets everything: both bound its
memory, and refilling it costs little. Heads that are never the same twice must not pay for the
memo; so whole heads are only remembered once their block of fields is known already (`message.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

# At most some 3 MB for each memo.
MAX_ENTRIES = 1024
MAX_KEY_BYTES = 2048


class Memo(Generic[Value]):
    """Values by bytes. `get` returns None for what is not remembered.

    Shared by all threads without a lock: it does single dictionary operations only, each atomic by
    itself, and a value built twice or forgotten early does no harm.
    """

    __slots__ = ("_known", "get")

    def __init__(self) -> None:
        self._known: dict[bytes, Value] = {}
        self.get: Callable[[bytes], Value | None] = self._known.get

    def put(self, key: bytes, value: Value) -> None:
        """Remember `value`, unless `key` is long."""
        if len(key) > MAX_KEY_BYTES:
            return
        if len(self._known) >= MAX_ENTRIES:
            self._known.clear()
        self._known[key] = value
