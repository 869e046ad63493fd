"""Hostile heads cost no more per byte than ordinary ones.

Every expression of the grammar is run over texts made to make it go back and forth: long runs of
what it repeats, cut off just before it could succeed. Only CPU time of this thread counts, the
best of several runs, and factors are generous; what looks too dear is measured again before it is
told. What must not pass is a cost that grows with the square of the length, which here would be
larger by some thousand times.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from re import _constants, _parser
from typing import Any

import pytest

from atlas_pkg.config.model import Limits
from atlas_pkg.errors import ClientError, MalformedMessage
from atlas_pkg.http1 import syntax
from atlas_pkg.http1.chunked import ChunkedDecoder
from atlas_pkg.http1.message import MessageParser
from tests.http1.readers import decode

# Tracing every line would be what is measured.
pytestmark = [pytest.mark.no_cover, pytest.mark.timeout(300)]

SMALL, LARGE = 4 * 1024, 32 * 1024  # the largest head that is read is as long

# A linear cost grows by 8 between the two sizes, a square one by 64.
MOST_GROWTH = 40
# And at its large size a hostile text may cost so many times what an ordinary one does.
MOST_FACTOR = 150
# What looks too dear is measured so often, since others want the machine as well.
MEASUREMENTS = 20

# Below this a measurement says nothing.
NOISE = 50e-6

SEEDS = [
    *(bytes([byte]) for byte in b'at0 \t:-_,;="\\[]%/.\x00\xff\r\n'),
    *(b"\r\n", b"a:\r\n", b"a: b\r\n", b"\r\na", b"-a", b"a-", b"a ", b" a", b"a,", b", ", b" ,"),
    *(b"transfer-encodin", b"t-r-a-n-s-", b"content-lengt", b"c_o_n_", b"Host: a\r\n", b"te:"),
    *(b"%41", b"%4", b"::", b"0;", b"0;a", b";a=", b";a=b", b';a="', b';a="b"', b'\\"', b" ; "),
    *(b"gzip,", b"gzip ,", b"gzip, \t", b"identity", b"timeout=", b",timeout=1", b"chunked"),
]

# How each expression is used, what texts for it begin with, and an ordinary one.
Run = Callable[[bytes], object]
FIELD = b"Accept-Language: en-GB,en;q=0.5\r\n"
USES: dict[str, tuple[Run, list[bytes], bytes]] = {
    "REQUEST_LINE": (syntax.REQUEST_LINE.fullmatch, [b"", b"GET ", b"GET /"], b"G"),
    "ANY_REQUEST_LINE": (syntax.ANY_REQUEST_LINE.fullmatch, [b"GET ", b"GET /"], b"/ab"),
    "ONE_CHUNK": (syntax.ONE_CHUNK.match, [b"", b"f"], b"ab0"),
    "ABSOLUTE_TARGET": (syntax.ABSOLUTE_TARGET.fullmatch, [b"http://", b"http://a/"], b"a"),
    "HOST": (syntax.HOST.fullmatch, [b"", b"[", b"a:"], b"a"),
    "STATUS_LINE": (syntax.STATUS_LINE.fullmatch, [b"", b"HTTP/1.1 200 "], b"HTTP"),
    "FIELD_BLOCK": (syntax.FIELD_BLOCK.fullmatch, [b"\r\n", b"\r\na:"], FIELD),
    "FIELD_NAME": (syntax.FIELD_NAME.fullmatch, [b""], b"a"),
    "DIGITS": (syntax.DIGITS.fullmatch, [b""], b"1"),
    "CODINGS_BEFORE_CHUNKED": (syntax.CODINGS_BEFORE_CHUNKED.fullmatch, [b"", b"gzip"], b"gzip,"),
    "KEEP_ALIVE_TIMEOUT": (syntax.KEEP_ALIVE_TIMEOUT.search, [b"", b"timeout="], b"a=b,"),
    "CHUNK_LINE": (syntax.CHUNK_LINE.fullmatch, [b"", b"0", b'0;a="'], b"0;a=b"),
    "CHUNK_START": (syntax.CHUNK_START.match, [b"", b"0"], b"0"),
    "IDENTITY": (
        syntax.IDENTITY.search,
        [b"\r\n", b"\r\nwww-authenticate:", b"\r\nauthorization: "],
        FIELD,
    ),
    "BAD_LINE_END": (syntax.BAD_LINE_END.search, [b"", b"\r\n"], FIELD),
}


def build(prefix: bytes, seed: bytes, size: int, suffix: bytes = b"") -> bytes:
    return (prefix + seed * (size // len(seed) + 1))[:size] + suffix


def cost(run: Run, text: bytes, times: int = 3) -> float:
    """CPU seconds of one run, the best of so many."""
    best = float("inf")
    for _ in range(times):
        began = time.thread_time()
        run(text)
        best = min(best, time.thread_time() - began)
    return max(best, NOISE)


def is_dear(
    run: Run, small: bytes, large: bytes, ordinary: float, *, growth: float = MOST_GROWTH
) -> bool:
    """Does the large text cost too much, however often it is measured?"""
    of_small = of_large = float("inf")
    for _ in range(MEASUREMENTS):
        of_small = min(of_small, cost(run, small, 1))
        of_large = min(of_large, cost(run, large, 1))
        if of_large <= of_small * growth and of_large <= ordinary * MOST_FACTOR:
            return False
    return True


def check(run: Run, prefix: bytes, seed: bytes, ordinary: float) -> list[str]:
    """Compare hostile texts with each other and with an ordinary one."""
    offences = []
    for suffix in (b"", b"\x00", b"\r\n"):
        small, large = (build(prefix, seed, size, suffix) for size in (SMALL, LARGE))
        if is_dear(run, small, large, ordinary):
            offences.append(f"{prefix!r} {seed!r} {suffix!r}: ordinary {ordinary:.6f} s")
    return offences


def test_every_expression_is_measured() -> None:
    compiled = {name for name, value in vars(syntax).items() if isinstance(value, re.Pattern)}

    assert compiled == USES.keys() | {"NOTABLE_IN_REQUESTS", "NOTABLE_IN_ANSWERS"}


def repeats_groups_possessively(part: Any) -> bool:
    """Does an expression, as the library has parsed it, or a part of it?"""
    if not isinstance(part, (list, tuple, _parser.SubPattern)):
        return False
    if len(part) == 2 and part[0] is _constants.POSSESSIVE_REPEAT:
        repeated = part[1][2]
        if len(repeated) > 1 or repeated[0][0] not in ONE_BYTE:
            return True
    return any(map(repeats_groups_possessively, part))


ONE_BYTE = {_constants.LITERAL, _constants.NOT_LITERAL, _constants.IN, _constants.ANY}


@pytest.mark.parametrize(
    "expression", [value for value in vars(syntax).values() if isinstance(value, re.Pattern)]
)
def test_only_single_bytes_are_repeated_possessively(expression: re.Pattern[bytes]) -> None:
    assert not repeats_groups_possessively(_parser.parse(expression.pattern))


def test_a_group_that_is_repeated_possessively_is_found() -> None:
    assert repeats_groups_possessively(_parser.parse(rb"a(?:b|(?:c++d)*+e)"))
    assert not repeats_groups_possessively(_parser.parse(rb"a(?:b|(?:c++d)*e)"))


@pytest.mark.parametrize("name", USES)
def test_hostile_text_costs_no_more_than_ordinary(name: str) -> None:
    run, prefixes, usual = USES[name]
    ordinary = cost(run, build(prefixes[0], usual, LARGE))

    offences = [
        offence
        for prefix in prefixes
        for seed in SEEDS
        for offence in check(run, prefix, seed, ordinary)
    ]

    assert offences == []


NAME_SEEDS = [
    *(b"t", b"-", b"t-", b"-t", b"transfer", b"t-r-a-n-s-f-e-r-", b"contentlengt"),
    *(
        b"c-o-n-t-e-n-t-",
        b"x-forwarded-",
        b"x_forwarded.x-",
        b"forwarded",
        b"_",
        b"a",
        b"1",
        b"transferencodin",
        b"te-",
        b"hos",
        b"connectio",
    ),
]


@pytest.mark.parametrize("run_length", [1, 10, 100, 10_000, 60_000])
def test_hostile_names_cost_no_more_than_ordinary(run_length: int) -> None:
    def run(block: bytes) -> list[bytes | None]:
        assert syntax.FIELD_BLOCK.fullmatch(block)  # it is never used before that
        return [match[1] for match in syntax.NOTABLE_IN_REQUESTS.finditer(block)]

    ordinary = cost(run, b"\r\n" + FIELD * (LARGE // len(FIELD)))
    offences = []
    for seed in NAME_SEEDS:
        line = build(b"", seed, run_length) + b":\r\n"
        small, large = (b"\r\n" + line * max(1, size // len(line)) for size in (SMALL, LARGE))
        # Where both are the same single line, there is no growth to be seen.
        growth = MOST_GROWTH if run_length <= SMALL else float("inf")
        if is_dear(run, small, large, ordinary, growth=growth):
            offences.append(f"{seed!r}: ordinary {ordinary:.6f} s")

    assert offences == []


def parse(head: bytes) -> None:
    limits = Limits(request_line=2 * LARGE, head=2 * LARGE, fields=2 * LARGE)
    try:
        MessageParser(limits).parse_request(head)
    except ClientError:
        return


HEADS = [
    b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://%b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nExpect: %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: %b\r\nConnection: upgrade\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n%b: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n%bX: b\r\n\r\n",
]


@pytest.mark.parametrize("frame", HEADS, ids=range(len(HEADS)))
def test_hostile_head_costs_no_more_than_an_ordinary_one(frame: bytes) -> None:
    ordinary = cost(parse, HEADS[-1].replace(b"%b", FIELD * (LARGE // len(FIELD))))

    offences = []
    for seed in SEEDS + NAME_SEEDS + [b"Connection: a\r\n", b"te: a\r\n", b"Cookie: a\r\n"]:
        small, large = (frame.replace(b"%b", build(b"", seed, size)) for size in (SMALL, LARGE))
        if is_dear(parse, small, large, ordinary):
            offences.append(f"{seed!r}: ordinary {ordinary:.6f} s")

    assert offences == []


def test_hostile_chunks_cost_no_more_than_ordinary_ones() -> None:
    def run(data: bytes) -> None:
        decoder = ChunkedDecoder(LARGE)
        try:
            decode(decoder, data)
        except MalformedMessage:
            return

    def drip(data: bytes) -> None:
        decoder = ChunkedDecoder(LARGE)
        try:
            for at in range(0, len(data), 256):
                decode(decoder, data[at : at + 256])
        except MalformedMessage:
            return

    for way in (run, drip):
        ordinary = cost(way, b"5\r\nhello\r\n" * (LARGE // 10))
        offences = [
            offence
            for prefix in (b"", b"0", b"5\r\nhello", b"0\r\n", b"1;a=b\r\nx\r\n")
            for seed in [*SEEDS, b"1\r\nx\r\n", b"01;a\r\nx\r\n", b"0;a=b\r\n"]
            for offence in check(way, prefix, seed, ordinary)
        ]
        assert offences == []
