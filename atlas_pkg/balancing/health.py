"""Health checks: probe upstreams on a schedule, and tell what comes of it.

One thread runs all probes. Each is a generator over a non-blocking socket (`probe.py`), so a slow
probe delays no other, and a thousand hanging upstreams cost a thousand descriptors but no threads.
A heap holds when each upstream is to be looked at next: to begin its probe, or to end it because
its time is up.

While a verdict is in doubt the probes come faster. Intervals are stretched or shortened a little
by chance, so that machines which started together do not probe together. What is known survives
a reload for every upstream that stays, its schedule included.

Not decided here: how results become a verdict (`verdict.py`), and what a verdict means for
balancing. Only a change of verdict is logged.
"""

from __future__ import annotations

import heapq
import logging
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence

from atlas_pkg.balancing.probe import Outcome, Probe, Wait, probe_upstream
from atlas_pkg.balancing.upstream import Identity, Upstream
from atlas_pkg.balancing.verdict import Judge, Verdict
from atlas_pkg.config.model import HealthCheck
from atlas_pkg.logs import Throttle

log = logging.getLogger("atlas.health")

# Each interval is longer or shorter by up to this part.
_JITTER = 0.1

# First probes follow one another after so many seconds: a thousand are spread over two seconds.
_SPREAD = 0.002

# Turns out of date are left in the heap until they are this many, or four for each upstream.
_SPARE_TURNS = 100

_LONGEST_REST = 3600.0  # an interval may be longer than what the kernel takes for a wait

_STOP_PATIENCE = 5.0  # ending a thousand probes takes milliseconds


class _Patient:
    """One upstream under watch. Used by the checker's thread alone."""

    __slots__ = ("began_at", "check", "judge", "probe", "turn", "upstream", "waits_on")

    def __init__(self, upstream: Upstream, check: HealthCheck, judge: Judge) -> None:
        self.upstream = upstream
        self.check = check
        self.judge = judge
        self.turn = 0  # the one turn that counts; earlier ones in the heap are out of date
        self.probe: Probe | None = None
        self.began_at = 0.0
        self.waits_on: Wait | None = None


class HealthChecker:
    """Probes upstreams on a thread of its own and tells every result.

    `on_verdict` is called on that thread, after each probe, without any lock held; it may not
    block. Made in the process that is to probe: neither threads nor selectors survive a fork.
    """

    def __init__(
        self,
        on_verdict: Callable[[Upstream, Verdict], None],
        *,
        probe: Callable[[Upstream, HealthCheck], Probe] = probe_upstream,
        clock: Callable[[], float] = time.monotonic,
        generator: random.Random | None = None,
    ) -> None:
        self._on_verdict = on_verdict
        self._make_probe = probe
        self._clock = clock
        self._random = generator or random.Random()
        self._throttle = Throttle(log)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # Guards _next_list, which `watch` leaves here for the thread to take over.
        self._lock = threading.Lock()
        self._next_list: dict[Identity, _Patient] | None = None
        # From here on only the thread looks at what follows.
        self._patients: dict[Identity, _Patient] = {}
        self._turns: list[tuple[float, int, _Patient]] = []
        self._turn_count = 0
        self._selector = selectors.DefaultSelector()
        self._wake_end, self._woken_end = socket.socketpair()
        self._wake_end.setblocking(False)
        self._woken_end.setblocking(False)
        self._selector.register(self._woken_end, selectors.EVENT_READ)

    def watch(
        self,
        pairs: Sequence[tuple[Upstream, HealthCheck]],
        *,
        awaiting: Collection[Upstream] = (),
    ) -> None:
        """Take over a new list of upstreams and their checks. Returns at once.

        Those in `awaiting` that were not watched before are down until their first passed probe;
        others begin up. Those that stay keep their verdict, and with equal settings also their
        schedule.
        """
        now, new = self._clock(), set(awaiting)
        patients = {
            upstream.identity: _Patient(upstream, check, Judge(is_new=upstream in new, now=now))
            for upstream, check in pairs
        }
        with self._lock:
            self._next_list = patients
        self._wake()

    def start(self) -> None:
        """Begin to probe what is watched, now and later."""
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End all probes under way, and the thread. Final."""
        self._stopping.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(_STOP_PATIENCE)
        else:
            self._close()

    def step(self, patience: float | None) -> float | None:
        """Do all that can be done, first waiting up to `patience` for a probe to get on.

        Returns how much time may pass until the next step; None for any. Called by the thread,
        or by tests in its place.
        """
        for key, _ in self._selector.select(patience):
            if key.data is None:
                self._woken_end.recv(1024)
            else:
                # Before those whose time is up: an answer that lies here has come in time.
                self._resume(key.data)
        self._take_over()
        now = self._clock()
        while self._turns and self._turns[0][0] <= now:
            _, turn, patient = heapq.heappop(self._turns)
            if turn == patient.turn:
                self._look_at(patient, now)
        if not self._turns:
            return None
        return min(max(0.0, self._turns[0][0] - self._clock()), _LONGEST_REST)

    def _run(self) -> None:
        patience: float | None = 0.0
        while not self._stopping.is_set():
            patience = self.step(patience)
        self._close()

    def _close(self) -> None:
        for patient in self._patients.values():
            self._end_probe(patient)
        self._selector.close()
        self._wake_end.close()
        self._woken_end.close()

    def _wake(self) -> None:
        try:
            self._wake_end.send(b"\0")
        except OSError:
            return  # full, so it wakes already; or closed, so nobody is to be woken

    def _take_over(self) -> None:
        """Compare the list that `watch` left here with what is under watch."""
        with self._lock:
            listed, self._next_list = self._next_list, None
        if listed is None:
            return
        before, self._patients = self._patients, {}
        instant = self._clock()
        for identity, patient in listed.items():
            known = before.get(identity)
            if known is None or known.upstream is not patient.upstream:
                known = patient
            else:
                del before[identity]
            self._patients[identity] = known
            if known is patient or known.check != patient.check:
                self._end_probe(known)
                known.check = patient.check
                self._wake_at(instant, known)
                instant += _SPREAD
        for patient in before.values():
            self._end_probe(patient)
            patient.turn = 0

    def _wake_at(self, instant: float, patient: _Patient) -> None:
        """Give a patient its next turn, in place of the one it had."""
        if len(self._turns) > 4 * len(self._patients) + _SPARE_TURNS:
            self._turns = [entry for entry in self._turns if entry[1] == entry[2].turn]
            heapq.heapify(self._turns)
        self._turn_count += 1
        patient.turn = self._turn_count
        heapq.heappush(self._turns, (instant, patient.turn, patient))

    def _look_at(self, patient: _Patient, now: float) -> None:
        """Begin the probe that is due, or end the one whose time is up."""
        if patient.probe is not None:
            self._resume(patient, TimeoutError())
            return
        patient.began_at = now
        patient.probe = self._make_probe(patient.upstream, patient.check)
        self._wake_at(now + patient.check.timeout, patient)
        self._resume(patient)

    def _resume(self, patient: _Patient, late: TimeoutError | None = None) -> None:
        """Let a probe run until it waits again or has ended, and draw the conclusions."""
        try:
            outcome = self._advance(patient, late)
            if outcome is not None:
                self._conclude(patient, outcome)
        except Exception:
            # A background thread: whatever broke, the checks must go on.
            log.exception("upstream %s: its health check broke", patient.upstream.name)
            if patient.probe is not None:
                self._schedule_next(patient)

    def _advance(self, patient: _Patient, late: TimeoutError | None) -> Outcome | None:
        """Let a probe run until it waits again (None) or has ended."""
        self._rest(patient)
        probe = patient.probe
        if probe is None:
            return None
        try:
            wait = next(probe) if late is None else probe.throw(late)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
        except OSError as error:
            # Ours and not the upstream's: nothing is concluded from it.
            self._throttle.write(logging.WARNING, "own", "cannot probe upstreams: %s", error)
            self._schedule_next(patient)
            return None
        self._selector.register(wait.sock, wait.events, patient)
        patient.waits_on = wait
        return None

    def _conclude(self, patient: _Patient, outcome: Outcome) -> None:
        now = self._clock()
        latency = now - patient.began_at
        verdict = patient.judge.hear(outcome, patient.check, latency=latency, now=now)
        self._schedule_next(patient)
        self._on_verdict(patient.upstream, verdict)
        if verdict.has_flipped:
            level, word = (logging.INFO, "up") if verdict.is_up else (logging.WARNING, "down")
            log.log(level, "upstream %s is %s: %s", patient.upstream.name, word, verdict.reason)

    def _schedule_next(self, patient: _Patient) -> None:
        self._end_probe(patient)
        chance = self._random.uniform(1 - _JITTER, 1 + _JITTER)
        self._wake_at(patient.began_at + patient.judge.interval(patient.check) * chance, patient)

    def _end_probe(self, patient: _Patient) -> None:
        self._rest(patient)
        if patient.probe is not None:
            patient.probe.close()
            patient.probe = None

    def _rest(self, patient: _Patient) -> None:
        """Stop waiting, before the socket is closed and its number goes to another one."""
        if patient.waits_on is not None:
            self._selector.unregister(patient.waits_on.sock)
            patient.waits_on = None
