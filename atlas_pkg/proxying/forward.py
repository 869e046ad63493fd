"""App: forward an exchange to an upstream, and its answer to the client.

`forward` is the road, and blocks: reserve an upstream, send the request, read the answer, pass it
on, give everything back. Each request is balanced by itself, whatever connection it came on. One
loop serves stale connections, retries and failover; `retry.py` decides.

`ask` and `answer` are the shortcut, which never waits: they do of the same what can be done at
once. Where they stop, `forward` goes on, since the exchange knows how far it has come.
"""

from __future__ import annotations

import time

from atlas_pkg.errors import Stage, StreamError, UpstreamError
from atlas_pkg.http1.message import Response
from atlas_pkg.net.splice import SPLICE_FROM
from atlas_pkg.net.tunnel import Relay
from atlas_pkg.observing.record import End
from atlas_pkg.proxying.attempt import (
    ended_in_head,
    find_response,
    is_sent,
    read_response,
    send_at_once,
    send_request,
    translate,
)
from atlas_pkg.proxying.request_body import begin_body
from atlas_pkg.proxying.response_body import (
    begin_response,
    end_of_input,
    next_piece,
    stream_response,
)
from atlas_pkg.proxying.retry import lease_again
from atlas_pkg.proxying.tcp import hand_over
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.exchange import AWAIT, DONE, WAIT, Exchange, Step


class Proxy:
    """Forwards exchanges. Thread-safe: all state belongs to the exchange."""

    def __init__(self, clients: Clients, relay: Relay) -> None:
        """The `relay` serves tunnels, and `clients` are told when one has ended."""
        self._clients = clients
        self._relay = relay

    def forward(self, exchange: Exchange) -> Step:
        """Do all that is left to answer `exchange` from an upstream. Blocks.

        `AWAIT`: the request is sent, and the lane is to await the answer, or the rest of one that
        trickles. Raises `ClientError`, `ClientGone`, `NoUpstream` and `UpstreamError`, and
        `StreamError` for the client's side; whoever catches it lets go of what the exchange holds.
        """
        lane = exchange.client.lane
        if lane is not None and exchange.connection is not None:
            lane.ignore(exchange.connection)
        if exchange.is_ours:
            exchange.answer_ours()
            exchange.send_rest()
            return DONE
        piece = b""
        if exchange.response_body is None:
            response = self._obtain(exchange)
            if response is None:
                return AWAIT
            if response.status == 101:
                self._switch(exchange, response)
                return DONE
            piece = begin_response(exchange, response)
        if stream_response(exchange, piece):
            return DONE
        self._prolong(exchange)
        return AWAIT

    def ask(self, exchange: Exchange) -> Step:
        """Send the request, as far as that takes no waiting. Never waits."""
        request = exchange.request
        if exchange.is_ours:
            exchange.answer_ours()
            return WAIT if exchange.rest else DONE
        if request.has_body:
            begin_body(exchange)
            if exchange.awaits_continue or not exchange.client.stream.buffered:
                return WAIT
        lease = exchange.lease = exchange.group.balancer.lease_now(
            exchange.affinity, (), exchange.choices
        )
        if lease is None:
            return WAIT  # all that are available are full
        if exchange.record is not None:
            exchange.note_attempt(lease.upstream)
        return AWAIT if send_at_once(exchange) else WAIT

    def answer(self, exchange: Exchange) -> Step:
        """Pass on what the upstream has said, as far as that takes no waiting. Never waits."""
        connection = exchange.connection
        assert connection is not None
        stream = connection.stream
        is_head = exchange.response is None
        try:
            data = stream.receive_now()
            if is_head and data is not None and not data:
                raise ended_in_head(connection)
        except StreamError as error:
            stage = Stage.HEAD if is_head else Stage.BODY
            raise translate(error, stage, exchange, connection) from None
        if data is None:
            return AWAIT
        if is_head:
            whole = stream.buffered = stream.buffered + data
            response = find_response(exchange, connection)
            if response is None:
                return AWAIT
            if response.status < 200:
                stream.buffered = whole  # a thread finds it once more, and passes it on
                return WAIT
            if exchange.times is not None:
                exchange.times.first_byte_at = time.monotonic()
            piece = begin_response(exchange, response)
        elif data:
            stream.buffered = data
            piece = next_piece(exchange)
        else:
            piece = end_of_input(exchange)
        exchange.rest = exchange.client.stream.send_now(piece)
        if exchange.rest:
            return WAIT
        body = exchange.response_body
        if body is None or exchange.is_complete:
            return DONE
        # A read that fills the buffer is the sign of a bulk transfer.
        if body.bulk >= SPLICE_FROM or (body.most is None and len(data) == stream.receive_bytes):
            return WAIT
        self._prolong(exchange)
        return AWAIT

    @staticmethod
    def _prolong(exchange: Exchange) -> None:
        """Some of a body has come: the next piece has as much time again."""
        exchange.deadline = time.monotonic() + exchange.generation.config.timeouts.upstream_body
        exchange.client_left_at = 0.0

    def _obtain(self, exchange: Exchange) -> Response | None:
        """Ask upstreams until one answers; None where the lane is to await that. Blocks."""
        if exchange.request.has_body and exchange.request_body is None:
            begin_body(exchange)
        if exchange.lease is None:
            exchange.lease = exchange.group.balancer.lease(
                exchange.affinity,
                exchange.tried,
                exchange.choices,
                is_gone=exchange.is_client_gone,
            )
            exchange.note_attempt(exchange.lease.upstream)
        while True:
            try:
                if isinstance(exchange.failure, UpstreamError):  # the lane has met it
                    failure, exchange.failure = exchange.failure, None
                    raise failure
                send_request(exchange)
                connection = exchange.connection
                assert connection is not None
                if (
                    exchange.client.lane is not None
                    and is_sent(exchange)
                    and not connection.stream.buffered
                ):
                    return None
                response = read_response(exchange)
            except UpstreamError as error:
                lease_again(exchange, error)
            else:
                if exchange.times is not None:
                    exchange.times.first_byte_at = time.monotonic()
                return response

    def _switch(self, exchange: Exchange, response: Response) -> None:
        """Pass on 101 and turn both connections into a tunnel (RFC 9110 §7.8)."""
        connection = exchange.connection
        assert connection is not None
        exchange.start(101)
        generation, mark = exchange.generation, b""
        if (affinity := exchange.group.affinity) is not None:
            mark = affinity.mark(exchange.affinity, connection.upstream)
        exchange.send(generation.forwarder.build_switching_head(response, mark))
        if exchange.record is not None:
            exchange.record.end = End.TUNNEL
        exchange.client.release_bound()
        hand_over(exchange, self._relay, self._clients)
