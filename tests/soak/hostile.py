"""A siege: Atlas among hostile clients, and one polite client that measures how it is served.

Four processes: the upstream, Atlas, the attackers, and this one, which asks politely every 20 ms
and watches Atlas's memory, threads and descriptors. A second polite client asks the upstream
itself: what it has to wait is the machine's doing and not Atlas's. Latency counts from when a
request was due, so one that is held up by the one before it counts as slow too.

After the ramp the three figures have to stay where they are; what grows under attack falls in the
end.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.toolkit import ROOT, Atlas, Client, Cut, Program, build_config, wait_until

INTERVAL = 0.02

# By so much may the last third of a siege be above the one before it. The C library gives threads
# arenas of their own, which fill one by one: with MALLOC_ARENA_MAX=1 memory stands still.
MEMORY_SLACK = 12 * 1024 * 1024
THREAD_SLACK = 16
# Attackers come in waves of so many. What is not given back shows afterwards.
DESCRIPTOR_SLACK = 2000
FEW_DESCRIPTORS = 300

# Outcomes that say that Atlas let go on what it has to end, or did not serve what it has to.
FINDINGS = {"swallowed", "no answer", "lost", "503"}


@dataclass(frozen=True)
class Sample:
    """Atlas at one instant."""

    at: float
    memory: int
    peak_memory: int
    threads: int
    descriptors: int

    def describe(self) -> str:
        mib = 1024 * 1024
        return (
            f"{self.at:6.1f} s  memory {self.memory / mib:6.1f} MiB "
            f"(peak {self.peak_memory / mib:.1f})  threads {self.threads:4}  "
            f"descriptors {self.descriptors:6}"
        )


@dataclass
class Polite:
    """A client that asks once every `INTERVAL`, in a thread of its own."""

    port: int
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(60)

    def _run(self) -> None:
        due = time.monotonic()
        count = 0
        client: Client | None = None
        while not self._is_over.wait(max(0.0, due - time.monotonic())):
            try:
                if client is None:
                    client = Client(self.port)
                answer = client.get("/polite")
                if (answer.status, answer.body) != (200, b"fine"):
                    self.failures.append(f"{answer.status} {answer.body[:80]!r}")
            except (OSError, Cut, IndexError) as error:
                self.failures.append(repr(error))
                client = None
            now = time.monotonic()
            self.latencies.append(now - due)
            due = max(due + INTERVAL, now - 1.0)
            count += 1
            if client is not None and count % 10 == 0:  # new clients have to be let in too
                client.close()
                client = None
        if client is not None:
            client.close()

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies) or [0.0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    def describe(self) -> str:
        p50, p99 = self.percentile(0.5) * 1000, self.percentile(0.99) * 1000
        return (
            f"{len(self.latencies)} requests, {len(self.failures)} failed, "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {self.percentile(1.0) * 1000:.1f} ms"
        )


@dataclass
class Outcome:
    """What a siege has shown."""

    samples: list[Sample]
    before: Polite
    through: Polite
    direct: Polite
    attacks: dict[str, dict[str, int]]
    log: str

    def findings(self) -> list[str]:
        """What must not happen on any machine, however busy that is, in words."""
        found = [f"a polite request failed: {failure}" for failure in self.through.failures[:5]]
        for name, outcomes in self.attacks.items():
            found += [f"{name}: {word}" for word in outcomes if word in FINDINGS]
        if "Traceback" in self.log:
            found.append("a traceback in the log of Atlas")
        return found

    def problems(self, latency_limit: float) -> list[str]:
        """Everything that must not have happened where nothing else keeps the machine busy."""
        found = self.findings()
        if self.through.percentile(0.99) > latency_limit:
            found.append(
                f"the polite client's p99 is over {latency_limit * 1000:g} ms: "
                f"{self.through.percentile(0.99) * 1000:.1f} ms"
            )
        return found + self._find_growth()

    def _find_growth(self) -> list[str]:
        """Compare the last third of the samples with the one before it."""
        third = len(self.samples) // 3
        if not third:
            return ["too few samples"]
        middle, last = self.samples[-2 * third : -third], self.samples[-third:]

        def grew(look: Callable[[Sample], int], slack: float) -> bool:
            return statistics.median(map(look, last)) > max(map(look, middle)) + slack

        figures: list[tuple[str, Callable[[Sample], int], float]] = [
            ("memory", lambda sample: sample.memory, MEMORY_SLACK),
            ("threads", lambda sample: sample.threads, THREAD_SLACK),
            ("descriptors", lambda sample: sample.descriptors, DESCRIPTOR_SLACK),
        ]
        return [f"{name} went on growing" for name, look, slack in figures if grew(look, slack)]


def take_sample(atlas: Atlas, began: float) -> Sample:
    return Sample(
        time.monotonic() - began,
        atlas.read_status("VmRSS") * 1024,
        atlas.peak_memory,
        atlas.threads,
        atlas.descriptors,
    )


def besiege(
    folder: Path, seconds: float, say: Callable[[str], None], kinds: Sequence[str] = ()
) -> Outcome:
    """Run one siege, with all kinds of attacks or some. `say` is told the figures as they come."""
    with contextlib.ExitStack() as stack:
        upstream = Program([sys.executable, "-m", "tests.soak.upstream", "fine", "0"], cwd=ROOT)
        stack.callback(upstream.end)
        wait_until(lambda: upstream.printed, "the upstream to listen")
        upstream_port = int(upstream.printed[0])
        # Short enough that every patience runs out several times within the siege.
        patience = max(1.5, min(5.0, seconds / 6))
        config = build_config(
            {"name": "a", "address": "127.0.0.1", "port": upstream_port},
            listen={"max_connections": 6000, "max_threads": 160},
            timeouts={"client_head": patience, "client_write": patience},
            limits={"requests_per_connection": 1_000_000},
        )
        path = folder / "atlas.toml"
        path.write_text(config)
        atlas = stack.enter_context(Atlas(path)).wait_until_listening()

        before = Polite(atlas.port)
        before.start()
        time.sleep(min(3.0, seconds / 10))
        before.stop()
        say(f"before the siege: {before.describe()}")

        # Nice, as those on other machines are: they get what CPU time the parties leave.
        attackers = Program(
            [
                *("nice", "-n", "10", sys.executable, "-m", "tests.soak.attacks"),
                *(str(atlas.port), str(seconds), *kinds),
            ],
            cwd=ROOT,
        )
        stack.callback(attackers.end)
        through, direct = Polite(atlas.port), Polite(upstream_port)
        began = time.monotonic()
        samples = []
        through.start()
        direct.start()
        while time.monotonic() - began < seconds and attackers.process.poll() is None:
            time.sleep(min(1.0, seconds / 20))
            samples.append(take_sample(atlas, began))
            if len(samples) % 5 == 0:
                say(samples[-1].describe())
        through.stop()
        direct.stop()
        attackers.wait(60)
        assert attackers.printed, attackers.log
        wait_until(lambda: atlas.descriptors < FEW_DESCRIPTORS, "descriptors to be given back")
        return Outcome(
            samples, before, through, direct, json.loads(attackers.printed[-1]), atlas.log
        )
