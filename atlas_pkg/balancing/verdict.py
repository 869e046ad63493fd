"""From the results of probes to a verdict: up or down.

A single result proves little, so a verdict changes after `fall` failures or `rise` successes in
a row. While some results contradict it, it is in doubt, and the next probe comes sooner: a dead
upstream is known as such after seconds, and one lost packet changes nothing.

An upstream begins up: at the start of Atlas nobody has a better guess, and answering 503 would
be worse. One that a reload adds is different, since others serve meanwhile: it begins down, and its
first passed probe is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

from atlas_pkg.balancing.probe import Outcome
from atlas_pkg.config.model import HealthCheck

# Seconds between two probes, at most, while a verdict is in doubt.
FAST_INTERVAL = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks say about an upstream, after the latest probe."""

    is_up: bool
    has_flipped: bool  # with the latest probe
    has_passed: bool  # the latest probe, which may not suffice for a change of verdict
    reason: str  # what the latest probe found
    latency: float  # of the latest probe
    since: float  # when `is_up` last changed, or the checks began


class Judge:
    """What is held against one upstream, and for it. Not thread-safe."""

    __slots__ = ("_contrary", "_is_new", "_is_up", "_since")

    def __init__(self, *, is_new: bool, now: float) -> None:
        self._is_new = is_new
        self._is_up = not is_new
        self._since = now
        self._contrary = 0  # results in a row that contradict the verdict

    def hear(self, outcome: Outcome, check: HealthCheck, *, latency: float, now: float) -> Verdict:
        """Take the outcome of one probe into account, which took `latency` and ended `now`."""
        is_contrary = outcome.has_passed != self._is_up
        self._contrary = self._contrary + 1 if is_contrary else 0
        has_flipped = is_contrary and self._contrary >= self._needed(check)
        if has_flipped:
            self._is_up = outcome.has_passed
            self._is_new = False
            self._since = now
            self._contrary = 0
        return Verdict(
            is_up=self._is_up,
            has_flipped=has_flipped,
            has_passed=outcome.has_passed,
            reason=outcome.reason,
            latency=latency,
            since=self._since,
        )

    def interval(self, check: HealthCheck) -> float:
        """Say how long after the latest probe the next one is wanted."""
        is_in_doubt = self._contrary > 0 or self._is_new
        return min(check.interval, FAST_INTERVAL) if is_in_doubt else check.interval

    def _needed(self, check: HealthCheck) -> int:
        if self._is_up:
            return check.fall
        return 1 if self._is_new else check.rise
