"""Several processes on one port, and the parent that looks after them.

One interpreter lock uses one CPU, so more CPUs want more processes. The supervisor forks worker
processes, with a listening socket each, and waits for signals. It has one thread and serves
nobody, which keeps forking a replacement safe: no other thread can hold a lock at that moment.

* **A worker process dies:** another is forked in its place, with the same socket, at once the first
  time and then with growing pauses. Clients that the kernel has queued on that socket do not
  notice; only those that were connected to the dead one do.
* **A worker process hangs:** every few seconds each is asked for a sign of life. One that leaves
  several questions in a row unanswered is killed, and replaced.
* **A signal** becomes an order to each worker process: a byte through a bell (`channel.py`). Worker
  processes heed no signals of their own: a Ctrl-C reaches every process of a terminal, service
  managers often signal all of them too, and what comes twice must not count as a second, impatient
  one. Nor can two bytes melt into one, as two signals may.
* **The supervisor dies:** its end of the bells closes, so all worker processes drain and end.
* **Another Atlas takes over** (`takeover.py`): all are told to hand over, which is to drain without
  anybody noticing.

There may be one process more, the attendant: it is replaced like the others, but told to end only
when all others have ended, since it tells how they are.

What a worker process does is not known here: it is a function that is handed in.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from atlas_pkg import logs
from atlas_pkg.control.channel import Bell, open_bell
from atlas_pkg.control.systemd import Notifier
from atlas_pkg.control.takeover import Takeover

log = logging.getLogger("atlas.supervisor")

# A process that has lived this long did not die of its start; its death counts as a first one.
STEADY_LIFE = 30.0

# Pauses before a process that keeps dying is started again: none, half a second, twice that ...
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0

# How often we look whether something is due.
TICK = 0.2

# How often each process is asked for a sign of life, and after how many questions without an answer
# it is killed: ten seconds. They are counted, since a clock would go on while the supervisor itself
# stands still together with all others (Ctrl-Z, a container that is paused).
SIGN_INTERVAL = 2.0
MOST_UNANSWERED = 5

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})

# `sigtimedwait` is missing on macOS, so time passes as a signal too.
_SIGNALS = STOP_SIGNALS | {
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGCHLD, signal.SIGALRM),
}

_SIGNAL_NAMES = {known.value: known.name for known in signal.Signals}


class Order(enum.Enum):
    """What a worker process can be told."""

    ANSWER = b"?"  # with a byte, as a sign of life
    RELOAD = b"r"
    DUMP = b"u"  # log the state of the upstreams
    DRAIN = b"d"
    HAND_OVER = b"h"  # drain: others serve the same sockets now
    CUT = b"c"


class Orders:
    """What a worker process hears of its supervisor. Used by one thread, the main one."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._told = b""  # and not yet heeded
        self._is_cut = False

    def wait(self, is_well: Callable[[], bool] = lambda: True) -> Order:
        """Wait for the next order. Blocks. Without a supervisor the order is to drain.

        Only while this process `is_well` it gives signs of life.
        """
        while True:
            told = self._told or self._bell.wait()
            if told is None:
                log.error("the supervisor is gone: ending")
                return Order.DRAIN
            self._told = told[1:]
            order = Order(told[:1])
            if order is not Order.ANSWER:
                return order
            if is_well():
                self._bell.ring()

    def say_ready(self) -> None:
        """Tell the supervisor that this process serves."""
        self._bell.ring()

    def say_reloaded(self) -> None:
        """Tell the supervisor that this process has done so."""
        self._bell.ring(Order.RELOAD.value)

    def is_cut(self) -> bool:
        """Have we been told to end at once? Does not block. For the time of the drain."""
        told, self._told = self._told + (self._bell.wait(0) or b""), b""
        if Order.ANSWER.value in told:
            self._bell.ring()
        self._is_cut |= Order.CUT.value in told
        return self._is_cut


Serve = Callable[[int, Sequence[socket.socket], Orders], bool]


class Backoff:
    """How long to wait before a process that has died is started again."""

    def __init__(self) -> None:
        self._pause = 0.0

    def next_pause(self, lived: float) -> float:
        """The pause after a life of `lived` seconds."""
        if lived >= STEADY_LIFE:
            self._pause = 0.0
        pause = self._pause
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))
        return pause


class _Child:
    """The place of one process, and who holds it now."""

    def __init__(
        self, number: int, name: str, listeners: Sequence[socket.socket], serve: Serve
    ) -> None:
        self.number = number
        self.name = name
        self.listeners = listeners
        self.serve = serve
        self.backoff = Backoff()
        self.pid = 0  # 0 while nobody is there
        self.bell: Bell | None = None  # while somebody is there
        self.is_ready = False  # it has said that it serves
        self.is_reloading = False  # it has been told to
        self.unanswered = 0  # questions for a sign of life
        self.alive_since = 0.0
        self.due = 0.0  # when to start it, while nobody is there

    def tell(self, order: Order) -> None:
        if self.bell is not None:
            self.bell.ring(order.value)

    def close_listeners(self) -> None:
        for listener in self.listeners:
            listener.close()


class Supervisor:
    """Keeps `count` worker processes. Has one thread and starts no other."""

    def __init__(
        self,
        count: int,
        listeners: Sequence[socket.socket],
        serve: Serve,
        *,
        attendant: tuple[str, socket.socket, Serve] | None = None,
        takeover: Takeover | None = None,
        tell_ready: Callable[[], bool] | None = None,
        sign_interval: float = SIGN_INTERVAL,
    ) -> None:
        """Takes over `listeners`, of which each worker process gets one, or several in turn.

        `serve(number, listeners, orders)` is the life of a worker process, whose number counts
        from 1; it returns whether all was finished. `attendant` is a name, a listening socket
        and the life of the process that ends last. `tell_ready` is called once all serve; it
        returns whether there is a predecessor, who tells systemd.
        """
        self._workers = [
            _Child(number, f"worker {number}", listeners[number - 1 :: count], serve)
            for number in range(1, count + 1)
        ]
        self._attendant = None
        if attendant is not None:
            name, listener, attend = attendant
            self._attendant = _Child(0, name, [listener], attend)
        self._children = [*self._workers, *([self._attendant] if self._attendant else [])]
        self._takeover = takeover
        self._notifier = Notifier()
        self._tell_ready = tell_ready
        self._is_stopping = False
        self._sign_interval = sign_interval
        self._next_signs = time.monotonic() + sign_interval
        self._are_all_good = True

    def run(self) -> bool:
        """Run until a signal ends it; returns whether every process ended as it should."""
        # A signal without a handler may be dropped before anybody has waited for it.
        signal.signal(signal.SIGCHLD, _do_nothing)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._start_due()
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        while not self._is_stopping or any(child.pid for child in self._children):
            word = signal.sigwait(_SIGNALS)
            if word in STOP_SIGNALS:
                self._stop(signal.Signals(word).name)
            elif word == signal.SIGHUP:
                self._reload()
            elif word == signal.SIGUSR1:
                self._tell(self._workers, Order.DUMP)
            elif word == signal.SIGUSR2 and self._takeover is not None and not self._is_stopping:
                self._takeover.begin()
            self._look_after_takeover()
            self._note_deaths()
            self._start_due()
            self._dismiss_attendant()
            self._hear()
            self._ask_for_signs()
            if not self._is_stopping:
                self._notifier.tick(self._is_serving, self._status)
        signal.setitimer(signal.ITIMER_REAL, 0)
        log.info("all worker processes have ended")
        return self._are_all_good

    def _tell(self, children: Sequence[_Child], order: Order) -> None:
        for child in children:
            child.tell(order)

    def _reload(self) -> None:
        self._notifier.reloading()
        for child in self._workers:
            child.is_reloading = child.bell is not None
            child.tell(Order.RELOAD)

    def _is_serving(self) -> bool:
        """Does anybody serve? Who does not will be replaced by us."""
        return any(child.is_ready and child.unanswered < MOST_UNANSWERED for child in self._workers)

    def _status(self) -> str:
        ready = sum(child.is_ready for child in self._workers)
        return f"serving: {ready} of {len(self._workers)} worker processes"

    def _stop(self, reason: str) -> None:
        """Have all drain the first time, and end at once the second time."""
        if self._is_stopping:
            log.info("%s again: ending at once", reason)
            self._tell(self._children, Order.CUT)
            return
        log.info("%s: ending", reason)
        if self._takeover is not None:
            self._takeover.abandon()
        self._notifier.stopping()
        self._let_end(Order.DRAIN)

    def _let_end(self, order: Order) -> None:
        self._is_stopping = True
        # Before anybody drains: a socket is closed, and clients refused, when its last holder
        # has closed it. Else they would wait in a queue that nobody looks at.
        for child in self._children:
            child.close_listeners()
        self._tell(self._workers, order)

    def _look_after_takeover(self) -> None:
        """Hand over to a successor that serves."""
        if self._takeover is None or self._is_stopping or not self._takeover.is_done():
            return
        self._notifier.hand_over(self._takeover.successor)
        self._let_end(Order.HAND_OVER)
        if self._attendant is not None:
            self._attendant.tell(Order.HAND_OVER)  # who asks from now on, asks about the successor

    def _dismiss_attendant(self) -> None:
        """Have the attendant end when all others have."""
        if self._attendant is None or not self._is_stopping:
            return
        if not any(child.pid for child in self._workers):
            self._attendant.tell(Order.DRAIN)

    def _start_due(self) -> None:
        """Start what is not running and need not wait any longer."""
        now = time.monotonic()
        for child in self._children:
            if not self._is_stopping and not child.pid and child.due <= now:
                self._start(child)

    def _start(self, child: _Child) -> None:
        child.alive_since = time.monotonic()
        try:
            bell, its_bell = open_bell()
            try:
                pid = os.fork()
            except OSError:
                bell.close()
                its_bell.close()
                raise
        except OSError as error:
            pause = max(FIRST_PAUSE, child.backoff.next_pause(0.0))
            child.due = child.alive_since + pause
            log.error("%s cannot be started: %s; again in %g s", child.name, error.strerror, pause)
            return
        if pid == 0:
            bell.close()
            self._become(child, Orders(its_bell))
        its_bell.close()
        child.pid, child.bell = pid, bell
        child.unanswered, child.is_ready, child.is_reloading = 0, False, False
        log.info("%s is process %d", child.name, pid)

    def _become(self, child: _Child, orders: Orders) -> NoReturn:
        """Live as the worker process `child`, and exit. Runs in the new process.

        The supervisor's signals stay blocked, in all threads to come: see the top.
        """
        for other in self._children:
            if other.bell is not None:
                other.bell.close()  # while a copy is open, nobody notices the supervisor's end
            if other is not child:
                other.close_listeners()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGALRM})
        status = 1
        try:
            status = 0 if child.serve(child.number, child.listeners, orders) else 1
        except BaseException:
            log.exception("this worker process ends")
            raise
        finally:
            logs.close()
            # Not up through the frames of the supervisor, which are a copy here.
            os._exit(status)

    def _note_deaths(self) -> None:
        """Take note of all that have ended. Several deaths may come as one signal."""
        while any(child.pid for child in self._children):
            # As process 1 of a container we are also told of orphans that we do not know.
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            for child in self._children:
                if child.pid == pid:
                    self._note_death(child, os.waitstatus_to_exitcode(status))

    def _note_death(self, child: _Child, code: int) -> None:
        if child.bell is not None:
            child.bell.close()
        pid, child.pid, child.bell = child.pid, 0, None
        how = f"exit status {code}" if code >= 0 else f"signal {_SIGNAL_NAMES.get(-code, -code)}"
        if self._is_stopping:
            self._are_all_good &= code == 0
            level = logging.WARNING if code else logging.DEBUG
            log.log(level, "%s (process %d) has ended: %s", child.name, pid, how)
            return
        now = time.monotonic()
        pause = child.backoff.next_pause(now - child.alive_since)
        child.due = now + pause
        log.error(
            "%s (process %d) has died: %s; starting another %s",
            child.name,
            pid,
            how,
            f"in {pause:g} s" if pause else "at once",
        )

    def _hear(self) -> None:
        """Take note of all signs of life; when first all serve, tell so."""
        was_reloading = any(child.is_reloading for child in self._children)
        for child in self._children:
            if child.bell is not None and (words := child.bell.wait(0)):
                child.unanswered, child.is_ready = 0, True
                child.is_reloading &= Order.RELOAD.value not in words
        if was_reloading and not any(child.is_reloading for child in self._children):
            self._notifier.ready(self._status())
        if self._tell_ready is not None and all(child.is_ready for child in self._children):
            self._notifier.serving(self._status(), is_told=self._tell_ready())
            self._tell_ready = None

    def _ask_for_signs(self) -> None:
        """Ask everybody for a sign of life, and kill who has given none for too long."""
        if time.monotonic() < self._next_signs:
            return
        self._next_signs = time.monotonic() + self._sign_interval
        for child in self._children:
            if child.bell is None:
                continue
            if child.unanswered >= MOST_UNANSWERED:
                log.error(
                    "%s (process %d) gives no sign of life for %g s: killed",
                    child.name,
                    child.pid,
                    child.unanswered * self._sign_interval,
                )
                os.kill(child.pid, signal.SIGKILL)
            child.unanswered += 1
            child.tell(Order.ANSWER)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler that is never run: the signal is blocked, and waited for."""
