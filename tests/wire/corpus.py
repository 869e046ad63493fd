r"""Reads the cases in `tests/wire/cases`.

A case is a text file: a sentence that says what is right, a header, and what each party does.

    # A second Content-Length is refused, even an equal one.
    rule: 9
    direction: request
    expect: 400
    forwarded: nothing
    --- request
    POST / HTTP/1.1\r\n
    ...

Line ends in a section mean nothing; `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH` stand for bytes, and
`\{text*count}` for a repetition. The header knows:

    rule       number in the list of wire rules
    direction  request: what a client may send; answer: what an upstream may
    verdict    what Atlas does: pass (on as it came), repair (make unambiguous), refuse (or cut)
    expect     statuses the client hears, in order; `nothing`: the end of the connection alone
    forwarded  nothing · incomplete (never a whole request) · unchanged (exactly what was sent)
    then       closed: the connection ends after that
    config     which configuration of Atlas it runs on: plain (default), quick, full, limited
    deliver    whole: not cut in pieces; alone: also not behind another request
    peers      no: speaks of something that only Atlas is asked to do

Sections are steps, each party's in its own order. The short names are for cases of one turn:

    request    client sends            forwarded  upstream receives
    received   client receives         answer     upstream sends

Further ones: `client receives 502` (such an answer of Atlas's own), `client closes` (its sending
half), `client resets`, `client ends` (it sees the end of the connection), `client is reset`, and
the same for the upstream. What is left out is the usual: a plain GET, passed on, answered with
200.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CASES = Path(__file__).parent / "cases"

DEFAULT_REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
DEFAULT_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

_SHORT = {
    "request": "client sends",
    "forwarded": "upstream receives",
    "answer": "upstream sends",
    "received": "client receives",
}
_STEP = re.compile(
    r"(client|upstream) (sends|receives|closes|resets|ends|is reset)(?: ([1-5][0-9]{2}))?"
)
_HEADER = {
    "rule": r"[1-9]|[12][0-9]",
    "direction": "request|answer",
    "verdict": "pass|repair|refuse",
    "expect": r"[1-5][0-9]{2}(, [1-5][0-9]{2})*|nothing",
    "forwarded": "nothing|incomplete|unchanged",
    "then": "closed",
    "config": r"\w+",
    "deliver": "whole|alone",
    "peers": "no",
}
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|\{(.*?)\*(\d+)\}|(.))")
_LETTERS = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}
_FIRST_LINE = re.compile(rb"[^ \r\n]+ [^ \r\n]+ HTTP/1\.1\r\n")


@dataclass(frozen=True)
class Step:
    """One thing that a party does or waits for; `data` is bytes, or a status that Atlas answers."""

    verb: str
    data: bytes | int = b""


@dataclass(frozen=True)
class Case:
    """One case: what the client does, and what an upstream does with each request it gets."""

    name: str
    title: str
    header: dict[str, str]
    client: tuple[Step, ...]
    upstream: tuple[tuple[Step, ...], ...]

    @property
    def rule(self) -> int:
        """Its number in the list of wire rules."""
        return int(self.header["rule"])

    @property
    def config(self) -> str:
        """The configuration it runs on."""
        return self.header.get("config", "plain")

    @property
    def sent(self) -> bytes:
        """All that the client sends."""
        return b"".join(step.data for step in self.client if step.verb == "sends")  # type: ignore[misc]


def unescape(text: str) -> bytes:
    """Turn the text of a section into bytes."""

    def replace(match: re.Match[str]) -> str:
        code, piece, count, letter = match.groups()
        if code:
            return chr(int(code, 16))
        if count:
            return _ESCAPE.sub(replace, piece) * int(count)
        return _LETTERS[letter]

    return _ESCAPE.sub(replace, text.replace("\n", "")).encode("latin-1")


def load_cases(folder: Path = CASES) -> list[Case]:
    """Read every case, in the order of their names."""
    return [parse_case(path) for path in sorted(folder.rglob("*.http"))]


def parse_case(path: Path) -> Case:
    """Read one case; raises `ValueError` for one that is not well formed."""
    top, *sections = re.split(r"^--- ", path.read_text(encoding="latin-1"), flags=re.MULTILINE)
    title = " ".join(line[2:] for line in top.splitlines() if line.startswith("# "))
    header = {}
    for line in top.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(": ")
            if not re.fullmatch(_HEADER.get(name, "(?!)"), value):
                raise ValueError(f"{path}: {line}: not in a header")
            header[name] = value
    if not title or not {"rule", "direction", "verdict"} <= set(header):
        raise ValueError(f"{path}: the header lacks something")
    steps: dict[str, list[Step]] = {"client": [], "upstream": []}
    for section in sections:
        name, _, text = section.partition("\n")
        match = _STEP.fullmatch(_SHORT.get(name, name))
        if match is None:
            raise ValueError(f"{path}: unknown section {name!r}")
        party, verb, status = match.groups()
        steps[party].append(Step(verb, int(status) if status else unescape(text)))
    name = path.relative_to(CASES).with_suffix("").as_posix() if CASES in path.parents else ""
    client = _client_steps(steps["client"], header)
    sent = b"".join(step.data for step in client if step.verb == "sends")  # type: ignore[misc]
    upstream = _upstream_scripts(steps["upstream"], header, sent)
    return Case(name or path.stem, title, header, client, upstream)


def _client_steps(own: list[Step], header: dict[str, str]) -> tuple[Step, ...]:
    if not any(step.verb == "sends" for step in own):
        own.insert(0, Step("sends", DEFAULT_REQUEST))
    expected = [word.strip() for word in header.get("expect", "").split(",") if word.strip()]
    for word in expected:
        if word == "nothing":
            own.append(Step("ends"))
            continue
        status = int(word)
        own.append(Step("receives", DEFAULT_ANSWER if status == 200 else status))
        if 400 <= status < 500 or status in {501, 505}:
            own.append(Step("ends"))
    if header.get("then") == "closed" and own[-1].verb != "ends":
        own.append(Step("ends"))
    return tuple(own)


def _upstream_scripts(
    own: list[Step], header: dict[str, str], sent: bytes
) -> tuple[tuple[Step, ...], ...]:
    if header.get("forwarded") in {"nothing", "incomplete"}:
        return ()
    if not any(step.verb == "receives" for step in own):
        own.insert(0, Step("receives", sent))
    scripts: list[list[Step]] = []
    for step in own:
        starts = isinstance(step.data, bytes) and _FIRST_LINE.match(step.data)
        if step.verb == "receives" and (starts or not scripts):
            scripts.append([])
        scripts[-1].append(step)
    for script in scripts:
        if len(script) == 1:
            script.append(Step("sends", DEFAULT_ANSWER))
    return tuple(tuple(script) for script in scripts)
