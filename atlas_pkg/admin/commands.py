"""What an administrator asks for: another state or weight of an upstream, explanations.

A request's body, form or JSON, becomes a `Change` or an `Asking`, or a `CommandError` with a
sentence. Exactly what is documented is taken: a key that is unknown or given twice is refused,
since whoever steers a load balancer should not learn later that half of it was ignored.

Not done here: who may steer (`app.py`), and carrying it out (`aggregate.py`).
"""

from __future__ import annotations

import ipaddress
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from operator import itemgetter

from atlas_pkg.balancing.upstream import AdminState
from atlas_pkg.config.model import MOST_WEIGHT
from atlas_pkg.control.overrides import Change
from atlas_pkg.errors import AtlasError
from atlas_pkg.http1 import syntax
from atlas_pkg.observing.timeline import Timeline
from atlas_pkg.observing.tracer import MOST_ONE_IN, Asking

# A form knows only text; these are numbers in it.
_NUMBERS = ("weight", "one_in")

_FILTERS = frozenset({"upstream", "client", "explained", "order"})

_STATES = {state.value: state for state in AdminState}


class CommandError(AtlasError):
    """A change that cannot be made; `status` and `reason` are what the administrator hears."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


def parse_change(content_type: bytes, body: bytes) -> Change:
    """Read a request's body: JSON if it says so, else a form. Raises `CommandError`."""
    values = _read_values(content_type, body, ("state", "weight"))
    state = None
    if "state" in values:
        wanted = values["state"]
        state = _STATES.get(wanted) if isinstance(wanted, str) else None
        if state is None:
            raise CommandError(400, f"state must be one of {', '.join(_STATES)}")
    if "weight" not in values:
        return Change(state)
    weight = values["weight"]
    if weight is None or weight == "":
        return Change(state, resets_weight=True)
    if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= MOST_WEIGHT:
        raise CommandError(
            400, f"weight must be an integer from 0 to {MOST_WEIGHT}, or empty for the file's"
        )
    return Change(state, weight)


def parse_asking(content_type: bytes, body: bytes) -> Asking:
    """As `parse_change`, for explanations."""
    values = _read_values(content_type, body, ("one_in", "next_from"))
    return Asking(
        _read_count(values["one_in"]) if "one_in" in values else None,
        _read_address(values["next_from"]) if "next_from" in values else None,
    )


def _read_count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_ONE_IN:
        return value
    raise CommandError(400, f"one_in must be an integer from 0 to {MOST_ONE_IN}")


def _read_address(value: object) -> str:
    try:
        # A zone, which the library would take, may be any text; no client is known by one.
        if isinstance(value, str) and "%" not in value:
            return str(ipaddress.ip_address(value)) if value else ""
    except ValueError:
        pass
    raise CommandError(400, "next_from must be an IP address, or empty to wait for nobody")


def _read_values(content_type: bytes, body: bytes, known: Sequence[str]) -> dict[str, object]:
    """Read a body that sets at least one of the keys `known`, and none that is unknown."""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"application/json":
        values = _parse_json(body)
    elif kind in {b"", b"application/x-www-form-urlencoded"}:
        values = _parse_form(body)
    else:
        raise CommandError(400, "the body must be a form or application/json")
    if values.keys() - set(known):
        raise CommandError(400, f"only the keys {' and '.join(known)} are known")
    if not values:
        raise CommandError(400, f"the body must set {' or '.join(known)}")
    return values


def _parse_form(body: bytes) -> dict[str, object]:
    try:
        pairs = urllib.parse.parse_qsl(
            body.decode("utf-8"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=10,
        )
    except ValueError:  # UnicodeDecodeError is one
        raise CommandError(400, "the form is malformed") from None
    values: dict[str, object] = dict(_without_twins(pairs))
    for key in _NUMBERS:
        text = values.get(key)
        # `int()` would take "+5" and "0_5" as well.
        if isinstance(text, str) and len(text) <= 7 and syntax.DIGITS.fullmatch(text.encode()):
            values[key] = int(text)
    return values


def _parse_json(body: bytes) -> dict[str, object]:
    try:
        values = json.loads(body, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        raise CommandError(400, "the JSON is malformed") from None
    if not isinstance(values, dict):
        raise CommandError(400, "the JSON must be an object")
    return values


def _without_twins(pairs: list[tuple[str, object]] | list[tuple[str, str]]) -> dict[str, object]:
    values: dict[str, object] = dict(pairs)
    if len(values) < len(pairs):
        raise CommandError(400, "a key is given twice")
    return values


def select(timelines: list[Timeline], query: Mapping[str, str]) -> list[Timeline]:
    """Select what the parameters of a query ask for; raises `CommandError`.

    `upstream` and `client` keep those of one, `explained=1` those that have been explained, and
    `order=slowest` has the slowest come first.
    """
    if query.keys() - _FILTERS:
        known = ", ".join(sorted(_FILTERS))
        raise CommandError(400, f"only the parameters {known} are known")
    if query.get("order", "slowest") != "slowest" or query.get("explained", "1") != "1":
        raise CommandError(400, "only order=slowest and explained=1 are known")
    found = [
        item
        for item in timelines
        if query.get("client", item["client"]) == item["client"]
        and ("upstream" not in query or _has_met(item, query["upstream"]))
        and ("explained" not in query or item["choices"] is not None)
    ]
    if "order" in query:
        found.sort(key=itemgetter("total_ms"), reverse=True)
    return found


def _has_met(timeline: Timeline, upstream: str) -> bool:
    """Was it sent to this upstream, at last or before a retry?"""
    failed = (failure["upstream"] for failure in timeline["failures"])
    return upstream == timeline["upstream"] or upstream in failed
