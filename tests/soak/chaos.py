"""Atlas with three upstreams of which one is ill at a time, and clients that note what they hear.

Every illness ends before the next one begins, with a rest in between that is longer than Atlas
waits for an answer. So a request that one upstream fails finds another that is well, and whatever
a client hears beyond the exceptions is a fault of Atlas:

* a request that may be sent twice succeeds, unless an upstream itself answered 500, or began an
  answer and broke it off, or too many had to be sent twice at the same time (Atlas counts those);
* a POST reaches one upstream or none, never two, and exactly one where its client heard 200.
"""

from __future__ import annotations

import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.functional.admin_client import ADMIN, AdminClient
from tests.toolkit import ROOT, Atlas, Client, Cut, Program, Threads, build_config, wait_until

NAMES = ("red", "green", "blue")
CLIENTS = 8
REST = 1.6  # longer than `upstream_head` and `connect`
SHARE = 100  # of each, when all are well again

ILLNESSES = ("killed", "stopped", "answers 500", "cuts bodies")


class Patient:
    """An upstream process that can be made ill and well again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.delivered: list[str] = []  # by processes that have ended
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.soak.upstream", self.name, str(self.port)]
        self.program = Program(command, cwd=ROOT)
        wait_until(lambda: self.program.printed, "the upstream to listen")
        self.port = int(self.program.printed[0])

    def fall_ill(self, illness: str) -> None:
        match illness:
            case "killed":
                self.end()
            case "stopped":
                self.program.send_signal(signal.SIGSTOP)
            case "answers 500":
                self.program.send_signal(signal.SIGUSR1)
            case "cuts bodies":
                self.program.send_signal(signal.SIGUSR2)

    def recover(self, illness: str) -> None:
        match illness:
            case "killed":
                self._start()
            case "stopped":
                self.program.send_signal(signal.SIGCONT)
            case _:
                self.program.send_signal(signal.SIGHUP)

    def end(self) -> None:
        self.program.end()
        self.delivered += self.program.printed[1:]

    def table(self) -> dict[str, object]:
        return {"name": self.name, "address": "127.0.0.1", "port": self.port}


@dataclass
class Figures:
    """What came of it."""

    heard: Counter[str] = field(default_factory=Counter)  # "GET ok", "POST 502", ...
    failed: list[str] = field(default_factory=list)  # GETs that should not have failed
    refused: int = 0  # second attempts for which the budget of retries left no room
    succeeded: set[str] = field(default_factory=set)  # tokens whose client heard 200
    delivered: Counter[str] = field(default_factory=Counter)  # tokens that upstreams saw
    illnesses: Counter[str] = field(default_factory=Counter)
    shares: Counter[str] = field(default_factory=Counter)  # after all of it
    log: str = ""

    def lines(self) -> Iterator[str]:
        """Tell it in a few lines."""
        total = self.heard.total()
        yield f"illnesses: {dict(self.illnesses)}"
        yield f"{total:,} requests: {dict(sorted(self.heard.items()))}"
        yield f"{len(self.succeeded):,} POSTs succeeded"
        yield f"{self.refused} retries were over the budget"
        yield f"shares afterwards: {dict(sorted(self.shares.items()))}"

    def findings(self) -> Iterator[str]:
        """What must not happen, in words."""
        if len(self.failed) > self.refused:
            yield f"GETs failed, {self.refused} of them with an excuse: {self.failed}"
        twice = [token for token, count in self.delivered.items() if count > 1]
        yield from (f"a POST was delivered twice: {token}" for token in twice)
        lost = self.succeeded - set(self.delivered)
        yield from (f"a POST succeeded that no upstream has seen: {token}" for token in lost)
        for name in NAMES:
            if abs(self.shares[name] - SHARE) > SHARE * 3 // 100:
                yield f"{name} answers {self.shares[name]} of {3 * SHARE} requests afterwards"


def build(patients: list[Patient]) -> str:
    return build_config(
        *(patient.table() for patient in patients),
        routing={"strategy": "round_robin", "retries": 1},
        timeouts={"connect": 1.0, "upstream_head": 1.0, "upstream_body": 1.0},
        health_check={"path": "/health", "interval": 0.2, "timeout": 0.5, "rise": 2, "fall": 2},
        circuit_breaker={"failures": 3, "open_for": 0.3, "max_open_for": 1.0, "statuses": [500]},
        admin=ADMIN,
    )


class Customer:
    """One client with its own connection; notes what it hears."""

    def __init__(self, atlas: Atlas, number: int, seed: int) -> None:
        self._atlas = atlas
        self._number = number
        self._dice = random.Random(f"{seed} {number}")
        self._client: Client | None = None
        self.figures = Figures()

    def shop(self, is_over: threading.Event) -> Figures:
        count = 0
        # A pause between requests, so that a stalled upstream does not get all clients at once.
        while not is_over.wait(self._dice.uniform(0.002, 0.02)):
            count += 1
            if self._dice.random() < 0.3:
                self._post(f"{self._number}-{count}")
            else:
                self._get()
        self._leave()
        return self.figures

    def _get(self) -> None:
        heard = self._ask("GET", "")
        self.figures.heard[f"GET {heard}"] += 1
        if heard not in ("200", "500", "cut"):
            self.figures.failed.append(f"{heard} at {time.strftime('%X')}")

    def _post(self, token: str) -> None:
        heard = self._ask("POST", token)
        self.figures.heard[f"POST {heard}"] += 1
        if heard == "200":
            self.figures.succeeded.add(token)

    def _ask(self, method: str, token: str) -> str:
        """Ask once; returns the status, or how the answer ended."""
        has_head = False
        try:
            if self._client is None:
                self._client = self._atlas.client()
            fields = {"X-Token": token, "Content-Length": "4"} if token else {}
            self._client.send_head(method, **fields)
            if token:
                self._client.send(b"body")
            head = self._client.read_head()
            has_head = True
            for _ in self._client.read_body(head):
                pass
        except (Cut, OSError) as error:
            self._leave()
            return "cut" if has_head else f"nothing ({type(error).__name__})"
        if head.get("Connection") == "close":
            self._leave()
        return str(head.status)

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


@contextmanager
def hospital() -> Iterator[list[Patient]]:
    """Three upstreams, which are ended whatever happens."""
    with ExitStack() as stack:
        patients = []
        for name in NAMES:
            patients.append(Patient(name))
            stack.callback(patients[-1].end)
        yield patients


def play(folder: Path, seconds: float, *, seed: int) -> Figures:
    """Let it go on for so long; returns the figures."""
    figures = Figures()
    path = folder / "atlas.toml"
    with hospital() as patients:
        path.write_text(build(patients))
        with Atlas(path).wait_until_listening() as atlas:
            customers = [Customer(atlas, number, seed) for number in range(CLIENTS)]
            is_over = threading.Event()
            threads = Threads()
            for customer in customers:
                threads.start(customer.shop, is_over)
            try:
                _make_ill(patients, seconds, random.Random(seed), figures)
            finally:
                is_over.set()
            for heard in threads.join():
                figures.heard += heard.heard
                figures.failed += heard.failed
                figures.succeeded |= heard.succeeded
            figures.shares = _shares_afterwards(atlas)
            metrics = AdminClient(atlas).metrics()
            figures.refused = sum(
                int(metrics[f"atlas_retries_refused_total {name}"]) for name in NAMES
            )
            atlas.send_signal(signal.SIGUSR1)
            for name in NAMES:  # up, weight 1, nothing in flight
                row = re.compile(rf"atlas: {name} +\S+ +up(, status 200)? +1 +0 ")
                wait_until(lambda row=row: row.search(atlas.log), f"{name} to be well")  # type: ignore[misc]
            figures.log = atlas.log
    for patient in patients:
        figures.delivered.update(patient.delivered)
    return figures


def _make_ill(
    patients: list[Patient], seconds: float, dice: random.Random, figures: Figures
) -> None:
    """One upstream after another; each kind of illness comes up in turn, in any order."""
    deadline = time.monotonic() + seconds
    waiting: list[str] = []
    while time.monotonic() < deadline:
        waiting = waiting or dice.sample(ILLNESSES, len(ILLNESSES))
        illness, patient = waiting.pop(), dice.choice(patients)
        _let_pass(0.2)
        patient.fall_ill(illness)
        figures.illnesses[illness] += 1
        _let_pass(dice.uniform(0.3, 1.5))
        patient.recover(illness)
        _let_pass(REST)


def _let_pass(seconds: float) -> None:
    threading.Event().wait(seconds)


def _shares_afterwards(atlas: Atlas) -> Counter[str]:
    """Wait until all three are back, and see who answers how often."""

    def ask(count: int) -> Counter[str]:
        with atlas.client() as client:
            return Counter(client.get().text for _ in range(count))

    wait_until(lambda: len(ask(9)) == 3, "all upstreams to be back")
    return ask(3 * SHARE)
