"""Open listening sockets, one for each process that is to accept on a port.

Several processes could also accept on one socket. Then whoever runs at the moment takes all that
is there: of 64 clients that connected at once to two processes, one process got all 64 in seven
rounds of eight. With a socket each (`SO_REUSEPORT`) the kernel deals them out by a hash of both
addresses: 25 to 39 was the worst. The price is that a process too busy to accept keeps its share
waiting. Not every system deals them out, so only Linux gets a socket each.

Some may be open already: those of a predecessor (`control/takeover.py`), or of systemd. They are
adopted and never opened anew, since a socket that is closed resets the clients in its queue. So
there may be more of them than processes. To systemd's no others of another user can be added:
several processes accept on the same one.

Accepted sockets inherit the options of the socket that accepted them, so what every client
connection needs (no Nagle delay, a short patience, see `stream.py`) is set here once and costs
nothing per connection.

Failures are explained in one line: a port in use, a port that needs privileges, a host name that
nobody knows.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterable
from typing import Any

from atlas_pkg.config.rules import show_endpoint
from atlas_pkg.errors import StartError
from atlas_pkg.net.stream import set_patience

# Connections that the kernel completes and keeps for us while we are busy. It lowers this to
# net.core.somaxconn (4096 since Linux 5.4).
BACKLOG = 1024

# How long a read of a client's body blocks before its upstream is watched as well. Long enough for
# a client that sends at network speed.
CLIENT_PATIENCE = 0.02

# Sending to a slow client is watched more closely after this.
SEND_PATIENCE = 0.25


class Inherited:
    """Listening sockets that were open before this process began, each with what it was for."""

    def __init__(self, sockets: Iterable[tuple[str, socket.socket]] = ()) -> None:
        self._left = list(sockets)

    def adopt(self, use: str, sockaddr: tuple[Any, ...]) -> list[socket.socket]:
        """Take those that listen on `sockaddr`; where any port will do, those of the same use.

        One on all addresses of both kinds (`::`) will do for all IPv4 addresses, too: systemd opens
        it where only a port is given.
        """
        adopted = []
        for known, sock in self._left.copy():
            host, port = sock.getsockname()[:2]
            hosts = {host, "0.0.0.0"} if host == "::" else {host}
            ports = {port, 0} if known == use else {port}
            if sockaddr[0] in hosts and sockaddr[1] in ports:
                self._left.remove((known, sock))
                _prepare(sock)
                adopted.append(sock)
        return adopted

    def make_room(self, port: int) -> bool:
        """Let others bind `port` while one of these listens there, on another address. Is there?"""
        rivals = [sock for _, sock in self._left if sock.getsockname()[1] == port]
        for sock in rivals:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return bool(rivals)

    def close(self) -> list[str]:
        """Close those that nobody has adopted; returns where they listened."""
        where = []
        for _, sock in self._left:
            where.append(show_endpoint(*sock.getsockname()[:2]))
            sock.close()
        self._left.clear()
        return where


def open_listener(
    address: str, port: int, *, use: str = "", inherited: Inherited | None = None
) -> socket.socket:
    """Have one socket listen; otherwise like `open_listeners`."""
    return open_listeners(address, port, 1, use=use, inherited=inherited)[0]


def open_listeners(
    address: str, port: int, count: int, *, use: str = "", inherited: Inherited | None = None
) -> list[socket.socket]:
    """Have `count` sockets, or more, listen on `address` and `port`, each for one process.

    `address` is IPv4, IPv6 (`::` takes IPv4 clients too) or a host name; port 0 is any free one.
    What of it is `inherited` is adopted. Raises `StartError` with one sentence.
    """
    inherited = inherited or Inherited()
    where = show_endpoint(address, port)
    try:
        candidates = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError):
        raise StartError(f"cannot listen on {where}: the host name is unknown") from None
    # A name with addresses of both kinds is opened on IPv4, where most clients will look for it.
    candidates.sort(key=lambda candidate: candidate[0] != socket.AF_INET)
    family, _, _, _, sockaddr = candidates[0]
    listeners = inherited.adopt(use, sockaddr)
    try:
        if not listeners:
            listeners.append(_create_socket(family))
            if inherited.make_room(port):
                listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listeners[0].bind(sockaddr)
        while len(listeners) < count:
            listeners.append(_create_companion(listeners[0]))
        for sock in listeners:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sock.listen(BACKLOG)
    except OSError as error:
        for sock in listeners:
            sock.close()
        raise StartError(f"cannot listen on {where}: {_explain(error)}") from None
    return listeners


def _create_socket(family: int) -> socket.socket:
    """Create a socket that has everything but its address."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    _prepare(sock)
    return sock


def _prepare(sock: socket.socket) -> None:
    """Set what all sockets that it accepts are to inherit."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_patience(sock, receive=CLIENT_PATIENCE, send=SEND_PATIENCE)


def _create_companion(first: socket.socket) -> socket.socket:
    """Create another socket on the address of `first`, which is bound already."""
    if sys.platform != "linux":
        return first.dup()
    # Only now, for the first one: had it been bound with this option, another Atlas on the same
    # port would not have been an error.
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock = _create_socket(first.family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(first.getsockname())
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:  # the first one belongs to another user: systemd
            return first.dup()
        raise
    return sock


def _explain(error: OSError) -> str:
    """Say what to do about the usual reasons for which a socket cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return "the port is in use by another program"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "no permission (ports below 1024 need privileges)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    return os.strerror(error.errno).lower() if error.errno else str(error)
