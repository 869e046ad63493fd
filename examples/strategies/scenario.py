"""What is simulated: a scenario, read from a few lines of TOML.

A key under `[vary]` takes each value of its list in turn, and all combinations make the *cases* of
the scenario. Under `[small]` stands what is different in the short version that the suite runs.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "scenarios"


@dataclass(frozen=True, slots=True)
class Servers:
    """`[[servers]]`: some servers that are alike, named by a letter and a number."""

    count: int = 1
    rate: float = 100.0  # requests a second that each slot can do, on average
    slots: int = 1  # requests at once; others wait inside the server, first come, first served
    weight: int = 1
    max_connections: int = 0
    cold: float = 1.0  # its speed after a return, as a part of what it is when it is warm ...
    warm_after: int = 0  # ... which it is after so many requests
    cache: int = 0  # entries; the least recently used one goes
    hit: float = 0.05  # what a request costs that is in the cache, as a part of one that is not
    listed: bool = True  # in the configuration from the beginning


@dataclass(frozen=True, slots=True)
class Event:
    """`[[events]]`: something happens to a server."""

    at: float
    server: str
    speed: float | None = None  # as a part of what it was at the beginning
    down: bool | None = None
    listed: bool | None = None  # a reload adds or removes it


@dataclass(frozen=True, slots=True)
class Burst:
    """`burst`: again and again, many requests come at once."""

    every: float
    lasts: float
    rate: float  # while it lasts
    times: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One world, and one way to balance in it. Times are in seconds."""

    title: str = ""
    shows: str = "tail"  # what is drawn and listed; see `plots.py`
    seconds: float = 10.0
    warm_up: float = 0.0  # at the beginning, not counted
    rate: float = 100.0  # requests a second, all balancers together; a Poisson process
    burst: Burst | None = None
    keys: int = 0  # different clients, or paths
    zipf: float = 0.0  # how unequal they are: the share of the nth is 1 / n ** zipf
    sample: float = 0.0  # how often all lines are looked at; 0 = never
    servers: tuple[Servers, ...] = ()
    events: tuple[Event, ...] = ()

    strategy: str = "round_robin"
    balancers: int = 1  # they do not see each other
    weights: bool = True  # false: the configuration says nothing of them
    slow_start: float = 0.0
    probes: float = 0.0  # the interval of health checks; two failures are "down"
    timeout: float = 0.0  # how long an upstream is waited for
    retry: str = "no"  # or "budget", or "always"
    retries: int = 3

    seed: int = 1
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)

    def cases(self) -> Iterator[tuple[dict[str, Any], Scenario]]:
        """Yield every combination of what varies, and the scenario with it."""
        for values in itertools.product(*self.vary.values()):
            case = dict(zip(self.vary, values, strict=True))
            yield case, replace(self, **case)

    def shrink(self) -> Scenario:
        """Return the short version."""
        return replace(self, **_build(self.small))


def load(name: str) -> Scenario:
    """Read a scenario by its name."""
    return Scenario(**_build(tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))))


def names() -> list[str]:
    """Return the names of all scenarios."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def tell(key: str, value: Any) -> str:
    """Say what a case is, in a few words."""
    told = {
        ("weights", True): "weights that fit",
        ("weights", False): "all weights 1",
        ("slow_start", 0.0): "no slow start",
        ("slow_start", 20.0): "slow start of 20 s",
        ("", "no"): "no retries",
        ("", "budget"): "with the budget",
        ("", "always"): "without a budget",
    }
    return told.get((key, value)) or f"{key} {value}".replace("_", " ").strip()


def _build(document: Mapping[str, Any]) -> dict[str, Any]:
    keys = dict(document)
    if "servers" in keys:
        keys["servers"] = tuple(Servers(**table) for table in keys["servers"])
    if "events" in keys:
        keys["events"] = tuple(Event(**table) for table in keys["events"])
    if "burst" in keys:
        keys["burst"] = Burst(**keys["burst"])
    return keys
