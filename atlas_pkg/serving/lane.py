"""The lane: one thread that serves whatever takes no waiting.

It waits at one `epoll` for two things at once: for clients that say something, whose requests it
passes on to an upstream (`ask`), and for upstreams that say something, which it passes back
(`answer`). Neither ever waits for anybody, so one thread serves them all and nobody fights for the
interpreter lock. Whatever else takes waiting it hands to a thread that may (`threads.py`).

Clients are registered *one-shot*: the first event hands a client over, and the kernel keeps quiet
about it until it is parked again. Upstream connections are registered once and *edge-triggered*,
so awaiting an answer costs no system call. An edge is told once: whoever has read since, or may
have missed it, re-arms the registration before the next wait (`take_back`).

At least twice a second the lane ends what has waited too long. It must never block: logging to a
slow disk, names, starting threads are for others.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable

from atlas_pkg.balancing.pool import Pool, UpstreamConnection
from atlas_pkg.errors import Overloaded
from atlas_pkg.observing.observers import MANY, Observers
from atlas_pkg.serving.client import CLOSE, Client, Next
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.connection import HttpService
from atlas_pkg.serving.exchange import AWAIT, DONE, Exchange, Step
from atlas_pkg.serving.threads import Threads

log = logging.getLogger("atlas.lane")

# macOS and BSD have no epoll; there every client has a thread.
HAS_EPOLL = hasattr(select, "epoll")

# So much is taken at once: requests leave together, and their answers come meanwhile.
BATCH = 32

# When nothing has come for so long, it is time to tell observers what has happened.
LULL = 0.002

# How often deadlines are looked after: sooner where an answer is due sooner, but never more often
# than the second of these allows.
SWEEP_INTERVAL = 0.5
SHORTEST_INTERVAL = 0.05

# How often idle upstream connections are looked after.
TIDY_INTERVAL = 5.0

if HAS_EPOLL:
    _CLIENT_EVENTS = select.EPOLLIN | select.EPOLLONESHOT
    _UPSTREAM_EVENTS = select.EPOLLIN | select.EPOLLET


class EpollLane:
    """One thread with its epoll and its pool of upstream connections."""

    def __init__(
        self,
        http: HttpService,
        clients: Clients,
        threads: Threads,
        observers: Observers,
        tidy: Callable[[Pool], None],
    ) -> None:
        """`tidy` looks after idle upstream connections."""
        self.pool = Pool()
        self._http = http
        self._clients = clients
        self._threads = threads
        self._observers = observers
        self._tidy = tidy
        self._next_tidying = 0.0
        self.swept_at = time.monotonic()  # when it last came to look after deadlines
        self._is_stopping = False
        self._epoll = select.epoll()
        # Those whose answers are awaited, by the upstream connection's descriptor.
        self._awaited: dict[int, Exchange] = {}

    def start(self, name: str) -> None:
        """Begin to serve."""
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def stop(self) -> None:
        """Let the thread end; does not wait."""
        self._is_stopping = True

    def park(self, client: Client) -> None:
        """Let `client` wait until it says something. For any thread; the caller gives it up."""
        fd = client.stream.fd
        events = _CLIENT_EVENTS
        if client.stream.buffered and not client.head_since:
            # What has been read already the kernel does not tell again. That the client can be
            # written to it tells at once.
            events |= select.EPOLLOUT
        self._clients.parked[fd] = client  # before the kernel may report it
        try:
            if client.is_registered:
                self._epoll.modify(fd, events)
            else:
                client.is_registered = True
                self._epoll.register(fd, events)
        except OSError:
            pass  # it was taken from the parked ones and closed since then, as draining may do

    def take_back(self, exchange: Exchange) -> None:
        """Await what the upstream says next. For any thread; the caller gives the exchange up.

        The registration is armed anew, so the `epoll` reports what has come since the last read,
        even if it did so before.
        """
        connection = exchange.connection
        assert connection is not None
        fd, was_watched = connection.stream.fd, connection.is_watched
        connection.is_watched = True
        self._awaited[fd] = exchange  # before the kernel may report it
        if was_watched:
            self._epoll.modify(fd, _UPSTREAM_EVENTS)
        else:
            self._epoll.register(fd, _UPSTREAM_EVENTS)

    def ignore(self, connection: UpstreamConnection) -> None:
        """Report no more events of it: a thread reads from it now. For any thread."""
        if connection.is_watched:
            connection.is_watched = False
            self._epoll.unregister(connection.stream.fd)

    def _run(self) -> None:
        untold = self._observers.pending
        now = next_sweep = time.monotonic()
        while not self._is_stopping:
            try:
                has_news = bool(untold)
                is_quiet = not self._serve(LULL if has_news else max(0.0, next_sweep - now))
                if has_news and (is_quiet or len(untold) >= MANY):
                    self._observers.publish()
                now = time.monotonic()
                if now >= next_sweep:
                    next_sweep, self.swept_at = now + SWEEP_INTERVAL, now
                    next_sweep = self._sweep(now)
            except Exception:
                log.exception("the lane met an error of ours and goes on")

    def _serve(self, timeout: float) -> bool:
        """Wait for somebody who says something, and serve all who do; False if nobody did."""
        http, parked, awaited = self._http, self._clients.parked, self._awaited
        clients = []
        events = self._epoll.poll(timeout, BATCH)
        for fd, _ in events:
            if fd in awaited:
                exchange = awaited.pop(fd)
                self._go_on(exchange, http.answer(exchange))
            elif (client := parked.pop(fd, None)) is not None:
                clients.append(client)
            # else: an idle upstream connection has ended. The look before its next use tells.
        for client in clients:
            try:
                found = http.read(client)
                if isinstance(found, Next):
                    self._clients.put_away(client, found)
                elif (step := http.ask(found)) is AWAIT and (connection := found.connection):
                    awaited[connection.stream.fd] = found
                    if not connection.is_watched:
                        connection.is_watched = True
                        self._epoll.register(connection.stream.fd, _UPSTREAM_EVENTS)
                else:
                    self._go_on(found, step)
            except Exception:
                # Whatever went wrong, it costs this client and not those who spoke with it.
                log.exception("serving failed; the client's connection is closed")
                self._clients.put_away(client, CLOSE)
        return bool(events)

    def _go_on(self, exchange: Exchange, step: Step) -> None:
        """Be done with an exchange, await its upstream again, or hand it to a thread."""
        if step is DONE:
            if exchange.record is not None:
                self._observers.note(exchange.record)
            self._clients.put_away(exchange.client, exchange.following)
        elif step is AWAIT:
            self.take_back(exchange)
        else:
            self._threads.put(exchange)

    def _sweep(self, now: float) -> float:
        """End what has waited too long; returns when that is to be done again.

        It comes again when the next answer is due, so overdue ones are found one by one and not all
        of half a second together: they may be retried, and the budget of retries is small.
        """
        again = now + SWEEP_INTERVAL
        http = self._http
        for client in self._clients.take_expired(now):
            expired = http.expire(client)
            if isinstance(expired, Next):
                self._clients.put_away(client, expired)
            else:
                self._go_on(expired, http.ask(expired))
        for fd, waiting in self._awaited.copy().items():
            loss = waiting.find_loss(now)
            if loss is None:
                again = min(again, waiting.deadline)
            elif (exchange := self._awaited.pop(fd, None)) is not None:
                self._go_on(exchange, http.meet(exchange, loss))
        for exchange in self._threads.take_overdue(now):
            self._go_on(exchange, http.meet(exchange, Overloaded()))
        self._observers.publish()
        if now >= self._next_tidying:
            self._next_tidying = now + TIDY_INTERVAL
            self._tidy(self.pool)
        return max(again, now + SHORTEST_INTERVAL)
