"""What mathematics says of a few worlds that are simple enough: formulas, and where they are from.

Rates are per second: `load` is what arrives for each server, as a part of what it can do.
"""

from __future__ import annotations

import math

# M/M/1 and M/M/c: any textbook, for instance Kleinrock, "Queueing Systems", volume 1 (1975):
# Poisson arrivals, exponential service, first come first served.


def single_server_time(rate: float, load: float) -> float:
    """The mean time in an M/M/1 queue, service included."""
    return 1 / (rate * (1 - load))


def single_server_percentile(rate: float, load: float, percent: float) -> float:
    """Times in an M/M/1 queue are exponential, so each percentile follows from the mean."""
    return -math.log(1 - percent / 100) * single_server_time(rate, load)


def wait_probability(servers: int, load: float) -> float:
    """Erlang's C formula: how many must wait in an M/M/c queue, where all share one line."""
    offered = servers * load
    blocked = 1.0  # Erlang B, by its recursion
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def shared_line_time(servers: int, rate: float, load: float) -> float:
    """The mean time in an M/M/c queue, service included."""
    return 1 / rate + wait_probability(servers, load) / (servers * rate * (1 - load))


def turns_time(servers: int, rate: float, load: float) -> float:
    """The mean time where a Poisson stream takes turns among servers: each is an E/M/1 queue.

    A server gets every nth arrival, which comes more evenly than one drawn by chance. The root of
    Kleinrock's equation (volume 1, 6.4) is found by iteration.
    """
    root = 0.5
    for _ in range(10_000):
        root = (servers * load / (servers * load + 1 - root)) ** servers
    return 1 / (rate * (1 - root))


# Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12 (2001): in the
# limit of many servers, with the shorter of `choices` queues drawn at random.


def share_with_at_least(length: int, load: float, choices: int) -> float:
    """The part of servers that have so many requests or more: doubly exponential for two."""
    exponent = length if choices == 1 else (choices**length - 1) / (choices - 1)
    return load**exponent


def choices_time(rate: float, load: float, choices: int) -> float:
    """The mean time, from the mean length of the queues (Little's law)."""
    length = sum(share_with_at_least(number, load, choices) for number in range(1, 500))
    return length / (load * rate)
