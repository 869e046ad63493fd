"""Why a request went where it went: the account of one choice, for those who asked for it.

Choosing leaves no trace, since it has to be quick. Where somebody asks, the balancer writes down
who the candidates were, what spoke for each, and why others were left out. That account goes with
the exchange's `Record`, in plain words: people read it long after the upstreams have changed.

Not done here: looking at upstreams (`balancing/explain.py`) and showing what was found
(`observing/timeline.py`).
"""

from __future__ import annotations

from typing import NamedTuple


class Candidate(NamedTuple):
    """One upstream, as it stood at the moment of the choice."""

    name: str
    score: str  # what spoke for it, in the strategy's own terms; empty where it was left out
    left_out: str = ""  # why it could not be chosen; empty for those who could


class Choice(NamedTuple):
    """One choice: for the first attempt, or for a retry."""

    strategy: str  # its name in the configuration
    cause: str  # what decided: the cookie, the strategy, ...
    candidates: tuple[Candidate, ...]  # the chosen one first, those left out last; not all of many
    chosen: str = ""  # a name, or empty
    waits: str = ""  # why it went into the queue; empty if it did not
    others: tuple[tuple[str, int], ...] = ()  # those not listed: what they have in common, how many
