"""What an administrator has said, which goes before the configuration until Atlas ends.

The states and weights of upstreams, and which exchanges are to be explained. Upstreams are known by
group, name, address and port: one that leaves the configuration and comes back is the same one.

The process that has the admin address keeps the `OverridesHolder`. Each time it asks the others how
they are, it tells them all overrides (`control/channel.py`). Not done here: carrying them out
(`control/service.py`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

from atlas_pkg.balancing.upstream import AdminState, Identity
from atlas_pkg.observing.tracer import Asking


@dataclass(frozen=True, slots=True)
class Change:
    """What is to change for one upstream; what is None stays as it is."""

    state: AdminState | None = None
    weight: int | None = None
    resets_weight: bool = False  # back to the file's weight

    def __str__(self) -> str:
        parts = [f"state {self.state.value}"] if self.state is not None else []
        if self.weight is not None:
            parts.append(f"weight {self.weight}")
        elif self.resets_weight:
            parts.append("weight as in the file")
        return ", ".join(parts)


class Override(NamedTuple):
    """What holds for one upstream; a weight of None is that of the file."""

    state: AdminState = AdminState.READY
    weight: int | None = None


AS_CONFIGURED = Override()


class Explain(NamedTuple):
    """Which exchanges are to be explained."""

    one_in: int | None = None  # None: as the process was started
    next_from: str = ""  # the client whose next exchange was asked for last
    orders: int = 0  # how often one was: each counts once, however often it is told


class Overrides(NamedTuple):
    """All overrides at one moment. Never changed: `OverridesHolder` makes new ones."""

    version: int  # grows with every change
    upstreams: dict[Identity, Override]  # without those that are as configured
    explain: Explain


NO_OVERRIDES = Overrides(0, {}, Explain())


class OverridesHolder:
    """The overrides in force, kept by the process that has the admin address. Thread-safe."""

    def __init__(self, overrides: Overrides = NO_OVERRIDES) -> None:
        # Guards changing them: two changes at once must both count.
        self._lock = threading.Lock()
        self._current = overrides

    def current(self) -> Overrides:
        """Return the overrides in force."""
        return self._current

    def change(self, identity: Identity, change: Change) -> None:
        """Change the override of one upstream."""
        with self._lock:
            version, upstreams, explain = self._current
            override = upstreams.get(identity, AS_CONFIGURED)
            if change.state is not None:
                override = override._replace(state=change.state)
            if change.resets_weight or change.weight is not None:
                override = override._replace(weight=change.weight)
            upstreams = {**upstreams, identity: override}
            if override == AS_CONFIGURED:
                del upstreams[identity]
            self._current = Overrides(version + 1, upstreams, explain)

    def ask(self, asking: Asking) -> None:
        """Have other exchanges explained from now on."""
        with self._lock:
            version, upstreams, explain = self._current
            if asking.one_in is not None:
                explain = explain._replace(one_in=asking.one_in)
            if asking.next_from is not None:
                explain = explain._replace(next_from=asking.next_from, orders=explain.orders + 1)
            self._current = Overrides(version + 1, upstreams, explain)


def encode(overrides: Overrides) -> dict[str, Any]:
    """Build a document that another process can be sent as JSON."""
    return {
        "version": overrides.version,
        "upstreams": [
            (*identity, override.state.value, override.weight)
            for identity, override in overrides.upstreams.items()
        ],
        "explain": overrides.explain,
    }


def decode(document: dict[str, Any]) -> Overrides:
    """Read what `encode` has built."""
    upstreams = {
        (name, address, port, group): Override(AdminState(state), weight)
        for name, address, port, group, state, weight in document["upstreams"]
    }
    return Overrides(document["version"], upstreams, Explain(*document["explain"]))
