"""The ways to choose an upstream, one algorithm a file; a new one has to be imported here."""

from atlas_pkg.balancing.strategies import (
    consistent_hash,
    least_connections,
    randomized,
    round_robin,
)
from atlas_pkg.balancing.strategies.registry import STRATEGIES, Strategy, strategy

__all__ = [
    "STRATEGIES",
    "Strategy",
    "consistent_hash",
    "least_connections",
    "randomized",
    "round_robin",
    "strategy",
]
