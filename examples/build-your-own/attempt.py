"""One attempt at one upstream: ask it, and pass its answer back. Steps 3 to 7 use this.

Connections are kept for the next request. `idle` are those to one upstream that wait for it, the
newest last; it belongs to one thread, so nothing here needs a lock.
"""

from __future__ import annotations

import contextlib
import socket

from message import UNTIL_CLOSE, Head, Stream, copy_body, read_response

PATIENCE = 10.0  # seconds that an upstream may take until the next bytes

# Sent twice, they have the effect of being sent once.
IDEMPOTENT = (b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE")


# What a probe asks.
PROBE = b"GET / HTTP/1.1\r\nHost: atlas\r\nConnection: close\r\n\r\n"


class ConnectFailed(OSError):
    """Nothing was sent, so nothing can have happened."""


def may_go_again(request: Head) -> bool:
    """Can nothing happen twice if the request is sent twice?"""
    return request.framing == 0 and request.line.split()[0] in IDEMPOTENT


def connect(address: tuple[str, int]) -> Stream:
    """Open a connection."""
    try:
        return Stream(socket.create_connection(address, PATIENCE), PATIENCE)
    except OSError as error:
        raise ConnectFailed(*error.args) from None


def ask(
    client: Stream, request: Head, address: tuple[str, int], idle: list[Stream]
) -> tuple[Stream, Head]:
    """Send a request over an idle connection or a new one, and read the head of its answer."""
    while idle and idle[-1].is_readable():  # unasked: it can only have been closed
        idle.pop().sock.close()
    is_reused = bool(idle)
    connection = idle.pop() if idle else connect(address)
    try:
        connection.send(request.onward())
        copy_body(client, connection, request.framing)
        return connection, read_response(connection, request)
    except ConnectionError:
        is_stale = is_reused and not connection.buffered
        if not is_stale or not may_go_again(request):
            raise
    return ask(client, request, address, [])


def pass_back(
    client: Stream, request: Head, connection: Stream, response: Head, idle: list[Stream]
) -> bool:
    """Pass an answer on; may the client ask again? From the first byte on, a failure only cuts."""
    is_last = request.is_last() or response.framing == UNTIL_CLOSE
    client.send(response.onward(b"Connection: close") if is_last else response.onward())
    copy_body(connection, client, response.framing)
    if response.is_last() or connection.buffered:  # bytes that nobody has asked for
        connection.sock.close()
    else:
        idle.append(connection)
    return not is_last


def is_well(address: tuple[str, int]) -> bool:
    """Probe an upstream: does it answer within a second, with a status from 200 to 399?"""
    with contextlib.suppress(OSError), socket.create_connection(address, 1.0) as sock:
        sock.sendall(PROBE)
        return sock.recv(12)[9:10] in (b"2", b"3")
    return False
