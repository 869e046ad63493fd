"""Health checks: probe upstreams on a schedule, and tell what comes of it.

A `Timetable` knows when each upstream is to be probed next (a heap of due times) and what its
probes have found so far (`RiseFall`). One thread waits for what is due and hands it to threads that
probe, each with a straight, blocking call (`probe.py`). They are started when there is more to
probe at once than there are threads, and stay.

An upstream goes down after `fall` failed probes in a row and up after `rise` passed ones. While
some contradict its state, it is in doubt, and the next probe comes sooner: a dead upstream is known
as such after seconds, and one lost packet changes nothing. Intervals are stretched or shortened a
little by chance, so that machines which started together do not probe together. What is known
survives a reload for every upstream that stays, its schedule included.

Not decided here: what a health state means for balancing. Only a change of it is logged.
"""

from __future__ import annotations

import heapq
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from atlas_pkg.balancing.probe import Result, probe_upstream
from atlas_pkg.balancing.upstream import Identity, Upstream
from atlas_pkg.config.model import HealthCheck
from atlas_pkg.errors import StreamError
from atlas_pkg.logs import Throttle

log = logging.getLogger("atlas.health")

# Seconds between two probes, at most, while the state is in doubt.
FAST_INTERVAL = 2.0

# Each interval is longer or shorter by up to this part.
_JITTER = 0.1

# First probes follow one another after so many seconds: a thousand are spread over two seconds.
_SPREAD = 0.002

# Probes at once, each on a thread. Only those that hang matter: an upstream that answers holds a
# thread for milliseconds. A thousand that hang, with a timeout of 5 s and an interval of 10 s,
# would need five hundred; with 64 each of them comes up every 78 s, and so does, meanwhile, each
# one that is well. More threads would cost the requests more than late news does.
MOST_THREADS = 64

_LONGEST_REST = 3600.0  # an interval may be longer than what the kernel takes for a wait

_STOP_PATIENCE = 5.0  # for the thread that waits; a probe under way is not waited for


class HealthState(NamedTuple):
    """What the checks say about an upstream, after the latest probe."""

    is_up: bool
    has_flipped: bool  # with the latest probe
    has_passed: bool  # the latest probe, which may not suffice for a change
    reason: str  # what the latest probe found


class RiseFall:
    """Counts probes in a row that contradict the state of one upstream. Not thread-safe.

    An upstream begins up: at the start of Atlas nobody has a better guess, and answering 503 would
    be worse. One that a reload adds is different, since others serve meanwhile: it begins down, and
    its first passed probe is enough.
    """

    __slots__ = ("_contrary", "_is_new", "_is_up")

    def __init__(self, *, is_new: bool) -> None:
        self._is_new = is_new
        self._is_up = not is_new
        self._contrary = 0  # results in a row that contradict the state

    def add(self, result: Result, check: HealthCheck) -> HealthState:
        """Take the result of one probe into account."""
        is_contrary = result.has_passed != self._is_up
        self._contrary = self._contrary + 1 if is_contrary else 0
        needed = check.fall if self._is_up else 1 if self._is_new else check.rise
        has_flipped = is_contrary and self._contrary >= needed
        if has_flipped:
            self._is_up = result.has_passed
            self._is_new = False
            self._contrary = 0
        return HealthState(self._is_up, has_flipped, result.has_passed, result.reason)

    def interval(self, check: HealthCheck) -> float:
        """Say how long after the latest probe the next one is wanted."""
        is_in_doubt = self._contrary > 0 or self._is_new
        return min(check.interval, FAST_INTERVAL) if is_in_doubt else check.interval


class Patient:
    """One upstream under watch."""

    __slots__ = ("began_at", "check", "health", "is_known", "upstream")

    def __init__(self, upstream: Upstream, check: HealthCheck, *, is_new: bool) -> None:
        self.upstream = upstream
        self.check = check
        self.health = RiseFall(is_new=is_new)
        self.began_at = 0.0
        self.is_known = False  # it has been probed, and what came of it was told


class Timetable:
    """Who is to be probed when. Not thread-safe; `now` is handed in."""

    def __init__(self, generator: random.Random | None = None) -> None:
        self._random = generator or random.Random()
        self._patients: dict[Identity, Patient] = {}
        # (when, number, whom), of all but those who are being probed.
        self._heap: list[tuple[float, int, Patient]] = []
        self._count = 0

    def watch(
        self,
        pairs: Sequence[tuple[Upstream, HealthCheck]],
        awaiting: Collection[Upstream],
        now: float,
    ) -> None:
        """Take over a new list. See `HealthChecker.watch`."""
        before, self._patients = self._patients, {}
        instant = now
        for upstream, check in pairs:
            known = before.get(upstream.identity)
            if known is None or known.upstream is not upstream:
                patient = Patient(upstream, check, is_new=upstream in awaiting)
            elif known.check == check:
                patient = known
            else:
                # A new one, since a probe under the old settings may be under way.
                patient = Patient(upstream, check, is_new=False)
                patient.health = known.health
            self._patients[upstream.identity] = patient
            if patient is not known:
                self._schedule(patient, instant)
                instant += _SPREAD
        # Nothing is left in the heap of those who have gone.
        listed = set(self._patients.values())
        self._heap = [entry for entry in self._heap if entry[2] in listed]
        heapq.heapify(self._heap)

    def take_due(self, now: float) -> list[Patient]:
        """Take out all whose probe is due; each is put back by `reschedule`."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            patient = heapq.heappop(self._heap)[2]
            patient.began_at = now
            due.append(patient)
        return due

    def rest(self, now: float) -> float | None:
        """How long nothing is due; None: for ever."""
        return max(0.0, self._heap[0][0] - now) if self._heap else None

    def conclude(self, patient: Patient, result: Result) -> HealthState | None:
        """Take a result into account; None for one who has left or got new settings meanwhile."""
        if self._patients.get(patient.upstream.identity) is not patient:
            return None
        return patient.health.add(result, patient.check)

    def reschedule(self, patient: Patient, now: float) -> None:
        """The probe is over: put `patient` back, unless it has left or got new settings."""
        patient.is_known = True
        if self._patients.get(patient.upstream.identity) is patient:
            chance = self._random.uniform(1 - _JITTER, 1 + _JITTER)
            due = patient.began_at + patient.health.interval(patient.check) * chance
            self._schedule(patient, max(now, due))

    def are_known(self) -> bool:
        """Have all been probed by now?"""
        return all(patient.is_known for patient in self._patients.values())

    def _schedule(self, patient: Patient, instant: float) -> None:
        self._count += 1
        heapq.heappush(self._heap, (instant, self._count, patient))


class HealthChecker:
    """Probes upstreams on threads of its own and tells every result.

    `on_state` is called on those threads, after each probe, without any lock held; of one upstream,
    one call at a time. Made in the process that is to probe: threads do not survive a fork.
    """

    def __init__(
        self,
        on_state: Callable[[Upstream, HealthState], None],
        *,
        probe: Callable[[Upstream, HealthCheck], Result] = probe_upstream,
    ) -> None:
        self._on_state = on_state
        self._probe = probe
        self._throttle = Throttle(log)
        # Guards everything below, and tells the thread that waits that something is different.
        self._changed = threading.Condition()
        self._timetable = Timetable()
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._threads = 0
        self._begun = 0  # probes handed over and not ended yet
        self._due: queue.SimpleQueue[Patient | None] = queue.SimpleQueue()

    def watch(
        self,
        pairs: Sequence[tuple[Upstream, HealthCheck]],
        *,
        awaiting: Collection[Upstream] = (),
    ) -> None:
        """Take over a new list of upstreams and their checks. Returns at once.

        Those in `awaiting` that were not watched before are down until their first passed probe;
        others begin up. Those that stay keep their state, and with equal settings also their
        schedule.
        """
        with self._changed:
            self._timetable.watch(pairs, awaiting, time.monotonic())
            self._changed.notify()

    def start(self) -> None:
        """Begin to probe what is watched, now and later."""
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def wait_for_first_probes(self, timeout: float) -> None:
        """Wait until all have been probed once, or time runs out. Blocks."""
        with self._changed:
            self._changed.wait_for(self._timetable.are_known, timeout)

    def stop(self) -> None:
        """Begin no more probes. One that is under way ends by itself, and is not told. Final."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
            for _ in range(self._threads):
                self._due.put(None)
        if self._thread is not None:
            self._thread.join(_STOP_PATIENCE)

    def _run(self) -> None:
        """Hand over what is due, and wait for what is due next."""
        while True:
            with self._changed:
                if self._is_stopping:
                    return
                now = time.monotonic()
                due = self._timetable.take_due(now)
                if not due:
                    rest = self._timetable.rest(now)
                    self._changed.wait(None if rest is None else min(rest, _LONGEST_REST))
                    continue
                self._begun += len(due)
                missing = min(self._begun, MOST_THREADS) - self._threads
            for patient in due:
                self._due.put(patient)
            for _ in range(missing):
                self._start_thread()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="probe", daemon=True)
        with self._changed:
            if self._is_stopping:
                return
            self._threads += 1
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had: those that are there must do
            with self._changed:
                self._threads -= 1
            self._throttle.write(logging.WARNING, "own", "cannot probe upstreams: %s", error)

    def _work(self) -> None:
        while (patient := self._due.get()) is not None:
            try:
                self._examine(patient)
            except StreamError as error:
                # Ours and not the upstream's: nothing is concluded from it.
                self._throttle.write(
                    logging.WARNING, "own", "cannot probe upstreams: %s", error.reason
                )
            except Exception:
                # A background thread: whatever broke, the checks must go on.
                log.exception("upstream %s: its health check broke", patient.upstream.label)
            with self._changed:
                self._begun -= 1
                self._timetable.reschedule(patient, time.monotonic())
                self._changed.notify()

    def _examine(self, patient: Patient) -> None:
        """Probe one upstream and tell what is concluded from it."""
        result = self._probe(patient.upstream, patient.check)
        with self._changed:
            state = self._timetable.conclude(patient, result)
            if state is None or self._is_stopping:
                return
        self._on_state(patient.upstream, state)
        if state.has_flipped:
            level, word = (logging.INFO, "up") if state.is_up else (logging.WARNING, "down")
            log.log(level, "upstream %s is %s: %s", patient.upstream.label, word, state.reason)
