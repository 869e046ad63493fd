"""What systemd hands over and what it is told: variables of the environment, and datagrams.

* `LISTEN_FDS`: listening sockets that it has opened (socket activation). They are adopted by
  address and port, like those of a predecessor (`net/listener.py`).
* `NOTIFY_SOCKET`: a socket to which each datagram is a few lines, `READY=1` for example. So it
  knows when Atlas serves, reloads and ends, and which process is the main one after a takeover.
  `STATUS=` is the line that `systemctl status` shows.
* `WATCHDOG_USEC`: how often it wants to hear `WATCHDOG=1`. It is told only while clients are
  served, so that it starts Atlas anew where that is no longer so.

Other programs speak the same: podman, supervisors, `systemd-socket-activate`. Without any of them
nothing happens here. See sd_listen_fds(3) and sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

from atlas_pkg.errors import StartError

# The first descriptor that is handed over.
FIRST = 3

# How often the line for people is told anew.
STATUS_INTERVAL = 5.0


def take_sockets() -> list[tuple[str, socket.socket]]:
    """The listening sockets that are meant for this process, each with its name.

    Raises `StartError` where one of them cannot serve.
    """
    meant_for = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if meant_for != str(os.getpid()) or not count.isdigit():
        return []
    taken = []
    for number in range(int(count)):
        try:
            os.set_inheritable(FIRST + number, False)
            sock = socket.socket(fileno=FIRST + number)
        except OSError:
            raise StartError(f"LISTEN_FDS: descriptor {FIRST + number} is no open socket") from None
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            raise StartError(
                f"LISTEN_FDS: descriptor {FIRST + number} does not listen for TCP connections "
                "(ListenStream= with an address and a port, Accept=no)"
            )
        taken.append((names[number] if number < len(names) else "", sock))
    return taken


class Notifier:
    """Tells systemd how this process fares. For the main thread. Never blocks, never fails."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        period = os.environ.get("WATCHDOG_USEC", "")
        meant_for = os.environ.pop("WATCHDOG_PID", "") or str(os.getpid())
        self._interval = 0.0  # between two signs of life; 0 = none is wanted
        if period.isdigit() and meant_for == str(os.getpid()):
            self._interval = int(period) / 1e6 / 2
        # Not before it is known that we serve.
        self._next_sign = self._next_status = float("inf")

    def serving(self, status: str, *, is_told: bool) -> None:
        """This process serves from now on; `is_told`: a predecessor tells it, who is believed."""
        if not is_told:
            self.ready(status)
        now = time.monotonic()
        self._next_sign, self._next_status = now + self._interval, now + STATUS_INTERVAL

    def ready(self, status: str) -> None:
        """This process serves, or serves on after a reload."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is being read; `ready` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading the configuration")

    def stopping(self) -> None:
        """This process ends once all is finished."""
        self._tell("STOPPING=1", "STATUS=draining: finishing what is under way")

    def hand_over(self, pid: int) -> None:
        """Process `pid` is the main one from now on."""
        self._tell(
            f"MAINPID={pid}", "READY=1", "WATCHDOG=1", f"STATUS=process {pid} has taken over"
        )

    def tick(self, is_serving: Callable[[], bool], status: Callable[[], str]) -> None:
        """Give a sign of life and tell the status, where they are due. To be called often."""
        now = time.monotonic()
        if self._interval and now >= self._next_sign and is_serving():
            self._next_sign = now + self._interval
            self._tell("WATCHDOG=1")
        if self._address and now >= self._next_status:
            self._next_status = now + STATUS_INTERVAL
            self._tell(f"STATUS={status()}")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)
