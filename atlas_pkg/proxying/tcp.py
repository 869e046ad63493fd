"""App: a connection passed on unread (mode "tcp"), and what becomes of two that were joined.

An upstream is chosen once for each connection, by the same balancer as for requests; a client is
known by its address alone. Connecting is the only thing that is tried again, on another upstream:
afterwards nobody knows what has happened. It is done by a thread that may wait, since the first
word may be the upstream's. From then on the bytes are the relay's (`net/tunnel.py`), which serves
all connections with one thread.

To the observers a connection is an exchange: a line in the access log and a count when it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from atlas_pkg.balancing.lease import SUCCESS
from atlas_pkg.errors import Side, StreamError, UpstreamError
from atlas_pkg.net.tunnel import Relay, Tunnel
from atlas_pkg.observing.observers import Observers
from atlas_pkg.observing.record import End
from atlas_pkg.proxying.attempt import open_for
from atlas_pkg.proxying.retry import lease_again
from atlas_pkg.serving.client import TAKEN
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.exchange import DONE, WAIT, Exchange, Step

log = logging.getLogger("atlas.tunnel")

# The status of a connection that has come through, for log and metrics; nginx has the same.
_CONNECTED = 200

# How long the other side of a WebSocket may be silent after one has ended.
HALF_CLOSED_LIMIT = 30.0

# Who broke the connection says how it ended.
_ENDS = {Side.CLIENT: End.CLIENT_GONE, Side.UPSTREAM: End.UPSTREAM_CUT}


class TcpProxy:
    """Joins each client with an upstream. Thread-safe: all state belongs to the exchange."""

    def __init__(self, clients: Clients, relay: Relay, observers: Observers) -> None:
        """The `observers` are told of connections that have ended."""
        self._clients = clients
        self._relay = relay
        self._observers = observers

    def forward(self, exchange: Exchange) -> Step:
        """Connect to an upstream, and let the relay do the rest. Blocks.

        Raises `ClientGone`, `NoUpstream` and `UpstreamError`.
        """
        exchange.lease = exchange.group.balancer.lease(
            exchange.affinity, (), exchange.choices, is_gone=exchange.is_client_gone
        )
        exchange.note_attempt(exchange.lease.upstream)
        while exchange.connection is None:
            try:
                exchange.connection = open_for(exchange)
            except UpstreamError as error:
                lease_again(exchange, error)
        exchange.note_connection(exchange.connection)
        exchange.start(_CONNECTED)
        record, exchange.record = exchange.record, None  # it has not ended yet

        def take_note(tunnel: Tunnel, error: StreamError | None) -> None:
            if record is None:
                return
            record.end = End.TUNNEL
            if error is not None and not error.timed_out:
                record.end = _ENDS[error.side]
            record.body_in, record.body_out = tunnel.up.moved, tunnel.down.moved
            self._observers.note(record)
            self._observers.publish()

        hand_over(exchange, self._relay, self._clients, take_note)
        return DONE

    def ask(self, _: Exchange) -> Step:
        """All of it takes waiting."""
        return WAIT

    def answer(self, _: Exchange) -> Step:
        """Nothing is awaited by a lane."""
        return WAIT


def hand_over(
    exchange: Exchange,
    relay: Relay,
    clients: Clients,
    take_note: Callable[[Tunnel, StreamError | None], None] | None = None,
) -> None:
    """Join the two connections of `exchange`, which has them no more. Never waits.

    `take_note` is called when they have ended, and before the client is gone.
    """
    connection, lease, client = exchange.connection, exchange.lease, exchange.client
    assert connection is not None
    assert lease is not None

    def end(tunnel: Tunnel, error: StreamError | None) -> None:
        if error is not None:
            log.debug("%s: tunnel ended: %s", client.address, error)
            if not error.timed_out:  # who is left shall not take what it has for all there was
                connection.stream.abort()
                client.stream.abort()
        connection.stream.close()
        lease.release()
        if take_note is not None:
            take_note(tunnel, error)
        clients.close(client)

    lease.settle(SUCCESS)  # it may be hours until it ends
    exchange.connection = exchange.lease = None
    exchange.is_complete = True
    exchange.following = TAKEN
    idle_limit = exchange.generation.config.timeouts.tunnel_idle
    # What has changed its protocol (WebSockets) has hardly more to say then; of bytes that were
    # never read nobody knows, and a long answer to a whole question is nothing strange.
    limit = idle_limit if take_note is not None else HALF_CLOSED_LIMIT
    relay.add(Tunnel(client.stream, connection.stream, idle_limit, end, half_closed_limit=limit))
