"""The fuzz targets hold for all seeds, and they can fail."""

from __future__ import annotations

import pytest

from atlas_pkg.http1 import chunked
from tests.soak.targets import CHUNKS, REQUEST, check, seeds


def test_no_seed_is_a_finding() -> None:
    for seed in seeds():
        check(seed)


def test_a_framing_that_is_not_checked_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_anything(self: chunked.ChunkedDecoder, line: bytes) -> None:
        self.remaining = int(line.split(b";")[0] or b"0", 16)
        self._part = chunked._Part.DATA if self.remaining else chunked._Part.TRAILERS

    monkeypatch.setattr(chunked.ChunkedDecoder, "_take_size", take_anything)

    with pytest.raises(AssertionError):
        check(bytes([CHUNKS, 128]) + b"0x5\r\nhello\r\n0\r\n\r\n")


def test_empty_input_is_no_finding() -> None:
    check(b"")
    check(bytes([REQUEST]))
