"""A world in which Atlas's own balancer chooses; simulated are the clients and the servers.

Events stand in a heap, by time; the clock jumps from one to the next, so an hour takes seconds and
the same seed gives the same figures on every machine. What is driven is `Balancer` with everything
behind it: strategies, counts, slow start, the budget of retries, health states. It gets our clock
and our dice. A server is a line in front of a few slots. Networks take no time here.

What an attempt's failure leads to follows `proxying/retry.py`. Where all upstreams are full,
requests wait in a line of ours, since Atlas's own blocks a thread for each.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from array import array
from bisect import bisect
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

from atlas_pkg.balancing.balancer import Balancer, BalancerSettings
from atlas_pkg.balancing.health import RiseFall
from atlas_pkg.balancing.lease import FAILURE, SUCCESS, Affinity, Lease
from atlas_pkg.balancing.probe import Result
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.config.model import HealthCheck, Routing, SlowStart, UpstreamConfig
from atlas_pkg.errors import NoUpstream
from examples.strategies.scenario import Burst, Event, Scenario, Servers

# What varies, with its value; a case that was played has a run.
Case = dict[str, Any]
Played = list[tuple[Case, "Run"]]


class Request:
    """What a client wants, from its first attempt to its last."""

    __slots__ = ("balancer", "born", "is_retrying", "key", "tried")

    def __init__(self, balancer: Balancer, key: bytes, born: float) -> None:
        self.balancer = balancer
        self.key = key
        self.born = born
        self.tried: tuple[Upstream, ...] = ()
        self.is_retrying = False  # it counts in the budget


class Attempt:
    """A request at a server. One that is over is given up by Atlas; the server does not know."""

    __slots__ = ("is_over", "lease", "request")

    def __init__(self, request: Request, lease: Lease) -> None:
        self.request = request
        self.lease = lease
        self.is_over = False


class Server:
    """A line in front of some slots."""

    def __init__(self, name: str, settings: Servers, world: Simulation) -> None:
        self.name = name
        self.settings = settings
        self.speed = 1.0
        self.is_down = False
        self.is_listed = settings.listed
        self.served = 0
        self.warmth = settings.warm_after  # requests served since it has come back
        self._world = world
        self._line: deque[Attempt] = deque()
        self._serving: dict[Attempt, None] = {}  # in the order of their beginning
        self._cache: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._line) + len(self._serving)

    def take(self, attempt: Attempt) -> None:
        """Serve an attempt, now or when a slot is free."""
        if len(self._serving) < self.settings.slots:
            self._begin(attempt)
        else:
            self._line.append(attempt)

    def die(self) -> None:
        """Lose everything."""
        lost = [*self._serving, *self._line]
        self._serving.clear()
        self._line.clear()
        self._cache.clear()
        self.is_down = True
        self.warmth = 0
        for attempt in lost:
            if not attempt.is_over:
                self._world.fail(attempt)

    def _begin(self, attempt: Attempt) -> None:
        self._serving[attempt] = None
        self._world.after(self._duration(attempt.request.key), self._finish, attempt)

    def _finish(self, attempt: Attempt) -> None:
        if attempt not in self._serving:
            return  # lost when the server died
        del self._serving[attempt]
        self.served += 1
        self.warmth += 1
        if self._line:
            self._begin(self._line.popleft())
        if not attempt.is_over:
            self._world.answer(attempt)

    def _duration(self, key: bytes) -> float:
        settings = self.settings
        duration = self._world.draw_wait() / (settings.rate * self.speed)
        if self.warmth < settings.warm_after:
            warmth = self.warmth / settings.warm_after
            duration /= settings.cold + (1 - settings.cold) * warmth
        return duration * settings.hit if settings.cache and self._hits(key) else duration

    def _hits(self, key: bytes) -> bool:
        is_hit = key in self._cache
        self._cache[key] = None
        self._cache.move_to_end(key)
        if len(self._cache) > self.settings.cache:
            self._cache.popitem(last=False)
        self._world.run.note_lookup(self._world.now, is_hit)
        return is_hit


class Run:
    """What came of a simulation."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.born = array("d")  # of each request that is over, in the order of their ends
        self.took = array("d")  # infinity: it failed
        self.looked_up: Counter[int] = Counter()  # in caches, by second
        self.hits: Counter[int] = Counter()
        self.attempts = 0
        self.lengths: Counter[int] = Counter()  # requests at a server, sampled
        self.served: dict[str, int] = {}  # by server

    def note_lookup(self, now: float, is_hit: bool) -> None:
        """A server has looked into its cache."""
        self.looked_up[int(now)] += 1
        self.hits[int(now)] += is_hit

    def times(self, since: float | None = None) -> list[float]:
        """The times of requests that began then or later, sorted; by default after warming up."""
        since = self.scenario.warm_up if since is None else since
        pairs = zip(self.born, self.took, strict=True)
        return sorted(took for born, took in pairs if born >= since)

    def by_second(self) -> list[list[float]]:
        """The times of all requests, by the second in which they began; not sorted."""
        seconds: list[list[float]] = [[] for _ in range(math.ceil(self.scenario.seconds))]
        for born, took in zip(self.born, self.took, strict=True):
            seconds[int(born)].append(took)
        return seconds

    def hit_ratio(self, since: float = 0, until: float = math.inf) -> float:
        """The part of lookups that were hits."""
        looked_up = sum(n for second, n in self.looked_up.items() if since <= second < until)
        hits = sum(n for second, n in self.hits.items() if since <= second < until)
        return hits / max(1, looked_up)


class Simulation:
    """One case of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.now = 0.0
        self.run = Run(scenario)
        self._scenario = scenario
        self._dice = random.Random(scenario.seed)
        random.seed(scenario.seed)  # the strategies' dice
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.servers: dict[str, Server] = {}
        for letter, group in zip("abcdefgh", scenario.servers, strict=False):
            for number in range(1, group.count + 1):
                name = f"{letter}{number}"
                self.servers[name] = Server(name, group, self)
        self.balancers = [
            Balancer(self._settings(), clock=lambda: self.now, chance=self._dice.random)
            for _ in range(scenario.balancers)
        ]
        self._lines: dict[Balancer, deque[Request]] = {one: deque() for one in self.balancers}
        self._keys = [f"/{number}".encode() for number in range(scenario.keys)]
        shares = (1 / number**scenario.zipf for number in range(1, scenario.keys + 1))
        self._key_sums = list(itertools.accumulate(shares))
        self._rate = scenario.rate
        self._era = 0  # of the rate

    def play(self) -> Run:
        """Play to the end, which is when all that began in time is over."""
        scenario = self._scenario
        for event in scenario.events:
            self.after(event.at, self._happen, event)
        if scenario.burst:
            self.after(scenario.burst.every, self._burst, scenario.burst, 1)
        if scenario.probes:
            for balancer in self.balancers:
                for upstream in balancer.upstreams:
                    offset = self._dice.random() * scenario.probes
                    self.after(offset, self._probe, balancer, upstream, RiseFall(is_new=False))
        if scenario.sample:
            self.after(scenario.warm_up, self._sample, scenario.sample)
        self._await_arrival()
        events = self._events
        while events:
            self.now, _, action, arguments = heapq.heappop(events)
            action(*arguments)
        self.run.served = {name: server.served for name, server in self.servers.items()}
        return self.run

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have something done later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action, arguments))

    def draw_wait(self) -> float:
        """Draw a time from the exponential distribution, 1 on average."""
        return -math.log(1.0 - self._dice.random())

    # The life of a request

    def _arrive(self, era: int) -> None:
        if era != self._era:
            return  # the rate has changed since this was drawn
        balancers = self.balancers
        alone = len(balancers) == 1
        balancer = balancers[0 if alone else int(self._dice.random() * len(balancers))]
        self._await_arrival()
        self._send(Request(balancer, self._draw_key(), self.now))

    def _await_arrival(self) -> None:
        wait = self.draw_wait() / self._rate
        if self.now + wait < self._scenario.seconds:
            self.after(wait, self._arrive, self._era)

    def _draw_key(self) -> bytes:
        if not self._keys:
            return b""
        return self._keys[bisect(self._key_sums, self._dice.random() * self._key_sums[-1])]

    def _send(self, request: Request) -> None:
        """Have the balancer choose, and go there."""
        try:
            lease = request.balancer.lease_now(Affinity(request.key), request.tried)
        except NoUpstream:
            self._end(request, math.inf)
            return
        if lease is None:
            self._lines[request.balancer].append(request)
            return
        self.run.attempts += 1
        attempt = Attempt(request, lease)
        server = self.servers[lease.upstream.name]
        if server.is_down:
            self.fail(attempt, is_sent=False)
            return
        if self._scenario.timeout:
            self.after(self._scenario.timeout, self._lose_patience, attempt)
        server.take(attempt)

    def answer(self, attempt: Attempt) -> None:
        """A server has answered in time."""
        attempt.is_over = True
        attempt.lease.release(SUCCESS)
        self._end(attempt.request, self.now - attempt.request.born)
        self._serve_line(attempt.request.balancer)

    def _lose_patience(self, attempt: Attempt) -> None:
        if not attempt.is_over:
            self.fail(attempt)

    def fail(self, attempt: Attempt, *, is_sent: bool = True) -> None:
        """An attempt has failed; try elsewhere, where that is allowed."""
        request, balancer = attempt.request, attempt.request.balancer
        attempt.is_over = True
        attempt.lease.release(FAILURE)
        self._end_retry(request)
        request.tried = (*request.tried, attempt.lease.upstream)
        may_retry = self._scenario.retry != "no" and len(request.tried) <= self._scenario.retries
        if may_retry and is_sent and self._scenario.retry == "budget":
            may_retry = request.is_retrying = balancer.begin_retry()
        if may_retry:
            self._send(request)
        else:
            self._end(request, math.inf)
        self._serve_line(balancer)

    def _end(self, request: Request, took: float) -> None:
        self._end_retry(request)
        self.run.born.append(request.born)
        self.run.took.append(took)

    def _end_retry(self, request: Request) -> None:
        if request.is_retrying:
            request.is_retrying = False
            request.balancer.end_retry()

    def _serve_line(self, balancer: Balancer) -> None:
        line = self._lines[balancer]
        if line:
            self._send(line.popleft())

    # What happens besides

    def _burst(self, burst: Burst, number: int) -> None:
        self._change_rate(burst.rate)
        self.after(burst.lasts, self._change_rate, self._scenario.rate)
        if number < burst.times and self.now + burst.every < self._scenario.seconds:
            self.after(burst.every, self._burst, burst, number + 1)

    def _change_rate(self, rate: float) -> None:
        self._rate = rate
        self._era += 1
        self._await_arrival()

    def _happen(self, event: Event) -> None:
        server = self.servers[event.server]
        if event.speed is not None:
            server.speed = event.speed
        if event.down:
            server.die()
        elif event.down is False:
            server.is_down = False
        if event.listed is not None:
            server.is_listed = event.listed
            for balancer in self.balancers:
                balancer.apply(self._settings())

    def _probe(self, balancer: Balancer, upstream: Upstream, health: RiseFall) -> None:
        assert upstream.health_check is not None
        result = Result(not self.servers[upstream.name].is_down, "simulated")
        balancer.note_probe(upstream, health.add(result, upstream.health_check))
        if self.now < self._scenario.seconds:
            wait = health.interval(upstream.health_check)
            self.after(wait, self._probe, balancer, upstream, health)

    def _sample(self, every: float) -> None:
        self.run.lengths.update(map(len, self.servers.values()))
        if self.now + every < self._scenario.seconds:
            self.after(every, self._sample, every)

    def _settings(self) -> BalancerSettings:
        scenario = self._scenario
        check = HealthCheck(interval=scenario.probes, fall=2, rise=1) if scenario.probes else None
        upstreams = tuple(
            UpstreamConfig(
                server.name,
                "192.0.2.1",
                80,
                weight=server.settings.weight if scenario.weights else 1,
                max_connections=server.settings.max_connections,
                health_check=check,
            )
            for server in self.servers.values()
            if server.is_listed
        )
        return BalancerSettings(
            upstreams,
            Routing(strategy=scenario.strategy),
            slow_start=SlowStart(scenario.slow_start) if scenario.slow_start else None,
        )


def play(scenario: Scenario) -> Played:
    """Play all cases of a scenario."""
    return [(case, Simulation(world).play()) for case, world in scenario.cases()]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least value that so many percent do not exceed; `ordered` is sorted."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
