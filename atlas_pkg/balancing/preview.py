"""Who would get the first requests: for `--check`, so that a file is understood beforehand.

The real balancer is asked ten times, each time as if the request before had been answered, and ten
times more without the upstream that came first. So one sees what a strategy does with the weights,
and how many clients it sends elsewhere when a server goes: a hash those that have to, turns nearly
all. The dice are seeded: the same file is told the same again.

What becomes of many requests that are under way together, examples/strategies shows.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from atlas_pkg.balancing.balancer import Balancer, BalancerSettings
from atlas_pkg.balancing.lease import Affinity
from atlas_pkg.balancing.strategies import STRATEGIES
from atlas_pkg.errors import NoUpstream

_NUMBERS = range(1, 11)
_NOBODY, _WAITS = "(503)", "(waits)"
_WIDTH = 76  # of the names in a line


def preview(settings: BalancerSettings) -> list[str]:
    """Say in lines who would get ten requests with each strategy, and with one upstream less."""
    own, hash_on = settings.routing.strategy, settings.routing.hash_on
    keys, kind = [f"192.0.2.{number}" for number in _NUMBERS], "clients"
    if own == "consistent_hash" and hash_on != "client_ip":
        keys, kind = [f"/{number}" for number in _NUMBERS], hash_on
    names = choose_first(settings, own, keys)
    gone = next((name for name in names if name != _NOBODY), "")
    fewer = settings._replace(
        upstreams=tuple(upstream for upstream in settings.upstreams if upstream.name != gone)
    )
    if not gone or not fewer.upstreams:
        return []  # there is no choice
    lines = [f"ten requests, each answered before the next comes ({kind} {keys[0]} to {keys[-1]}):"]
    lines += _row(own, names)
    together = choose_first(settings, own, keys, are_answered=False)
    if together != names:
        lines += _row("all at once", together)
    lines += _row(f"without {gone}", choose_first(fewer, own, keys))
    lines += [f"how many of them go elsewhere without {gone}, and how many have to:"]
    for strategy in [own, *(other for other in STRATEGIES if other != own)]:
        names = choose_first(settings, strategy, keys)
        pairs = zip(names, choose_first(fewer, strategy, keys), strict=True)
        changed = sum(before != after for before, after in pairs)
        told = textwrap.shorten(" ".join(names), _WIDTH, placeholder=" ...")
        lines.append(f"  {strategy:<20} {changed:3} {names.count(gone):3}  {told}")
    return lines


def choose_first(
    settings: BalancerSettings, strategy: str, keys: Sequence[str], *, are_answered: bool = True
) -> list[str]:
    """Name the upstream of one request for each key, in their order."""
    random.seed(1)  # the dice of the strategies
    routing = replace(settings.routing, strategy=strategy)
    balancer = Balancer(settings._replace(routing=routing))
    names = []
    for key in keys:
        try:
            lease = balancer.lease_now(Affinity(key.encode()))
        except NoUpstream:
            names.append(_NOBODY)
            continue
        names.append(_WAITS if lease is None else lease.upstream.name)
        if lease is not None and are_answered:
            lease.release()
    return names


def _row(label: str, names: Sequence[str]) -> list[str]:
    told = textwrap.wrap(" ".join(names), _WIDTH, break_on_hyphens=False)
    return [f"  {label}", *(f"    {line}" for line in told)]
