"""The life of a worker process, one of several on one port, from its fork to its end.

It serves until its supervisor tells it to end (`supervisor.py`). Where there is an admin process, a
thread answers its questions how this process is, from the first client to the end of the drain.
Each question also tells what an administrator wants (`overrides.py`). What was said last is read
before the first client comes, so one that replaces another begins with what holds now.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from atlas_pkg import logs
from atlas_pkg.control.channel import End, SharedText, answer_forever
from atlas_pkg.control.overrides import NO_OVERRIDES, Overrides, decode, encode
from atlas_pkg.control.process import hold_to_one_cpu
from atlas_pkg.control.report import ProcessReport
from atlas_pkg.control.service import Service, Setup
from atlas_pkg.control.supervisor import Order, Orders, Serve


class Question(TypedDict):
    """What the admin process asks: how are you, now that you know this?"""

    overrides: dict[str, Any]
    explains: bool  # with the last exchanges, which are much to say


def build_question(overrides: Overrides, *, explains: bool) -> Question:
    """Ask how a process is, with the last exchanges or without."""
    return Question(overrides=encode(overrides), explains=explains)


def recall_overrides(ends: Sequence[End]) -> Overrides:
    """The newest overrides that an earlier admin process has told the worker processes."""
    said = [item["question"]["overrides"] for end in ends if (item := end.said())]
    return max(map(decode, said), key=lambda item: item.version, default=NO_OVERRIDES)


def build_worker_life(
    setup: Setup,
    *,
    count: int,
    takes_over: bool,
    ends: Sequence[End],
    dump: Callable[[Service], None],
) -> Serve:
    """Make the life of all `count` worker processes, for the supervisor.

    `takes_over`: from the processes of another supervisor. `ends` are the channels to the admin
    process, one for each worker process; none where there is no admin process. `dump` logs the
    state of upstreams.
    """
    # For each place the file that was last put in force there, for a process that replaces another.
    last_good = [SharedText() for _ in range(count)]

    def live(number: int, listeners: Sequence[socket.socket], orders: Orders) -> bool:
        logs.set_process(f"worker {number}")
        logs.write_in_background()
        if setup.config.listen.pin:
            hold_to_one_cpu(number - 1)
        service = Service(setup, last_good[number - 1])
        service.catch_up()
        if ends:
            _listen_to_admin(service, ends[number - 1])
        service.start(listeners, takes_over=takes_over)
        orders.say_ready()
        while (order := orders.wait(service.is_serving)) in (Order.RELOAD, Order.DUMP):
            if order is Order.DUMP:
                dump(service)
            else:
                service.reload_now()
                orders.say_reloaded()
        return service.drain(orders.is_cut, has_successor=order is Order.HAND_OVER)

    return live


def _listen_to_admin(service: Service, end: End) -> None:
    """Follow what an administrator has said, and answer from now on, in a thread."""

    def answer(question: Question) -> ProcessReport:
        service.follow(decode(question["overrides"]))
        return service.report(explains=question["explains"])

    if asked := end.heard():
        service.follow(decode(asked["question"]["overrides"]))
    threading.Thread(target=answer_forever, args=(end, answer), name="report", daemon=True).start()
