"""How a client's connection ends: after a complete answer, after a refusal, or cut off.

After a last answer the client may still be sending. Closing at once would make its kernel drop the
answer unread (RFC 9112 §9.6), so Atlas closes its own half, reads on for a moment and throws away
what comes. The waiting is done at the gate, so it costs no thread.

An answer that cannot be completed is cut, and where closing is what ends a body, cut with a
reset: nobody may take it for complete.
"""

from __future__ import annotations

import socket
import time

from atlas_pkg.net.stream import RECEIVE_BYTES
from atlas_pkg.serving.clients import ClientConnection, Clients
from atlas_pkg.serving.exchange import Exchange
from atlas_pkg.serving.gate import Gate

# How long a client may go on sending after its last answer, and how much is read in one turn.
LINGER = 2.0
LINGER_READS = 16


class Farewell:
    """Ends connections. Thread-safe."""

    def __init__(self, gate: Gate, clients: Clients) -> None:
        self._gate = gate
        self._clients = clients

    def close(self, client: ClientConnection) -> None:
        """Close at once."""
        self._clients.close(client.stream)

    def finish(self, client: ClientConnection, *, had_body: bool) -> None:
        """Close after a complete answer, gently if the client is or may be still sending."""
        if had_body or client.stream.buffered or client.stream.is_readable():
            self.linger(client)
        else:
            self.close(client)

    def cut(self, client: ClientConnection, exchange: Exchange) -> None:
        """End an answer that cannot be completed."""
        if exchange.ends_by_closing:
            client.stream.abort()
        self.close(client)

    def linger(self, client: ClientConnection) -> None:
        """Close our half, and the rest when the client is done or time is up."""
        client.stream.end_sending()
        client.stream.buffered = b""
        client.is_lingering = True
        client.deadline = time.monotonic() + LINGER
        self.throw_away(client)

    def throw_away(self, client: ClientConnection) -> None:
        """Read what a lingering client still sends; close at its end, or wait at the gate."""
        try:
            for _ in range(LINGER_READS):
                if not client.stream.sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT):
                    self.close(client)
                    return
        except BlockingIOError:
            pass
        except OSError:
            self.close(client)
            return
        if time.monotonic() >= client.deadline:
            self.close(client)
        else:
            self._gate.park(client)
